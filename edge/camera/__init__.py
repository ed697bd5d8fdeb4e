"""On-device inference: a source of frames, the newest of them through an engine, results to whoever looks."""
