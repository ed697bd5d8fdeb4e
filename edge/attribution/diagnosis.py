"""What is wrong, if anything: documented rules on the measured errors, each with a threshold far from what correct builds show.

    input            the arrays differ by more than PREPROCESS_ABS
    float_graph      the end of a span, or the logits, differ from the reference's by more than EXPORT_SQNR_DB allows
    structure        a span is computed from other tensors
    overflow         a value of the judged run is NaN or infinite: the first node in graph order
    weights          at the output of the layer, constants alone cause WEIGHTS_DB (REFINED_DB where refinement rounded them)
                     more noise than the weights' format does, and at least half of the layer's. `other_weights` when the
                     weights themselves are so far off in half of the layers
    scale            a Q/DQ causes SCALE_DB more noise than the best scale would, on top of what is usual among its peers, and
                     that part of the noise is at least half of what a layer that reads it introduces; a scale counts as too
                     small only where values reach RANGE_USED of its range, not for one value just beyond it
    calibration      clipping causes more noise than rounding in SPREAD_SHARE of the activations, SPREAD_COUNT at least: it is
                     then reported once, not for each of them
    outlier          a layer introduces OUTLIER_DB, and OUTLIER_SIGMAS, more than the median of its peers, or more than
                     ABSOLUTE_DB whatever its peers introduce

Peers are the layers of one precision whose names differ in their first number only: blocks.0.ffn.2 and blocks.7.ffn.2.
Deviations are 1.4826 times the median absolute deviation, so that a faulty layer does not hide itself. Fewer than PEERS layers
are not compared with each other.

Measured on the shipped network, INT8 and FP16, three draws of 32 images: weights at most 0.2 dB beyond their format; scales at
most 1.3 dB off the best one, 5.9 dB when doubled; introduced errors at most 12.3 dB off, where one image is clipped and peers
differ. Clipping outweighs rounding in 0 to 3 of 261 activations after 512 calibration images, in 2 after 128, in 3 after 16, in
3 to 6 after 8, in 8 to 20 after 4, in 34 or 35 after 2; with few images one is up to 10 dB off. Refined (`--effort balanced`):
weights at most 20.5 dB beyond their format, scales at most 2.8 dB off the best one.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from edge.attribution.attribution_record import (
    ActivationDrift,
    DriftFinding,
    FloatDrift,
    InputDrift,
    Kind,
    LayerDrift,
    TapCheck,
)
from edge.attribution.weight_errors import WeightError
from edge.numeric_tolerances import EXPORT_SQNR_DB, SQNR_CAP_DB

WEIGHTS_DB = 10.0
REFINED_DB = 25.0
"""WEIGHTS_DB of a layer whose weights a second-order method rounded: they compensate earlier layers at their own expense."""
FP32_DB = 110.0
"""Two FP32 kernels of one layer agree better than this; no layer is expected to be more exact."""
FP16_DB = 71.0
"""SQNR of a layer with constants rounded to FP16."""
SCALE_DB = 3.5
RANGE_USED = 1.5
SPREAD_SHARE = 0.02
SPREAD_COUNT = 6
OUTLIER_DB = 12.0
OUTLIER_SIGMAS = 5.0
ABSOLUTE_DB = 20.0
PEERS = 5
RUNTIME_DB = 3.0
"""A runtime's integer kernels round differently from the graph; that has to stay this far below the drift itself."""
_HALF_DB = 3.0
TOP = 5
_LISTED = 3


@dataclass(frozen=True)
class NotFinite:
    """Where NaN or infinity occurs: node, the layer it belongs to, how many values."""

    node: str
    layer: str
    count: int


@dataclass(frozen=True)
class DriftEvidence:
    """Everything that the rules use.

    Attributes:
        typed: whether the judged graph is a typed FP16 one.
        logits_db: of the judged graph.
        not_finite: in graph order.
        rewired: layer -> what it reads instead.
        weights: layer -> its weights' error.
        refined: layers whose weights a second-order method rounded.
        outputs: what the network's outputs are called, "logits" of a network that classifies.
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
    outputs: str = "logits"


def diagnose(evidence: DriftEvidence) -> tuple[DriftFinding, ...]:
    """What is wrong, causes before what follows from them."""
    weights = tuple(_weights(evidence))
    findings = (*_surroundings(evidence), *weights)
    if any(finding.kind == "other_weights" for finding in weights):
        return findings
    scales = tuple(_scales(evidence))
    findings = (*findings, *scales)
    named = {layer for finding in findings for layer in finding.layers}
    return (*findings, *(finding for finding in _outliers(evidence, scales) if finding.where not in named))


def _surroundings(evidence: DriftEvidence) -> Iterator[DriftFinding]:
    drift, base, taps = evidence.input, evidence.float_graph, evidence.taps
    if drift.explanation:
        yield DriftFinding("input", "", (), f"the input itself differs ({drift.sqnr_db:.1f} dB): {drift.explanation}")
    if base.first_layer or base.logits_db < EXPORT_SQNR_DB:
        place = f"{base.logits_db:.1f} dB at the {evidence.outputs}"
        text = f"the float graph that the build was made from is not the reference's: {place}"
        yield DriftFinding("float_graph", base.first_layer, (), f"{text}, different from {base.first_layer or 'the end'} on")
    for layer, reads in evidence.rewired.items():
        yield DriftFinding("structure", layer, (layer,), f"{layer} {reads}")
    if evidence.not_finite:
        first = evidence.not_finite[0]
        layers = tuple(dict.fromkeys(place.layer for place in evidence.not_finite))
        limit = "beyond FP16's 65504, or NaN" if evidence.typed else "infinite or NaN"
        yield DriftFinding("overflow", first.node, layers, f"{first.count} values of {first.node} are {limit}")
    if taps.as_run_db < evidence.logits_db - RUNTIME_DB:
        text = f"the runtime's {evidence.outputs} differ from those of the graph as it is written ({taps.as_run_db:.1f} dB)"
        yield DriftFinding("runtime", "", (), f"{text}: its integer kernels are at fault, not a layer")


def _weights(evidence: DriftEvidence) -> Iterator[DriftFinding]:
    ceiling = FP16_DB if evidence.typed else FP32_DB
    other = [layer for layer in evidence.layers if (e := evidence.weights.get(layer.name)) and e.excess_db > WEIGHTS_DB]
    if len(other) > 1 and 2 * len(other) >= len(evidence.weights):
        text = f"{len(other)} of {len(evidence.weights)} layers hold other weights than the reference, from {other[0].name} on"
        yield DriftFinding("other_weights", other[0].name, tuple(layer.name for layer in other), f"other weights: {text}")
        return
    for layer in evidence.layers:
        error = evidence.weights.get(layer.name)
        margin = REFINED_DB if layer.name in evidence.refined else WEIGHTS_DB
        expected = min(FP32_DB, error.expected_db) if error else ceiling
        if error and error.zeroed:
            channels = ", ".join(map(str, error.zeroed[:_LISTED])) + (" ..." if len(error.zeroed) > _LISTED else "")
            plural = "s" * (len(error.zeroed) > 1)
            text = f"output channel{plural} {channels} of {layer.name}: all weights are 0"
            yield DriftFinding("zeroed_channel", layer.name, (layer.name,), text)
        elif layer.weights_db >= expected - margin or layer.weights_db > layer.introduced_db + _HALF_DB:
            continue  # as good as the format allows, or below the layer's other noise
        elif error and error.excess_db > margin:
            text = f"the weights of {layer.name} are {error.sqnr_db:.1f} dB off, {error.expected_db:.1f} dB expected"
            yield DriftFinding("weights", layer.name, (layer.name,), f"{text}, channel {error.channel} above all")
        else:
            text = f"constants of {layer.name}, its bias or the norm before it, cause an error of {layer.weights_db:.1f} dB"
            yield DriftFinding("constants", layer.name, (layer.name,), text)


def _scales(evidence: DriftEvidence) -> Iterator[DriftFinding]:
    activations = evidence.activations
    clipped = [a for a in activations if a.clipping_share > 0.5]
    spread = len(clipped) >= max(SPREAD_COUNT, SPREAD_SHARE * len(activations))
    if spread:
        text = f"clipping outweighs rounding in {len(clipped)} of {len(activations)} activations"
        affected = tuple(dict.fromkeys(reader for a in clipped for reader in a.readers))
        why = "calibrated on too few images, on others than these, or by a method that clips"
        yield DriftFinding("calibration", "", affected, f"{text}: {why}")
    peers = _grouped((_role(a.tensor), a.excess_db) for a in activations)
    layers = {layer.name: layer for layer in evidence.layers}
    for activation in activations:
        small = activation.best_factor > 1
        readers = [layers[name] for name in activation.readers if name in layers]
        shows = any((r.clipping_db if small else r.rounding_db) <= r.introduced_db + _HALF_DB for r in readers)
        values = peers[_role(activation.tensor)]
        usual = median(values if len(values) >= PEERS else [a.excess_db for a in activations])
        if activation.excess_db < SCALE_DB + usual or not shows:
            continue
        if small and (spread or activation.range_used < RANGE_USED):
            continue
        times = max(activation.best_factor, 1 / activation.best_factor)
        text = (
            f"the scale of {activation.tensor} is about {times:.2g} times too {'small' if small else 'large'}: "
            f"its {'clipping' if small else 'rounding'} causes {activation.excess_db:.1f} dB more noise than necessary"
        )
        kind: Kind = "scale_too_small" if small else "scale_too_large"
        yield DriftFinding(kind, activation.tensor, activation.readers, f"{text}, in {', '.join(activation.readers[:_LISTED])}")


def _outliers(evidence: DriftEvidence, scales: tuple[DriftFinding, ...]) -> Iterator[DriftFinding]:
    spread = any(finding.kind == "calibration" for finding in scales)
    peers = _grouped((_key(layer), layer.introduced_db) for layer in evidence.layers)
    for layer in evidence.layers:
        values, low, usual = peers[_key(layer)], ABSOLUTE_DB, f"{ABSOLUTE_DB:g} dB is the least expected"
        if len(values) >= PEERS:
            middle = median(values)
            deviation = 1.4826 * median(abs(value - middle) for value in values)
            low = max(low, middle - max(OUTLIER_DB, OUTLIER_SIGMAS * deviation))
            usual = f"its {len(values)} peers {middle:.1f} dB"
        parts = {
            "rounding": layer.rounding_db, "clipping": layer.clipping_db, "FP16": layer.fp16_db, "constants": layer.weights_db,
        }  # fmt: skip
        part = min(parts, key=parts.__getitem__)
        if layer.introduced_db < low and not (spread and part == "clipping"):
            text = f"{layer.name} introduces an error of {layer.introduced_db:.1f} dB ({usual}), by its {part}"
            error = evidence.weights.get(layer.name)
            kind: Kind = "weights" if part == "constants" and error and error.excess_db > WEIGHTS_DB else "outlier"
            yield DriftFinding(kind, layer.name, (layer.name,), f"{text} ({parts[part]:.1f} dB)")


def _key(layer: LayerDrift) -> str:
    return f"{_role(layer.name)} {layer.precision}"


def _role(name: str) -> str:
    """The name with its first number taken out."""
    return re.sub(r"\d+", "*", name, count=1)


def _grouped(values: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for key, value in values:
        groups.setdefault(key, []).append(value)
    return groups


def summarize(
    findings: tuple[DriftFinding, ...], logits_db: float, shares: Mapping[str, float], outputs: str = "logits"
) -> str:
    """The result as one sentence.

    Args:
        findings: of `diagnose`.
        logits_db: of the judged graph against the reference.
        shares: first layer of a group -> its share of the noise of the outputs, costliest first.
        outputs: what these are called.
    """
    if findings:
        more = f" (and {len(findings) - _LISTED} more)" if len(findings) > _LISTED else ""
        return "; ".join(finding.found for finding in findings[:_LISTED]) + more + "."
    if logits_db >= SQNR_CAP_DB:
        return f"No difference: the judged graph gives the reference's {outputs} to the last bit."
    text = f"No layer is at fault: each errs as its format makes it err, {logits_db:.1f} dB at the {outputs}"
    if not shares:
        return f"{text}."
    top = list(shares.items())[:TOP]
    together = sum(share for _layer, share in top)
    names = ", ".join(f"{layer} {share:.0%}" for layer, share in top[:_LISTED])
    if together <= 2 * TOP / len(shares):
        return f"{text}, spread evenly over {len(shares)} groups of layers, at most {top[0][1]:.0%} each."
    return f"{text}; {len(top)} of {len(shares)} groups of layers make {together:.0%} of that noise: {names} ..."
