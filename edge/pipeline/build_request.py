"""The options of `ufovit build`.

Each field of `BuildOptions` and `BuilderRequest` is an option of the command, its line in the docstring the help text. Values
are checked here; `build_inputs` opens the files that the options name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from calib.errors import UsageError
from edge.model.sizes import SIZES, ImageSize, parse_image_size
from edge.option_bounds import IMAGE_SIZE, SEED, check_bounds
from edge.pipeline.builder_options import DEFAULT_BUILDER, BuilderRequest
from edge.pipeline.network_options import DEFAULT_NETWORK, NetworkOptions
from edge.pipeline.request_checks import (
    JUDGING_IMAGES,
    JudgingImages,
    check_budget,
    check_counts,
    check_islands,
    check_quantization,
    image_count,
)
from engines.build_spec import PRECISIONS, BatchRange, Precision, check_floor, parse_batch
from engines.targets import Target

DEFAULT_BATCH = BatchRange(1, 1, 8)
RANDOM_WEIGHTS_IMAGES = 64
"""Default number of images with random weights: enough to check ranges and numerics; there is no accuracy to measure."""


def image_size_option(_type: Any, tokens: Sequence[Any]) -> ImageSize:
    """--image-size SIZE or HEIGHTxWIDTH. Raises UsageError."""
    return parse_image_size(tokens[0].value)


def batch_option(_type: Any, tokens: Sequence[Any]) -> BatchRange:
    """--batch MIN,OPT,MAX. Raises UsageError."""
    return parse_batch(tokens[0].value)


_IMAGE_SIZE = Parameter(converter=image_size_option, n_tokens=1, accepts_keys=False)
_BATCH = Parameter(converter=batch_option, n_tokens=1, accepts_keys=False, show_default="1,1,8")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a model is built and judged.

    Attributes:
        checkpoint: Trained weights of a named size, .safetensors or .pth. Default: the shipped ufovit_t
        random_weights: Use random weights, to try the tools. Every artifact is stamped
        data: Images that judge the engine, labelled for --task classify: a folder per class, a .csv/.tsv/.txt list, or IDX
            files; for tensors any folder of pictures. Default: the shipped test images
        calib_data: Calibration images, in the same formats. Default: the shipped calibration images
        image_size: Input size of a UFO-ViT in pixels, SIZE or HEIGHTxWIDTH, 16 to 1,024. Default: the checkpoint's
        batch: Batch sizes of the engine: MIN,OPT,MAX, 1 to 1,024 each
        max_drop_points: Accuracy budget in percentage points of top-1, 0 to 100. Default: 0.5, for --task classify
        min_sqnr_db: Least SQNR of every output in dB, 0 to 200, for --task tensors. Default: that of the task
        min_cosine: Least mean cosine of every output, 0 to 1, in the place of --min-sqnr or beside it
        int8_floor: Least share of the multiply-accumulates that must run in INT8, 0 to 1. Default: the target's
        method: Calibration method: minmax, percentile, entropy, weighted_mse, mse (another one where clearly better)
        effort: Refinements of the INT8 quantization: fast (none), balanced, best; the best result up to this one is kept
        keep_float: Nodes that stay in float, glob patterns, repeatable, empty for none. Default: those of a UFO-ViT stem
            (stem.0/* stem.3/*), for rtx also *.lpi.conv* and *.attn/MatMul_1; none where --placement auto chooses
        placement: auto: leave the layers in float that INT8 costs too much, found on calibration images; all: none beside
            --keep-float; or a file with their names. Default: all for a named size, else auto
        islands: Places that compute in FP32 where scaling does not help FP16: unstable, or at-risk ones too, for more Casts
        calib_images: Number of calibration images, 1 to 1,000,000. Default: 512, 64 with random weights
        eval_images: Images that judge: their number, 1 to 1,000,000, spread evenly; all; or sequential: growing groups of them,
            until the verdict is decided at 95 % over all groups. Default: sequential; 64 with random weights
        seed: Seed of --random-weights, 0 to 4,294,967,295
        force: Run every step, whatever an earlier build left
    """

    checkpoint: Path | None = None
    random_weights: bool = False
    data: Path | None = None
    calib_data: Path | None = None
    image_size: Annotated[ImageSize | None, _IMAGE_SIZE] = None
    batch: Annotated[BatchRange, _BATCH] = DEFAULT_BATCH
    max_drop_points: float | None = None
    min_sqnr_db: float | None = None
    min_cosine: float | None = None
    int8_floor: float | None = None
    method: str = "mse"
    effort: str = "fast"
    keep_float: tuple[str, ...] | None = None
    placement: str | None = None
    islands: str = "unstable"
    calib_images: int | None = None
    eval_images: Annotated[JudgingImages | None, JUDGING_IMAGES] = None
    seed: int = 0
    network: Annotated[NetworkOptions, Parameter(name="*")] = DEFAULT_NETWORK
    builder: Annotated[BuilderRequest, Parameter(name="*")] = DEFAULT_BUILDER
    force: bool = False


@dataclass(frozen=True)
class BuildRequest(BuildOptions):
    """The checked options, model and target of a build. Raises UsageError for unknown or contradictory ones.

    Attributes:
        model: a name of `edge.model.sizes.SIZES`, or the path of a checkpoint or an ONNX file.
        out: the build folder.
    """

    model: str
    precision: Precision
    target: Target
    out: Path

    def __post_init__(self) -> None:
        _check_model(self)
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", where="PRECISION", allowed=", ".join(PRECISIONS))
        if self.random_weights and self.checkpoint is not None:
            raise UsageError(
                "--random-weights and --checkpoint exclude each other", where="--checkpoint", found=self.checkpoint
            )
        if self.precision == "fp16" and self.target.float_type != "fp16":
            raise UsageError(
                f"target {self.target.name} does not compute in FP16",
                where="PRECISION",
                found="fp16",
                allowed="fp32, int8",
                next_command=f"ufovit build {self.model} fp32 --target {self.target.name}",
            )
        check_bounds("--seed", self.seed, SEED)
        for side in (self.image_size,) if isinstance(self.image_size, int) else self.image_size or ():
            check_bounds("--image-size", side, IMAGE_SIZE)
        check_budget(self.max_drop_points, self.min_sqnr_db, self.min_cosine)
        check_counts(calib_images=self.calib_images, eval_images=image_count(self.eval_images))
        check_quantization(self.method, self.effort)
        check_floor(self.int8_floor)
        check_islands(self.islands)
        self.builder.options(self.target, self.out)

    @property
    def certified_precisions(self) -> tuple[str, ...]:
        """Precisions in which every XNorm must be stable: that of the build, and the float type of the layers around INT8."""
        return tuple(p for p in ("fp16", "int8") if p in (self.precision, self.target.float_type) and self.precision != "fp32")

    @property
    def engine_file(self) -> str:
        """Name of the engine in the build folder."""
        return f"engine{self.target.engine_suffix}"


def _check_model(request: BuildRequest) -> None:
    """Raise UsageError for a MODEL that is neither a size nor a file, and for options that do not apply to it."""
    model = request.model
    known = f"{', '.join(SIZES)}, or the path of a checkpoint or an .onnx file"
    if model in SIZES:
        return
    if not Path(model).is_file():
        what = f"unknown model {model!r}" if Path(model).suffix == "" else "model not found"
        raise UsageError(what, where="MODEL", found=None if Path(model).suffix == "" else model, allowed=known)
    ignored = {"--checkpoint": request.checkpoint is not None, "--random-weights": request.random_weights}
    if model.lower().endswith(".onnx"):
        ignored["--image-size"] = request.image_size is not None
    given = [option for option, ignore in ignored.items() if ignore]
    if given:
        what, allowed = f"MODEL is a file: {', '.join(given)} does not apply", "without it"
        raise UsageError(what, where=given[0], allowed=allowed + ("; --input-shape" if "--image-size" in given else ""))
