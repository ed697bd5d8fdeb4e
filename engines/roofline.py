r"""Is INT8 worth it here? A range for the speed-up over FP16, from what both engines run and from documented rates of a target.

Every step of an engine takes

    t = launch + max(bytes / bandwidth, operations / peak rate)

(Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", CACM 2009, with a fixed time per kernel). An
inference is the sum, and the speed-up is t(FP16) / t(INT8). What no data sheet tells is taken from a range, `RANGES`, the same
value for both engines; the range of the result is that over every combination of the ends:

    launch      time per kernel besides its work, per target
    bandwidth   share of the memory's rate that a kernel reaches
    traffic     share of the activations' bytes that reaches DRAM; the rest stays in the cache, at more of the memory's rate
    efficiency  share of the peak rate that a product reaches
    int8        that share in INT8, relative to FP16: half as much work fills the units less evenly

    merged      share of the pointwise steps on the results of products that run inside the product

The last is for targets of TensorRT. A plan of TensorRT-RTX writes scaling, bias, activation and rounding after an INT8 product
as a step of its own, where TensorRT computes them inside the product, unless the layout or another reader prevents it; and it
pads the channels of depthwise INT8 convolutions. For the target of TensorRT-RTX the plan counts as written.

A range wider than a factor of two is not a prediction, and is said to be none. Standard library only.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from engines.layer_records import EngineEvidence, Layer
from engines.plan_kernels import PlanStep

Limit = Literal["launches", "bytes", "products"]
_MULTIPLYING = ("product", "attention")
WIDEST = 2.0
"""Ratio of the ends of a range above which it predicts nothing."""


@dataclass(frozen=True)
class MachineRates:
    """Documented rates of a target's GPU, without sparsity; a multiply-accumulate is two operations.

    Attributes:
        name: of the module or card that the figures are of.
        int8_tops: 10^12 operations per second of the tensor cores; likewise `fp16_tops`.
        bandwidth_gbs: 10^9 bytes per second of the memory.
        launch_us: shortest and longest time per kernel besides its work.
        traffic: least and largest share of the activations' bytes that costs as much as DRAM does; a cache of tens of MB keeps
            those of a small network.
        tensorrt: its engines are TensorRT's, not plans of TensorRT-RTX.
    """

    name: str
    int8_tops: float
    fp16_tops: float
    bandwidth_gbs: float
    launch_us: tuple[float, float]
    traffic: tuple[float, float] = (0.5, 1.0)
    tensorrt: bool = True


RATES: dict[str, MachineRates] = {
    "orin-nano": MachineRates("Jetson Orin Nano 8GB", 33.5, 16.7, 102, (2.0, 6.0)),
    "orin-nx": MachineRates("Jetson Orin NX 16GB", 38.5, 19.2, 102, (2.0, 6.0)),
    "agx-orin": MachineRates("Jetson AGX Orin 64GB", 85, 42.5, 205, (2.0, 6.0)),
    "thor": MachineRates("Jetson T5000", 517, 258, 273, (1.5, 5.0), traffic=(0.2, 1.0)),
    "desktop": MachineRates("GeForce RTX 4090", 661, 330, 1008, (1.0, 4.0), traffic=(0.2, 1.0)),
    "rtx": MachineRates("GeForce RTX 4090", 661, 330, 1008, (1.0, 4.0), traffic=(0.2, 1.0), tensorrt=False),
}
"""Sources: NVIDIA's data sheets of the modules at their highest power mode (sparse INT8 of the GPU halved); the white paper of
the Ada architecture, appendix A. The time per kernel is not documented; the ranges hold what profiles of small kernels show."""


@dataclass(frozen=True)
class StepWork:
    """What one step moves and computes for one image."""

    weight_bytes: int
    activation_bytes: int
    int8_macs: int = 0
    float_macs: int = 0


@dataclass(frozen=True)
class Unknowns:
    """One value for each quantity that no data sheet tells; see the top of this file. `launch` in microseconds."""

    launch: float
    bandwidth: float
    traffic: float
    efficiency: float
    int8: float
    merged: float


RANGES: dict[str, tuple[float, float]] = {
    "bandwidth": (0.5, 0.85),
    "efficiency": (0.35, 0.7),
    "int8": (0.7, 1.0),
    "merged": (0.8, 1.0),
}
"""Ends of the ranges of `Unknowns` that hold for every machine; `merged` is 0 for a plan that counts as written."""


@dataclass(frozen=True)
class EngineWork:
    """The steps of an engine in three forms.

    Attributes:
        planned: as the plan of TensorRT-RTX has them.
        unpadded: without padding.
        merged: likewise, and the pointwise ones on results of products computed inside the products.
    """

    planned: tuple[StepWork, ...]
    unpadded: tuple[StepWork, ...]
    merged: tuple[StepWork, ...]

    def macs(self) -> tuple[int, int]:
        """Multiply-accumulates for one image, in INT8 and in float."""
        return sum(step.int8_macs for step in self.planned), sum(step.float_macs for step in self.planned)

    def for_machine(self, rates: MachineRates) -> tuple[tuple[StepWork, ...], tuple[StepWork, ...]]:
        """The steps with nothing and with everything merged that can be."""
        return (self.unpadded, self.merged) if rates.tensorrt else (self.planned, self.planned)


@dataclass(frozen=True)
class SpeedUp:
    """Range of t(FP16) / t(INT8) at a batch size, and what takes most of the INT8 engine's time in the middle of the ranges."""

    batch: int
    low: float
    high: float
    decided_by: Limit

    @property
    def predicts(self) -> bool:
        """Whether the range is narrow enough to say anything."""
        return self.high <= WIDEST * self.low

    def sentence(self) -> str:
        """The estimate in words."""
        span = f"{self.low:.2f} to {self.high:.2f} times FP16's speed at batch {self.batch}"
        if not self.predicts:
            return f"no prediction: {span}"
        sides = "faster" if self.low >= 1 else "slower" if self.high <= 1 else "faster or slower"
        return f"{sides}: {span}, decided by {self.decided_by}"


def engine_work(evidence: EngineEvidence, layers: Iterable[Layer]) -> EngineWork:
    """What an engine runs, from the plan of TensorRT-RTX and the layers of its graph.

    The products of a layer count in the first step that multiplies and names it.
    """
    layers = tuple(layers)
    unpadded = tuple(_without_padding(step) for step in evidence.steps if step.kind != "pad")
    forms = (evidence.steps, unpadded, _merge_pointwise(unpadded))
    return EngineWork(*(_step_works(steps, evidence, layers) for steps in forms))


def _step_works(steps: Iterable[PlanStep], evidence: EngineEvidence, layers: Iterable[Layer]) -> tuple[StepWork, ...]:
    macs = {layer.name: layer.macs for layer in layers}
    works = []
    for step in steps:
        nodes = [node for node in dict.fromkeys(step.nodes) if step.kind in _MULTIPLYING and node in macs]
        int8 = sum(macs[node] for node in nodes if node in evidence.layers and evidence.layers[node].actual == "int8")
        total = sum(macs.pop(node) for node in nodes)
        works.append(StepWork(step.weight_bytes, step.activation_bytes or 0, int8, total - int8))
    return tuple(works)


def _merge_pointwise(steps: Iterable[PlanStep]) -> tuple[PlanStep, ...]:
    """Each pointwise step merged into the product before it, if it names a node of that product and transposes nothing.

    Transposed heads of q, k and v are a step of its own in FP16 too, and then no reason why INT8 would run fewer.
    """
    merged: list[PlanStep] = []
    product = None
    for step in steps:
        epilogue = step.kind == "pointwise" and "Tran" not in step.name
        if epilogue and product is not None and not {*merged[product].nodes}.isdisjoint(step.nodes):
            merged[product] = _merge(merged[product], step)
        else:
            product = len(merged) if step.kind in _MULTIPLYING else product
            merged.append(step)
    return tuple(merged)


def _without_padding(step: PlanStep) -> PlanStep:
    """The step on tensors without zeros; a product reads them, any other step writes them too."""
    written = 0 if step.kind in _MULTIPLYING else step.padding_bytes
    return replace(
        step,
        activation_bytes=(step.activation_bytes or 0) - step.padding_bytes,
        output_bytes=(step.output_bytes or 0) - written,
        padding_bytes=0,
    )


def _merge(product: PlanStep, epilogue: PlanStep) -> PlanStep:
    """One step that computes both: what the epilogue reads of the product is neither written nor read."""
    read = (epilogue.activation_bytes or 0) - (epilogue.output_bytes or 0)
    between = min(read, product.output_bytes or 0)
    moved = (product.activation_bytes or 0) + (epilogue.activation_bytes or 0) - 2 * between
    return replace(
        product,
        weight_bytes=product.weight_bytes + epilogue.weight_bytes,
        activation_bytes=moved,
        output_bytes=(product.output_bytes or 0) - between + (epilogue.output_bytes or 0),
    )


def estimate_speed_up(int8: EngineWork, fp16: EngineWork, rates: MachineRates, batch: int) -> SpeedUp:
    """The range of the speed-up of an INT8 engine over the FP16 engine of the same network. Raises ValueError without steps."""
    if not int8.planned or not fp16.planned:
        raise ValueError("an engine without steps has no time")
    ranges = {**RANGES, "launch": rates.launch_us, "traffic": rates.traffic}
    if not rates.tensorrt:
        ranges["merged"] = (0.0, 0.0)
    corners = [Unknowns(**dict(zip(ranges, ends, strict=True))) for ends in itertools.product(*ranges.values())]
    ratios = [
        sum(engine_times(fp16, rates, corner, batch).values()) / sum(engine_times(int8, rates, corner, batch).values())
        for corner in corners
    ]
    middle = Unknowns(**{name: (low + high) / 2 for name, (low, high) in ranges.items()})
    times = engine_times(int8, rates, middle, batch)
    return SpeedUp(batch, min(ratios), max(ratios), max(times, key=lambda limit: times[limit]))


def engine_times(engine: EngineWork, rates: MachineRates, unknowns: Unknowns, batch: int) -> dict[Limit, float]:
    """Microseconds of one inference of `batch` images, by what limits each step; their sum is its time."""
    written, merged = (_times(works, rates, unknowns, batch) for works in engine.for_machine(rates))
    return {limit: (1 - unknowns.merged) * written[limit] + unknowns.merged * merged[limit] for limit in written}


def _times(works: Iterable[StepWork], rates: MachineRates, unknowns: Unknowns, batch: int) -> dict[Limit, float]:
    times: dict[Limit, float] = {"launches": 0.0, "bytes": 0.0, "products": 0.0}
    per_byte = 1 / (1e3 * rates.bandwidth_gbs * unknowns.bandwidth)
    per_int8_mac = 2 / (1e6 * rates.int8_tops * unknowns.efficiency * unknowns.int8)
    per_float_mac = 2 / (1e6 * rates.fp16_tops * unknowns.efficiency)
    for work in works:
        moved = per_byte * (work.weight_bytes + batch * work.activation_bytes * unknowns.traffic)
        computed = batch * (per_int8_mac * work.int8_macs + per_float_mac * work.float_macs)
        times["launches"] += unknowns.launch
        times["products" if computed > moved else "bytes"] += max(moved, computed)
    return times
