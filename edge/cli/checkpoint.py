"""`ufovit checkpoint`: give the weights of a training the metadata that a build needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from calib.errors import UsageError
from calib.files import sha256_file
from edge.cli.console import TerminalProgress, terminal_progress
from edge.cli.outputs import check_outputs
from edge.model.sizes import SIZES, config, image_size_text, name_shape, parse_image_size
from edge.option_bounds import PREPROCESSED_SIZE, check_bounds

if TYPE_CHECKING:
    from edge.model.convert_checkpoint import Weights
    from edge.model.network_file import NetworkFile


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What is known of the weights. An option wins over the network file.

    Attributes:
        out: Write the checkpoint here, .safetensors. Default: only tell what the file is
        overwrite: Allow --out to replace the file that is read
        network: TOML file with the shape, labels and preprocessing. Default: the one beside FILE, if there is one
        model: Require the shape of a named size: ufovit_t, ufovit_s, ufovit_m, ufovit_b
        labels: Names of the classes, in the order of the logits: a,b,c, or a text file with one per line. Default: numbers
        mean: Mean R,G,B of the training images on the [0, 1] scale
        std: Standard deviation R,G,B, likewise
        resize: Length of the shorter side before the centre is cut out, pixels, 1 to 4,096. Default: nothing is cut off
        image_size: Input size of the training, PIXELS or HEIGHTxWIDTH. Default: that of a square
        strip_prefix: Strip the prefix of all names, such as module. and _orig_mod.
        ema: Take the moving average of the weights that the file holds beside them
    """

    out: Path | None = None
    overwrite: bool = False
    network: Path | None = None
    model: str | None = None
    labels: str | None = None
    mean: str | None = None
    std: str | None = None
    resize: int | None = None
    image_size: str | None = None
    strip_prefix: bool = False
    ema: bool = False

    def __post_init__(self) -> None:
        check_bounds("--resize", self.resize, PREPROCESSED_SIZE)
        if self.network is not None and self.model is not None:
            raise UsageError("--network and --model exclude each other", where="--model", found=self.model)
        if self.overwrite and self.out is None:
            raise UsageError("--overwrite applies to writing only", where="--overwrite", allowed="with --out FILE")


_DEFAULT = CheckpointOptions()


def checkpoint(file: Path, /, *, options: CheckpointOptions = _DEFAULT) -> int:
    """Tell what a file of weights is; with --out, write it as a checkpoint with labels, shape and preprocessing.

    Exit codes: 0 told, or written, 2 bad input, 4 something this machine lacks.

    Args:
        file: Weights of a UFO-ViT: .safetensors, or a file of torch.save such as .pth, .pt, .ckpt, .pth.tar
    """
    from edge.model.convert_checkpoint import open_weights

    if options.model is not None:
        config(options.model)
    network = _stated(file, options)
    if options.out is not None and not options.overwrite:
        if options.out.exists() and file.exists() and options.out.samefile(file):
            remedy = "another --out, or --overwrite"
            raise UsageError("the file that is read would be replaced", where=options.out, next_command=remedy)
        check_outputs(options.out, inputs=(file, Path(network.file) if network.file else None))
    progress = terminal_progress()
    weights = open_weights(file, network, model=options.model, strip=options.strip_prefix, averaged=options.ema)
    _describe(progress, file, weights)
    return _convert(progress, file, weights, network, options.out)


def _stated(file: Path, options: CheckpointOptions) -> NetworkFile:
    """The network file, with the options in place of what it states."""
    from edge.images.graph_input import parse_triple
    from edge.model.network_file import NetworkFile, check_labels, find_network_file, read_labels, read_network_file

    path = options.network or find_network_file(file)
    stated = NetworkFile() if path is None else read_network_file(path)
    given: dict[str, Any] = {
        name: [*parse_triple(text, f"--{name}")]
        for name, text in (("mean", options.mean), ("std", options.std))
        if text is not None
    }
    given |= {} if options.resize is None else {"resize": options.resize}
    shape = dict(stated.network)
    if options.image_size is not None:
        size = parse_image_size(options.image_size)
        shape["image_size"] = size if isinstance(size, int) else [*size]
    labels = stated.labels
    if options.labels is not None and ("," not in options.labels or Path(options.labels).is_file()):
        labels = read_labels(Path(options.labels))
    elif options.labels is not None:
        labels = check_labels([label.strip() for label in options.labels.split(",")], "--labels")
    return replace(stated, network=shape, preprocess=stated.preprocess | given, labels=labels)


def _describe(progress: TerminalProgress, file: Path, weights: Weights) -> None:
    shape, source = weights.shape, weights.file
    under = f" under {source.key!r}" if source.key else ""
    count = sum(tensor.numel() for tensor in weights.tensors.values())
    progress.say(f"{file}: {source.format}, {len(weights.tensors)} tensors{under}, {count:,} numbers")
    if source.has_averaged:
        progress.say("  it also holds a moving average of the weights: --ema takes that")
    sides = shape["image_size"]
    size = image_size_text(sides if isinstance(sides, int) else (sides[0], sides[1]))
    parts = ("depth", "dim", "heads", "stem_widths", "class_layers", "ffn_expansion", "classes")
    name = name_shape(shape)
    progress.say(f"  {name if name in SIZES else 'a UFO-ViT'}, {size} px: " + ", ".join(f"{p} {shape[p]}" for p in parts))


def _convert(progress: TerminalProgress, file: Path, weights: Weights, network: NetworkFile, out: Path | None) -> int:
    from edge.model.checkpoint import save_tensors
    from edge.model.convert_checkpoint import make_checkpoint

    missing = [name for name in ("mean", "std") if name not in network.preprocess and weights.file.metadata is None]
    if out is None and missing:
        options = " ".join(f"--{name} R,G,B" for name in missing)
        progress.say(f"  to write a checkpoint of it, state how its images are prepared: {options}, and --out FILE")
        return 0
    tensors, info = make_checkpoint(weights, network, file)
    prepared = ", ".join(f"{name} {value}" for name, value in info.preprocess.as_json().items())
    labels = ", ".join(info.labels[:5]) + (", ..." if len(info.labels) > 5 else "")
    progress.say(f"  {'would write' if out is None else 'writes'}: {info.config.name}, labels {labels}; {prepared}")
    if out is None:
        progress.say("  nothing was written: pass --out FILE.safetensors")
        return 0
    save_tensors(tensors, info, out)
    progress.say(f"wrote {out}, sha256 {sha256_file(out)}")
    progress.say(f"next: ufovit build {out} int8")
    return 0
