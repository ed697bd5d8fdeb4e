"""`ufovit build`: from a checkpoint, or on a device from a bundle, to a verified engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from calib.errors import EvidenceError, InputError
from edge.model.sizes import SIZES
from edge.pipeline.build_request import CALIB_IMAGES, FLOAT_LAYERS, RANDOM_WEIGHTS_IMAGES, BuildRequest
from edge.pipeline.builder_options import BuilderRequest
from engines.build_spec import PRECISIONS, HardwareCompatibility, Precision, parse_batch
from engines.select_target import AUTO, resolve_target, with_backend
from engines.targets import TARGETS

_FLOAT_LAYERS = " ".join(FLOAT_LAYERS)
EXIT_BY_VERDICT = {"pass": 0, "fail": 1, "inconclusive": 3}
_WITH_A_BUNDLE = frozenset({
    *("target", "out", "bundle", "require_signature", "force", "optimization_level", "workspace", "version_compatible"),
    *("hardware_compatibility", "timing_cache", "pin_timing_cache"),
})  # fmt: skip
"""Parameters that say something about a build from a bundle; all others are answered by the bundle."""

Model = Annotated[str | None, typer.Argument(help="One of: " + ", ".join(SIZES), show_default=False)]
PrecisionName = Annotated[str | None, typer.Argument(help="One of: " + ", ".join(PRECISIONS), show_default=False)]


def build(  # noqa: PLR0913, PLR0917  # one parameter per option of the command
    context: typer.Context,
    model: Model = None,
    precision: PrecisionName = None,
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
    backend: Annotated[
        str | None,
        typer.Option(help="torch-tensorrt: build through torch.export. Default: the target's own", show_default=False),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Build from a file of `ufovit bundle`, without MODEL and PRECISION: the way on a device"),
    ] = None,
    require_signature: Annotated[
        Path | None, typer.Option(help="PEM file of the public key that must have signed the bundle", metavar="PUBLIC_KEY")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="How long TensorRT searches for kernels, 0 to 5", show_default=False)
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Most memory a kernel may use for itself, MiB. Default: the target's", show_default=False)
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="The engine loads in later releases of the same TensorRT too")
    ] = False,
    hardware_compatibility: Annotated[
        str, typer.Option(help="Other GPUs it runs on: none, ampere_plus, same_compute_capability")
    ] = "none",
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="TensorRT's timing cache. Default: timing-TARGET.cache beside the build folder"),
    ] = None,
    pin_timing_cache: Annotated[
        bool, typer.Option("--pin-timing-cache", help="Refuse to measure a kernel anew, so that builds repeat")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run every step, whatever an earlier build left")] = False,
) -> int:
    """Calibrate, build the engine, read its precision receipt, measure its drift, say pass or fail.

    Exit codes: 0 passed, 1 failed, 2 bad input, 3 too few images to say, 4 something this machine lacks.
    """
    from rich.console import Console

    from edge.cli.console import TerminalProgress
    from edge.cli.summary import print_summary

    builder = BuilderRequest(
        optimization_level,
        workspace,
        version_compatible,
        cast(HardwareCompatibility, hardware_compatibility),  # BuilderOptions refuses any other
        timing_cache,
        pin_timing_cache,
    )
    resolution = resolve_target(target)
    chosen = with_backend(resolution.target, backend)
    console = Console(soft_wrap=True)
    progress = TerminalProgress(console)
    if bundle is not None:
        _refuse_what_the_bundle_says(context)
        from edge.pipeline.build_from_bundle import DeviceRequest, run_bundle

        progress.say(f"{bundle} for target {chosen.name}: {resolution.reason}")
        device_request = DeviceRequest(bundle, chosen, out, builder, require_signature, force)
        try:
            outcome = run_bundle(device_request, progress)
        except EvidenceError:
            print_summary(console, device_request.folder)  # what is known without a GPU
            raise
    else:
        if model is None or precision is None:
            raise InputError("MODEL and PRECISION are missing", allowed="ufovit build MODEL PRECISION, or --bundle FILE")
        if require_signature is not None:
            raise InputError("--require-signature is about a bundle", allowed="with --bundle FILE")
        from edge.pipeline.build import run

        default_name = f"{model}-{precision}-{chosen.name}" + ("-random" if random_weights else "")
        default_name += f"-{backend}" if backend else ""
        folder = out or Path("build") / default_name
        request = BuildRequest(
            model=model,
            precision=cast(Precision, precision),  # BuildRequest refuses any other
            target=chosen,
            out=folder,
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
            builder=builder,
            force=force,
        )
        progress.say(f"{model} {precision} for target {chosen.name}: {resolution.reason}")
        outcome = run(request, progress)
    print_summary(console, outcome.folder)
    return EXIT_BY_VERDICT[outcome.verdict]


def _refuse_what_the_bundle_says(context: typer.Context) -> None:
    """Raise InputError for arguments that would be ignored."""
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    idle = [name for name in given if name not in _WITH_A_BUNDLE]
    if idle:
        shown = ", ".join(name.upper() if name in ("model", "precision") else f"--{name.replace('_', '-')}" for name in idle)
        raise InputError("--bundle says what is built", found=shown, allowed="without these")
