"""What `ufovit calibrate` reports: the INT8 share, what stays in float and why, the loss on the images that judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.calibration_table import MIN_IMAGES, CalibrationTable
from calib.metrics import sqnr_db, top1_agreement
from calib.qdq_placement import QuantPlan
from edge.tasks.constant_outputs import why_constant
from edge.tasks.task import Outputs
from engines.layer_records import Layer
from engines.layer_requests import read_layers

_LISTED = 12
Array = NDArray[np.generic]


@dataclass(frozen=True)
class Int8Share:
    """What a Q/DQ graph requests.

    Attributes:
        share: of the multiply-accumulates in INT8, in [0, 1]; None where none of them can be counted.
        lines: for the console.
        undecided: float layers whose multiply-accumulates cannot be counted.
    """

    share: float | None
    lines: tuple[str, ...]
    undecided: tuple[str, ...]

    def judge(self, floor: float | None) -> tuple[int, str]:
        """Exit code against the least share, and a sentence; "" where nothing is asked or the floor is met."""
        if floor is None:
            return 0, ""
        if self.share is not None and self.share < floor:
            return 1, f"INT8 share NOT MET: {self.share:.1%}, --int8-floor {floor:.1%}"
        if self.share is None or self.undecided:
            named = ", ".join(self.undecided[:_LISTED])
            return 3, f"--int8-floor {floor:.1%} is not decided: the share of {named} cannot be counted"
        return 0, ""


def int8_share(quantized: onnx.ModelProto, plan: QuantPlan, table: CalibrationTable) -> Int8Share:
    """Read the share from a Q/DQ graph; the reasons from the plan of its float graph, and from the table."""
    layers = read_layers(quantized)
    total = sum(layer.macs for layer in layers)
    in_float = sorted((layer for layer in layers if layer.requested != "int8"), key=lambda layer: -layer.macs)
    counted = [layer for layer in in_float if layer.macs]
    reasons: dict[str, str] = {**plan.skipped, **dict.fromkeys(table.float_nodes, "for the accuracy budget")}
    lines = [
        f"  in float   {layer.name}: {layer.macs / total:.2%} of the multiply-accumulates, {_reason(layer, reasons)}"
        for layer in counted[:_LISTED]
    ]
    if len(counted) > _LISTED:
        rest = sum(layer.macs for layer in counted[_LISTED:]) / total
        lines.append(
            f"  and {len(counted) - _LISTED} more with {rest:.2%}: {', '.join(layer.name for layer in counted[_LISTED:])}"
        )
    missing = {layer.name: _reason(layer, {}) for layer in layers if not layer.macs}
    lines += [f"  not counted  {name}: {reason}" for name, reason in islice(missing.items(), _LISTED)]
    if len(missing) > _LISTED:
        lines.append(f"  and {len(missing) - _LISTED} more not counted")
    share = None if not total else sum(layer.macs for layer in layers if layer.requested == "int8") / total
    text = "share unknown" if share is None else f"{share:.1%} of the multiply-accumulates"
    lines.insert(0, f"INT8         {text}, {len(table.tensors)} activations")
    return Int8Share(share, tuple(lines), tuple(layer.name for layer in in_float if not layer.macs))


def _reason(layer: Layer, reasons: Mapping[str, str]) -> str:
    return reasons.get(layer.name) or layer.problem or "requested by the graph"


@dataclass(frozen=True)
class Loss:
    """The loss by quantization: lines for the console, and the outputs that cannot be judged."""

    lines: tuple[str, ...]
    undefined: tuple[str, ...]


def measure_loss(
    names: Sequence[str], reference: Outputs, answers: Outputs, labels: NDArray[np.int64] | None, images: str
) -> Loss:
    """Compare every output (n, ...) of the INT8 graph with that of the float graph on the same n images.

    SQNR of each output, equal values of one of integers; for logits (n, classes) also agreement and, with labels (n,), accuracy
    of the first output. An output that is the same for every image has neither: 0 of nothing was lost. `images` names them.
    """
    lines, undefined = [], []
    for name, before, after in zip(names, reference, answers, strict=True):
        label = name if len(names) > 1 else "logits" if before.ndim == 2 else "output"
        if why := why_constant(before):
            undefined.append(name)
            said = f"not judged: the float graph's output is {why}: SQNR and agreement are undefined"
        else:
            said = f"{_comparison(before, after)} on {images}"
        lines.append(f"{label:<12} {said}")
    if labels is not None:
        accuracies = (float(np.mean(side[0].argmax(1) == labels)) for side in (reference, answers))
        lines.append("top-1        {:.2%} float, {:.2%} INT8".format(*accuracies))
    count = len(reference[0])
    if count < MIN_IMAGES:
        lines.append(
            f"warning      {count} images judge: too few for a figure to rely on, one is {1 / count:.0%} of the agreement"
        )
    return Loss(tuple(lines), tuple(undefined))


def _comparison(before: Array, after: Array) -> str:
    if before.dtype.kind in "iub":
        return f"{np.mean(before == after):.2%} of the values equal"
    sqnr = sqnr_db(before, after)
    text = f"SQNR {sqnr:.1f} dB" if np.isfinite(sqnr) else "no difference in any value: SQNR is infinite"
    return f"{text}, agreement {top1_agreement(before, after):.2%}" if before.ndim == 2 else text
