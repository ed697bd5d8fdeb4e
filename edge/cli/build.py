"""`ufovit build`: build a verified engine from a checkpoint or an ONNX file, or on a device from a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from calib.errors import EvidenceError, UsageError
from edge.cli.console import TerminalProgress, terminal_progress
from edge.model.sizes import SIZES
from edge.pipeline.build_request import BuildOptions, BuildRequest
from edge.pipeline.builder_options import DEFAULT_BUILDER, builder_flag
from engines.build_spec import Precision
from engines.select_target import AUTO, resolve_target, with_backend
from engines.targets import TARGETS

if TYPE_CHECKING:
    from edge.pipeline.build_from_bundle import DeviceRequest
    from edge.pipeline.workspace import BuildOutcome

_WITH_A_BUNDLE = ("--target", "--out", "--bundle", "--require-signature", "--force", *map(builder_flag, vars(DEFAULT_BUILDER)))
"""Options that apply to a build from a bundle; the bundle determines all others."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Destination:
    """The target of the engine and the build folder.

    Attributes:
        target: Device that the engine is for
        backend: torch-tensorrt: build through torch.export; of target cpu: openvino (default where installed) or ort
        out: Build folder. Default: build/MODEL-PRECISION-TARGET, with --bundle build/BUNDLE-TARGET
    """

    target: Annotated[str, Parameter(help="Device that the engine is for: " + ", ".join((AUTO, *TARGETS)))] = AUTO
    backend: str | None = None
    out: Path | None = None


_BUILD = BuildOptions()
_DESTINATION = Destination()


def build(
    model: Annotated[str | None, Parameter(help=f"{', '.join(SIZES)}; a checkpoint of any UFO-ViT; or any .onnx file")] = None,
    precision: Precision | None = None,
    /,
    *,
    destination: Destination = _DESTINATION,
    options: BuildOptions = _BUILD,
    bundle: Path | None = None,
    require_signature: Path | None = None,
    tokens: Annotated[tuple[str, ...], Parameter(parse=False)] = (),
) -> int:
    """Calibrate, build the engine, read its precision receipt, measure its drift, report pass or fail.

    Exit codes: 0 passed, 1 failed, 2 bad input, 3 too few images for a verdict, 4 something this machine lacks.

    Args:
        precision: Precision of the engine
        bundle: On a device: build from a file of `ufovit bundle`, without MODEL and PRECISION
        require_signature: PEM file of the public key that must have signed the bundle
    """
    from edge.cli.summary import conclude

    progress = terminal_progress()
    resolution = resolve_target(destination.target)
    target = with_backend(resolution.target, destination.backend)
    if bundle is not None:
        from edge.pipeline.build_from_bundle import DeviceRequest

        _refuse_ignored_options(tokens, MODEL=model, PRECISION=precision)
        progress.say(f"{bundle} for target {target.name}: {resolution.reason}")
        out = destination.out or Path("build") / f"{bundle.stem}-{target.name}"
        outcome = _from_bundle(DeviceRequest(bundle, target, out, options.builder, require_signature, options.force), progress)
    else:
        if model is None or precision is None:
            allowed = "ufovit build MODEL PRECISION, or --bundle FILE"
            raise UsageError("MODEL and PRECISION are missing", where="ufovit build", allowed=allowed)
        if require_signature is not None:
            what = "--require-signature applies to a bundle only"
            raise UsageError(what, where="--require-signature", allowed="with --bundle FILE")
        from edge.pipeline.build import build_model

        name = f"{Path(model).stem}-{precision}-{target.name}" + ("-random" if options.random_weights else "")
        name += f"-{destination.backend}" if destination.backend else ""
        patterns = options.keep_float
        if patterns is not None:
            patterns = tuple(filter(None, patterns))  # one empty pattern means no pattern
        settings = {**vars(options), "keep_float": patterns}
        request = BuildRequest(model, precision, target, destination.out or Path("build") / name, **settings)
        progress.say(f"{model} {precision} for target {target.name}: {resolution.reason}")
        outcome = build_model(request, progress)
    return conclude(progress, outcome)


def _from_bundle(request: DeviceRequest, progress: TerminalProgress) -> BuildOutcome:
    from edge.cli.summary import print_summary
    from edge.pipeline.build_from_bundle import build_on_device

    try:
        return build_on_device(request, progress)
    except EvidenceError:
        print_summary(progress.console, request.out)  # what is known without running the engine
        raise


def _refuse_ignored_options(tokens: tuple[str, ...], **arguments: str | None) -> None:
    """Raise UsageError for arguments and options that would be ignored, also where they repeat a default."""
    options = (token.partition("=")[0] for token in tokens if token.startswith("--"))
    ignored = [name for name, value in arguments.items() if value is not None]
    ignored += [option for option in options if option not in _WITH_A_BUNDLE]
    if ignored:
        raise UsageError(
            "--bundle cannot be combined with these arguments and options",
            where="--bundle",
            found=", ".join(ignored),
            allowed="without these",
        )
