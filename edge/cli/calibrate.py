"""`ufovit calibrate`: INT8 scales and a TensorRT-legal Q/DQ graph for any ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.pipeline.build_request import CALIB_IMAGES


def calibrate(  # noqa: PLR0913, PLR0917  # one parameter per option of the command
    graph: Annotated[Path, typer.Argument(help="An ONNX file (FP32) with one input")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Images that calibrate: a folder, an IDX file, or a .npy file of float32 (N, ...), as the graph takes them. "
            "Default: the shipped ones, for a graph of their classes"
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(help="How many of them calibrate, spread evenly; the others are held out")
    ] = CALIB_IMAGES,
    random: Annotated[
        int | None,
        typer.Option(
            help="Calibrate on this many made-up images, to try the tools; all that is made says so", show_default=False
        ),
    ] = None,
    effort: Annotated[
        str,
        typer.Option(help="fast (scales alone), balanced (weights refined too) or best (and some nodes added)"),
    ] = "balanced",
    method: Annotated[
        str,
        typer.Option(help="For scales that the effort does not search: minmax, percentile, percentile:99.9, entropy or mse"),
    ] = "mse",
    keep_float: Annotated[
        list[str] | None,
        typer.Option(help="Nodes that stay in float: a glob pattern on their names, repeatable", show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Accuracy budget in points: leave as few layers in float as meet it on the images that judge",
            show_default=False,
        ),
    ] = None,
    holdout: Annotated[
        Path | None,
        typer.Option(
            help="Images that judge: a folder per class, a list, an IDX file, a .npy file. Default: those of --images left over"
        ),
    ] = None,
    holdout_labels: Annotated[Path | None, typer.Option(help="Classes of a .npy --holdout: a .npy file of integers")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Take this calibration table instead of calibrating, with the model.refined.onnx beside it; refused when stale"
        ),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="R,G,B on the [0, 1] scale, for pictures and a graph that does not say")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, likewise")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: build/calibrate/GRAPH", show_default=False)] = None,
) -> int:
    """Calibrate a float graph on images, and write it with Q/DQ.

    Written: model.int8.onnx, calibration.json, model.refined.onnx (the float graph of these scales), calibration.cache.

    Exit codes: 0 done, 1 budget not met or a layer not in INT8, 2 bad input, 4 something that this machine lacks.
    """
    from rich.console import Console

    from edge.cli.console import TerminalProgress
    from edge.images.graph_input import parse_normalisation
    from edge.pipeline.calibrate_graph import run
    from edge.pipeline.calibrate_request import CalibrateRequest

    request = CalibrateRequest(
        graph=graph,
        out=out or Path("build/calibrate") / graph.stem,
        images=images,
        count=count,
        random=random,
        holdout=holdout,
        holdout_labels=holdout_labels,
        normalisation=parse_normalisation(mean, std),
        table=table,
        effort=effort,
        method=method,
        keep_float=tuple(filter(None, keep_float or ())),
        max_drop_points=max_drop,
    )
    return run(request, TerminalProgress(Console(soft_wrap=True)))
