"""The option --placement: which layers stay in float.

auto searches for them, see `calib.placement`; all leaves none in float; a file names them: node names or glob patterns, one a
line, lines that start with # ignored, or the calibration.json of a build, whose layers in float are taken over.
"""

from glob import escape
from pathlib import Path

from calib.errors import DataError, UsageError
from calib.files import read_regular
from edge.model.sizes import SIZES
from engines.targets import Target

AUTO, ALL = "auto", "all"
FAMILY_PLACEMENT = ALL
"""Default for the named sizes of the family, whose layers in float `default_float_layers` names."""
STEM_LAYERS = ("stem.0/*", "stem.3/*")
"""Layers of a UFO-ViT that stay in float by default: the first two convolutions of the stem, which see the image itself. They
are 1.7 % of ufovit_t's multiply-accumulates, and in INT8 they cost more SQNR than all other layers together; figures in
edge/README.md."""
FEWER_STEPS = ("*.lpi.conv*", "*.attn/MatMul_1")
"""Those of an engine of TensorRT-RTX, too: the convolutions of the LPI and the second product of every attention, 2.7 % of
ufovit_t's multiply-accumulates. With them in FP16 the engine takes fewer steps, and SQNR is higher; figures in
docs/float-layers.md."""
LARGEST_LIST_BYTES = 1 << 20
_REMAKE = "pass auto, all, a list of node names, or the calibration.json of a build"


def default_placement(model: str) -> str:
    """The placement of a build of this model where none is asked for: searched for, except for a named size."""
    return FAMILY_PLACEMENT if model in SIZES else AUTO


def default_float_layers(target: Target) -> tuple[str, ...]:
    """Patterns of the layers of a UFO-ViT that stay in float where neither --keep-float nor a search chooses."""
    return STEM_LAYERS + (FEWER_STEPS if target.backend == "trt_rtx" else ())


def read_placement(option: str) -> tuple[str, ...]:
    """Patterns of the layers that stay in float by --placement; empty for `auto` and `all`.

    Raises UsageError for a missing or empty file, DataError for one that is not text, ArtifactError for a malformed
    calibration.json.
    """
    if option in (AUTO, ALL):
        return ()
    path = Path(option)
    if not path.is_file():
        what, allowed = "unknown placement, and no such file", f"{AUTO}, {ALL}, or a file of node names"
        raise UsageError(what, where="--placement", found=option, allowed=allowed)
    if path.suffix == ".json":
        from calib.calibration_table import load_table

        return tuple(map(escape, load_table(path, remake=_REMAKE).float_nodes))
    data = read_regular(path, DataError, largest=LARGEST_LIST_BYTES, remake=_REMAKE)
    try:
        lines = [line.strip() for line in data.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError("not a text file", where=path, found=error, next_command=_REMAKE) from error
    patterns = tuple(line for line in lines if line and not line.startswith("#"))
    if not patterns:
        raise UsageError("the file names no layer", where=path, allowed="node names or glob patterns, one a line")
    return patterns
