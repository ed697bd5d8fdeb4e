"""The options that complete what a network's file states: the meaning of its outputs, its input, its preprocessing."""

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from calib.errors import UsageError
from edge.option_bounds import PIXEL, PREPROCESSED_SIZE, SCALE, check_bounds
from edge.tasks.task_names import task_named

_CHOICES = {"fit": ("crop", "stretch", "letterbox"), "colour": ("rgb", "bgr", "grey")}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What an .onnx file does not state about its input. Raises UsageError.

    Attributes:
        input_shape: Sizes of an input with free axes, NAME=1x3x224x224, repeatable
        constant_input: Value of an input other than the image, NAME=NUMBER or NAME=FILE.npy, repeatable
        outputs: Tensors of the graph that become its outputs, NAME,... , repeatable. Default: the graph's own outputs
        mean: Mean R,G,B on the [0, 1] scale, for pictures and a graph that does not record it
        std: Standard deviation R,G,B, likewise
        scale: Divisor of the pixels, 1 to 65,535, before mean and deviation. Default: 255
        resize: Shorter side of a picture in pixels, 1 to 4,096, before the centre is cut out. Default: that of the input
        fit: How a picture is fitted: crop, stretch, letterbox. Default: crop
        fill: Grey of the border of a letterbox, 0 to 255. Default: 114
        colour: Order of the channels: rgb, bgr, grey. Default: rgb, grey for one channel
    """

    input_shape: tuple[str, ...] = ()
    constant_input: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    mean: str | None = None
    std: str | None = None
    scale: float | None = None
    resize: int | None = None
    fit: str | None = None
    fill: int | None = None
    colour: str | None = None

    def __post_init__(self) -> None:
        if self.mean is not None or self.std is not None:
            from edge.images.graph_input import parse_normalisation

            parse_normalisation(self.mean, self.std)
        check_bounds("--resize", self.resize, PREPROCESSED_SIZE)
        check_bounds("--scale", self.scale, SCALE)
        check_bounds("--fill", self.fill, PIXEL)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in (None, *allowed):
                raise UsageError(f"unknown --{name}", where=f"--{name}", found=getattr(self, name), allowed=", ".join(allowed))

    def require_none(self, where: object, but: tuple[str, ...] = ()) -> None:
        """Raise UsageError for options that a network with metadata of its own would ignore, those named in `but` apart."""
        given = [name for name, value in vars(self).items() if value not in (None, ()) and name not in but]
        if given:
            raise UsageError(
                "the network says this of itself: the options do not apply",
                where=where,
                found=", ".join(f"--{name.replace('_', '-')}" for name in given),
                allowed="without these",
            )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NetworkOptions(InputOptions):
    """What an .onnx file, or a checkpoint without metadata, does not state. Raises UsageError.

    Attributes:
        task: What the outputs mean: classify (one output, a score per class), tensors (any outputs, judged as numbers).
            Default: that of the network file, else classify
        network: TOML file with the shape of a UFO-ViT, labels, preprocessing. Default: MODEL with the suffix .toml
        labels: Text file with the name of one class per line. Default: those of the network file, else the indices
    """

    task: str | None = None
    network: Path | None = None
    labels: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is not None:
            task_named(self.task)


DEFAULT_INPUT = InputOptions()
DEFAULT_NETWORK = NetworkOptions()
