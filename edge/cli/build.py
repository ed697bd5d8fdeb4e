"""`ufovit build`: from a checkpoint to a verified engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from edge.model.config import SIZES
from edge.request import CALIB_IMAGES, FLOAT_LAYERS, RANDOM_WEIGHTS_IMAGES, BuildRequest
from engines.spec import PRECISIONS, Precision, parse_batch
from engines.targets import AUTO, TARGETS, resolve_target

_FLOAT_LAYERS = " ".join(FLOAT_LAYERS)
EXIT_BY_VERDICT = {"pass": 0, "fail": 1, "inconclusive": 3}

Model = Annotated[str, typer.Argument(help="One of: " + ", ".join(SIZES), show_default=False)]
PrecisionName = Annotated[str, typer.Argument(help="One of: " + ", ".join(PRECISIONS), show_default=False)]


def build(  # noqa: PLR0913, PLR0917  # one parameter per option of the command
    model: Model,
    precision: PrecisionName,
    target: Annotated[str, typer.Option(help="What the engine is for: " + ", ".join((AUTO, *TARGETS)))] = AUTO,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Trained weights, .safetensors or .pth. Default: the shipped ufovit_t")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Draw the weights, to try the tools. Every artifact is stamped")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled images that judge the engine: a folder per class, a .csv/.txt list, or IDX files"),
    ] = None,
    calib_data: Annotated[Path | None, typer.Option(help="Images that calibrate it, in the same forms")] = None,
    image_size: Annotated[int | None, typer.Option(help="Input size in pixels. Default: the checkpoint's")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes of the engine: MIN,OPT,MAX")] = "1,1,8",
    max_drop: Annotated[float, typer.Option(help="Accuracy budget in percentage points of top-1")] = 0.5,
    int8_floor: Annotated[
        float | None, typer.Option(help="Smallest share of the multiply-accumulates in INT8. Default: the target's")
    ] = None,
    method: Annotated[str, typer.Option(help="Calibration: minmax, percentile, entropy, mse")] = "mse",
    effort: Annotated[str, typer.Option(help="Refinements of the INT8 quantization: fast (none), balanced, best")] = "fast",
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Nodes that stay in float, glob patterns, repeatable, empty for none. Default: {_FLOAT_LAYERS}",
            show_default=False,
        ),
    ] = None,
    calib_images: Annotated[
        int | None, typer.Option(help=f"Calibration images. Default: {CALIB_IMAGES}", show_default=False)
    ] = None,
    eval_images: Annotated[
        int | None,
        typer.Option(help=f"Images that judge. Default: all, {RANDOM_WEIGHTS_IMAGES} with random weights", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Build folder. Default: build/MODEL-PRECISION-TARGET", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of --random-weights")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Run every step, whatever an earlier build left")] = False,
) -> int:
    """Calibrate, build the engine, read its precision receipt, measure its drift, say pass or fail.

    Exit codes: 0 passed, 1 failed, 2 bad input, 3 too few images to say, 4 something this machine lacks.
    """
    from rich.console import Console

    from edge.cli.console import TerminalProgress
    from edge.cli.summary import print_summary
    from edge.pipeline import run

    resolution = resolve_target(target)
    chosen = resolution.target
    default_name = f"{model}-{precision}-{chosen.name}" + ("-random" if random_weights else "")
    request = BuildRequest(
        model=model,
        precision=cast(Precision, precision),  # BuildRequest refuses any other
        target=chosen,
        out=out or Path("build") / default_name,
        checkpoint=checkpoint,
        random_weights=random_weights,
        data=data,
        calib_data=calib_data,
        image_size=image_size,
        batch=parse_batch(batch),
        method=method,
        effort=effort,
        keep_float=FLOAT_LAYERS if keep_float is None else tuple(filter(None, keep_float)),
        calib_images=calib_images,
        eval_images=eval_images,
        max_drop_points=max_drop,
        int8_floor=int8_floor,
        seed=seed,
        force=force,
    )
    console = Console(soft_wrap=True)
    progress = TerminalProgress(console)
    progress.say(f"{model} {precision} for target {chosen.name}: {resolution.reason}")
    outcome = run(request, progress)
    print_summary(console, outcome.folder)
    return EXIT_BY_VERDICT[outcome.verdict]
