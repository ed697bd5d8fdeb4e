"""What `ufovit calibrate` reports about an INT8 graph: its share of the work, and what stays in float and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import onnx

from calib.calibration_table import CalibrationTable
from calib.qdq_placement import QuantPlan
from engines.layer_records import Layer
from engines.layer_requests import read_layers

_LISTED = 12


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
    if table.placement is not None:
        reasons |= table.placement.reasons()
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
