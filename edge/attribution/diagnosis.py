"""What is wrong, if anything: documented rules on the measured errors, each with a threshold that honest builds keep away from.

    input            the arrays differ by more than PREPROCESS_ABS
    float_graph      an end of a unit, or the logits, differ from the reference's by more than EXPORT_SQNR_DB allows
    structure        a unit is made from other tensors
    overflow         a number of the judged run is NaN or infinite: the first node in graph order
    weights          behind the layer, constants alone make WEIGHTS_DB (REFINED_DB where refinement rounded them) more noise
                     than the weights' format does, and at least half of the layer's. `other_weights` when the weights
                     themselves are so far off in half of the layers
    scale            a Q/DQ makes SCALE_DB more noise than the best scale would, on top of what is usual among its peers, and
                     that part of the noise is at least half of what a layer that reads it introduces; it is too small only
                     where values reach RANGE_USED of its range: one value just beyond is no fault
    calibration      clipping makes more noise than rounding in SPREAD_SHARE of the activations, SPREAD_COUNT at least: it is
                     then named once, not for each of them
    outlier          a layer introduces OUTLIER_DB, and OUTLIER_SIGMAS, more than the median of its peers, or errs by more than
                     ABSOLUTE_DB whatever they do

Peers are the layers of one precision whose names differ in their first number only: blocks.0.ffn.2 and blocks.7.ffn.2.
Deviations are 1.4826 times the median absolute deviation, so that a faulty layer does not hide itself. Fewer than PEERS say
nothing.

Measured on the shipped network, INT8 and FP16, three draws of 32 images: weights at most 0.2 dB beyond their format; scales at
most 1.3 dB off the best one, 5.9 dB when doubled; introduced errors at most 12.3 dB off, where one image is clipped and peers
differ. Clipping outweighs rounding in 0 to 3 of 261 activations after 512 calibration images, in 2 after 128, in 3 after 16, in
3 to 6 after 8, in 8 to 20 after 4, in 34 or 35 after 2; where few are, one is up to 10 dB off. Refined (`--effort balanced`):
weights at most 20.5 dB beyond their format, scales at most 2.8 dB off the best one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from edge.attribution.attribution_record import ActivationDrift, Culprit, FloatDrift, InputDrift, Kind, LayerDrift, TapCheck
from edge.attribution.weight_errors import WeightError
from edge.numeric_tolerances import EXPORT_SQNR_DB, SQNR_CAP_DB

WEIGHTS_DB = 10.0
REFINED_DB = 25.0
"""WEIGHTS_DB of a layer whose weights were rounded to second order: they make up for earlier layers, and err on their own."""
FP32_DB = 110.0
"""Two FP32 kernels of one layer agree better than this; nothing is expected to be more exact."""
FP16_DB = 71.0
"""What constants rounded to FP16 leave."""
SCALE_DB = 3.5
RANGE_USED = 1.5
SPREAD_SHARE = 0.02
SPREAD_COUNT = 6
OUTLIER_DB = 12.0
OUTLIER_SIGMAS = 5.0
ABSOLUTE_DB = 20.0
PEERS = 5
RUNTIME_DB = 3.0
"""A runtime's integer kernels round otherwise than the graph says; that has to stay this far below the drift itself."""
_HALF_DB = 3.0
TOP = 5
_LISTED = 3


@dataclass(frozen=True)
class NotFinite:
    """Where NaN or infinity is first seen: node, the layer it belongs to, how many numbers."""

    node: str
    layer: str
    count: int


@dataclass(frozen=True)
class Evidence:
    """All that the rules look at.

    Attributes:
        typed: whether the judged graph is a typed FP16 one.
        logits_db: of the judged graph.
        not_finite: in graph order.
        rewired: layer -> what it reads instead.
        weights: layer -> its weights' error.
        refined: layers whose weights were rounded to second order.
    """

    typed: bool
    logits_db: float
    input: InputDrift
    float_graph: FloatDrift
    taps: TapCheck
    layers: tuple[LayerDrift, ...]
    activations: tuple[ActivationDrift, ...]
    not_finite: tuple[NotFinite, ...]
    rewired: Mapping[str, str]
    weights: Mapping[str, WeightError]
    refined: frozenset[str] = frozenset()


def find_culprits(evidence: Evidence) -> tuple[Culprit, ...]:
    """What is wrong, causes before what follows from them."""
    found = [*_surroundings(evidence)]
    weights = list(_weights(evidence))
    found += weights
    if any(culprit.kind == "other_weights" for culprit in weights):
        return tuple(found)
    scales = list(_scales(evidence))
    found += scales
    named = {layer for culprit in found for layer in culprit.layers}
    return (*found, *(c for c in _outliers(evidence, scales) if c.where not in named))


def _surroundings(evidence: Evidence) -> Iterator[Culprit]:
    drift, base, taps = evidence.input, evidence.float_graph, evidence.taps
    if drift.explanation:
        yield Culprit("input", "", (), f"the input itself differs ({drift.sqnr_db:.1f} dB): {drift.explanation}")
    if base.first_layer or base.logits_db < EXPORT_SQNR_DB:
        text = f"the float graph that the build was made from is not the reference's: {base.logits_db:.1f} dB at the logits"
        yield Culprit("float_graph", base.first_layer, (), f"{text}, different from {base.first_layer or 'the end'} on")
    for layer, reads in evidence.rewired.items():
        yield Culprit("structure", layer, (layer,), f"{layer} {reads}")
    if evidence.not_finite:
        first = evidence.not_finite[0]
        layers = tuple(dict.fromkeys(place.layer for place in evidence.not_finite))
        limit = "beyond FP16's 65504, or NaN" if evidence.typed else "infinite or NaN"
        yield Culprit("overflow", first.node, layers, f"{first.count} numbers of {first.node} are {limit}")
    if taps.as_run_db < evidence.logits_db - RUNTIME_DB:
        text = f"the runtime computes other logits than the graph says ({taps.as_run_db:.1f} dB)"
        yield Culprit("runtime", "", (), f"{text}: its integer kernels are at fault, not a layer")


def _weights(evidence: Evidence) -> Iterator[Culprit]:
    ceiling = FP16_DB if evidence.typed else FP32_DB
    off = []
    for layer in evidence.layers:
        error = evidence.weights.get(layer.name)
        expected = min(FP32_DB, error.expected_db) if error else ceiling
        if layer.weights_db < expected - _margin(evidence, layer) or (error and error.zeroed):
            off.append(layer)
    other = [layer for layer in evidence.layers if (e := evidence.weights.get(layer.name)) and e.excess_db > WEIGHTS_DB]
    if len(other) > 1 and 2 * len(other) >= len(evidence.weights):
        text = f"{len(other)} of {len(evidence.weights)} layers hold other weights than the reference, from {other[0].name} on"
        yield Culprit("other_weights", other[0].name, tuple(layer.name for layer in other), f"other weights: {text}")
        return
    for layer in off:
        error = evidence.weights.get(layer.name)
        if error and error.zeroed:
            channels = ", ".join(map(str, error.zeroed[:_LISTED])) + (" ..." if len(error.zeroed) > _LISTED else "")
            plural = "s" * (len(error.zeroed) > 1)
            text = f"output channel{plural} {channels} of {layer.name}: all weights are 0"
            yield Culprit("zeroed_channel", layer.name, (layer.name,), text)
        elif layer.weights_db > layer.introduced_db + _HALF_DB:
            continue  # below the layer's other noise
        elif error and error.excess_db > _margin(evidence, layer):
            text = f"the weights of {layer.name} are {error.sqnr_db:.1f} dB off, {error.expected_db:.1f} dB expected"
            yield Culprit("weights", layer.name, (layer.name,), f"{text}, channel {error.channel} above all")
        else:
            text = (
                f"constants of {layer.name}, its bias or what stands in front of it, make an error of {layer.weights_db:.1f} dB"
            )
            yield Culprit("constants", layer.name, (layer.name,), text)


def _margin(evidence: Evidence, layer: LayerDrift) -> float:
    return REFINED_DB if layer.name in evidence.refined else WEIGHTS_DB


def _scales(evidence: Evidence) -> Iterator[Culprit]:
    activations = evidence.activations
    clipped = [a for a in activations if a.clipping_share > 0.5]
    spread = len(clipped) >= max(SPREAD_COUNT, SPREAD_SHARE * len(activations))
    if spread:
        text = f"clipping outweighs rounding in {len(clipped)} of {len(activations)} activations"
        concerned = tuple(dict.fromkeys(reader for a in clipped for reader in a.readers))
        why = "calibrated on too few images, on others than these, or by a method that clips"
        yield Culprit("calibration", "", concerned, f"{text}: {why}")
    usual = _medians({a.tensor: (_role(a.tensor), a.excess_db) for a in activations})
    layers = {layer.name: layer for layer in evidence.layers}
    for activation in activations:
        small = activation.best_factor > 1
        readers = [layers[name] for name in activation.readers if name in layers]
        shows = any((r.clipping_db if small else r.rounding_db) <= r.introduced_db + _HALF_DB for r in readers)
        if activation.excess_db < SCALE_DB + usual[activation.tensor] or not shows:
            continue
        if small and (spread or activation.range_used < RANGE_USED):
            continue
        text = (
            f"the scale of {activation.tensor} is about {_times(activation.best_factor)} too {'small' if small else 'large'}: "
            f"its {'clipping' if small else 'rounding'} makes {activation.excess_db:.1f} dB more noise than it need"
        )
        kind: Kind = "scale_too_small" if small else "scale_too_large"
        yield Culprit(kind, activation.tensor, activation.readers, f"{text}, in {', '.join(activation.readers[:_LISTED])}")


def _times(factor: float) -> str:
    return f"{max(factor, 1 / factor):.2g} times"


def _outliers(evidence: Evidence, scales: list[Culprit]) -> Iterator[Culprit]:
    spread = any(culprit.kind == "calibration" for culprit in scales)
    peers: dict[str, list[float]] = {}
    for layer in evidence.layers:
        peers.setdefault(_key(layer), []).append(layer.introduced_db)
    for layer in evidence.layers:
        values = peers[_key(layer)]
        middle = median(values)
        deviation = 1.4826 * median(abs(value - middle) for value in values)
        far = middle - max(OUTLIER_DB, OUTLIER_SIGMAS * deviation)
        low = max(ABSOLUTE_DB, far if len(values) >= PEERS else ABSOLUTE_DB)
        part, found = min(
            (
                ("rounding", layer.rounding_db),
                ("clipping", layer.clipping_db),
                ("FP16", layer.fp16_db),
                ("constants", layer.weights_db),
            ),
            key=lambda pair: pair[1],
        )
        if layer.introduced_db < low and not (spread and part == "clipping"):
            usual = (
                f"its {len(values)} peers {middle:.1f} dB"
                if len(values) >= PEERS
                else f"{ABSOLUTE_DB:g} dB is the least expected"
            )
            text = f"{layer.name} introduces an error of {layer.introduced_db:.1f} dB ({usual}), by its {part} ({found:.1f} dB)"
            error = evidence.weights.get(layer.name)
            by_weights = part == "constants" and error is not None and error.excess_db > WEIGHTS_DB
            yield Culprit("weights" if by_weights else "outlier", layer.name, (layer.name,), text)


def _key(layer: LayerDrift) -> str:
    return f"{_role(layer.name)} {layer.precision}"


def _role(name: str) -> str:
    """The name with its first number taken out."""
    return re.sub(r"\d+", "*", name, count=1)


def _medians(values: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    """Median among the peers of each entry, or among all where there are too few."""
    if not values:
        return {}
    everyone = median(value for _role_name, value in values.values())
    by_role: dict[str, list[float]] = {}
    for role, value in values.values():
        by_role.setdefault(role, []).append(value)
    return {name: median(by_role[role]) if len(by_role[role]) >= PEERS else everyone for name, (role, _v) in values.items()}


def sentence(culprits: tuple[Culprit, ...], logits_db: float, shares: Mapping[tuple[str, ...], float]) -> str:
    """The result for a person.

    Args:
        culprits: of `find_culprits`.
        logits_db: of the judged graph against the reference.
        shares: layers of a group -> its share of the noise of the logits, costliest first.
    """
    if culprits:
        more = f" (and {len(culprits) - _LISTED} more)" if len(culprits) > _LISTED else ""
        return "; ".join(culprit.found for culprit in culprits[:_LISTED]) + more + "."
    if logits_db >= SQNR_CAP_DB:
        return "No difference: the judged graph gives the reference's logits to the last bit."
    text = f"No layer is at fault: each errs as its format makes it err, {logits_db:.1f} dB at the logits"
    if not shares:
        return f"{text}."
    top = list(shares.items())[:TOP]
    together = sum(share for _group, share in top)
    names = ", ".join(f"{group[0]} {share:.0%}" for group, share in top[:_LISTED])
    if together <= 2 * TOP / len(shares):
        return f"{text}, spread evenly over {len(shares)} groups of layers, at most {top[0][1]:.0%} each."
    return f"{text}; {len(top)} of {len(shares)} groups of layers make {together:.0%} of that noise: {names} ..."
