"""The steps of a build, one file each: what it reads, what it writes, and the work. `edge.pipeline.build` orders them."""

__all__: list[str] = []  # `edge.pipeline.build` and `rejudge` import the modules; nothing outside the pipeline does
