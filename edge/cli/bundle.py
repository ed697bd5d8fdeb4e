"""`ufovit bundle`: everything a device needs to build and check its own engine, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calib.errors import InputError

IMAGES = 2000
"""At the shipped network's flip rate an engine without any drop passes a budget of half a point with 87 % of such samples."""


def bundle(
    build: Annotated[Path, typer.Argument(help="Build folder of `ufovit build` for a GPU target", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images that will judge the engine on the device, in the forms of `ufovit build --data`. "
            "Default: the shipped test images, for a build that was judged on them",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many of them, spread evenly")] = IMAGES,
    out: Annotated[Path | None, typer.Option(help="Bundle file. Default: BUILD.ufovit", show_default=False)] = None,
) -> int:
    """Pack graph, calibration, certificate, preprocessing, labels, test images with FP32 answers, and the budget.

    On the device: scripts/build_engine.sh --bundle FILE. Exit codes: 0 done, 2 bad input, 4 something this machine lacks.
    """
    from rich.console import Console

    from edge.cli.console import TerminalProgress
    from edge.pipeline.build_request import judging_images
    from edge.pipeline.pack_bundle import make_bundle
    from edge.tasks.registry import task_of
    from engines.build_folder.bundle_format import SUFFIX
    from engines.build_folder.folder import BuildFolder

    folder = BuildFolder(build)
    chosen = judging_images(data, task_of(folder.manifest)).take(images)
    path = out or build.resolve().with_name(build.resolve().name + SUFFIX)
    if path.is_dir():
        raise InputError("a bundle is a file", where=path, next_command=f"pass --out {path / build.name}{SUFFIX}")
    progress = TerminalProgress(Console(soft_wrap=True))
    with progress.task("reference answers") as advance:
        info = make_bundle(folder, chosen, path, advance)
    progress.say(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {info.model} {info.precision}, {len(chosen)} images of {info.data}"
    )
    progress.say(f"on the device: scripts/build_engine.sh --bundle {path.name}")
    return 0
