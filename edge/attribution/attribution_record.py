"""`attribution.json`: where a build drifts from its FP32 reference. Read without onnx.

SQNRs are in dB within [-300, 300]: 300 for no difference at all, -300 for NaN or infinity on the judged side. Shares lie in
[0, 1].
"""

from dataclasses import dataclass
from typing import Literal

from calib.artifact import json_artifact
from engines.build_folder.file_names import ATTRIBUTION

Kind = Literal[
    "input",  # the two sides got different images: nothing in the graph is at fault
    "float_graph",  # the float graph that the build was made from does not compute what the reference computes
    "other_weights",  # most layers hold weights of another network
    "structure",  # the judged graph is wired differently
    "overflow",  # values beyond FP16, or NaN
    "runtime",  # the runtime computes something else than the graph as it is written
    "calibration",  # clipping spread over many activations
    "scale_too_large",  # of one quantized activation: rounding
    "scale_too_small",  # of one quantized activation: clipping
    "zeroed_channel",  # an output channel whose weights are all 0
    "weights",  # the weights of one layer
    "constants",  # a layer's bias, or the norm before it
    "outlier",  # a layer with a far larger error than others of its kind, for a reason that none of the above names
]
"""What is wrong; the rules are those of `edge.attribution.diagnosis`."""


@dataclass(frozen=True)
class GraphFile:
    """A graph by file name and digest."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Stage:
    """One graph of the flow from the reference to what is judged: SQNR of its logits against the reference, same images."""

    graph: GraphFile
    logits_db: float


@dataclass(frozen=True)
class InputDrift:
    """The input of each side.

    Attributes:
        sqnr_db: judged against reference.
        max_abs: largest difference, in units of the deviation that pixels are divided by.
        explanation: how one follows from the other, in words; empty where they are the same.
    """

    sqnr_db: float
    max_abs: float
    explanation: str


@dataclass(frozen=True)
class FloatDrift:
    """The float graph that errors are measured against, itself against the reference.

    Attributes:
        logits_db: SQNR of its logits.
        worst_db, worst_layer: smallest SQNR at the end of a span, after undoing a power of two, and where.
        first_layer: the first that differs by more than FP32's own roundings; empty where none does.
        scaled: ends of spans that differ by a power of two, which folding leaves.
    """

    logits_db: float
    worst_db: float
    worst_layer: str
    first_layer: str
    scaled: int


@dataclass(frozen=True)
class TapCheck:
    """Whether reading inner tensors changes the run.

    Attributes:
        outputs: extra outputs of the judged graph, one per tensor that is read.
        identical: whether its logits are the same to the last bit with and without them.
        sqnr_db: with them against without.
        as_run_db: the run that was read against the run that is judged; below 300 where the runtime fuses nodes into integer
            kernels of its own and the former computes node by node.
    """

    outputs: int
    identical: bool
    sqnr_db: float
    as_run_db: float


@dataclass(frozen=True)
class LayerDrift:
    """One layer span: a layer that multiplies with the norm before it, a sum of two activations, or the graph's output.

    Attributes:
        name, op_type: of its node.
        output: the tensor in which it ends, the same in both graphs.
        precision: that the graph asks for, see `engines.layer_records.Layer.requested`; "" for nodes that do not multiply.
        macs: multiply-accumulates for one image; 0 for nodes that do not multiply.
        accumulated_db: SQNR of the judged run at its end.
        inherited_db: of the float layer's output on the judged run's tensors.
        introduced_db: of the judged layer's output on the float network's tensors; its parts:
        weights_db: constants alone: weights, bias, norm.
        activation_db: all that happens to activations: Q/DQ and FP16.
        rounding_db, clipping_db: of the Q/DQ; 300 where there is none.
        fp16_db: roundings to FP16 and what overflows; 300 in a graph that is not typed.
        weight_sqnr_db, weight_expected_db: of the weights themselves, as stored and as their format rounds; None for a layer
            without constant weights.
        worst_channel, worst_channel_db: output channel whose weights are furthest from that.
        not_finite: values of the judged run, in this layer, that are NaN or infinite.
        isolated_db: SQNR of the float network's logits with this layer's group alone as judged; None where not measured.
        logits_share: the group's share of the noise that all groups cause in the logits; None likewise.
    """

    name: str
    op_type: str
    output: str
    precision: str
    macs: int
    accumulated_db: float
    inherited_db: float
    introduced_db: float
    weights_db: float
    activation_db: float
    rounding_db: float
    clipping_db: float
    fp16_db: float
    weight_sqnr_db: float | None
    weight_expected_db: float | None
    worst_channel: int | None
    worst_channel_db: float | None
    not_finite: int
    isolated_db: float | None
    logits_share: float | None


@dataclass(frozen=True)
class ActivationDrift:
    """One quantized activation.

    Attributes:
        readers: the layers that multiply with it.
        scale: in the judged graph.
        excess_db: noise of its Q/DQ over that of the best scale among scale x 2^(k/2), |k| <= 4.
        best_factor: that scale over the one in the graph.
        clipping_share: share of the noise that clipping causes.
        clipped: share of the values beyond the range.
        range_used: largest magnitude over the largest that the scale represents.
    """

    tensor: str
    readers: tuple[str, ...]
    scale: float
    excess_db: float
    best_factor: float
    clipping_share: float
    clipped: float
    range_used: float


@dataclass(frozen=True)
class DriftFinding:
    """One thing that is wrong.

    Attributes:
        where: layer, node or tensor; empty where it is not a single one.
        layers: the layers concerned.
        found: what was found, one phrase.
    """

    kind: Kind
    where: str
    layers: tuple[str, ...]
    found: str


@dataclass(frozen=True)
class FloatTrial:
    """One run of the judged graph with some layers in float.

    Attributes:
        layers: the nodes that multiply, in graph order.
        isolated_db: SQNR of the logits of the float network with these layers as judged; None for several groups.
        share: of the noise of all groups' isolated runs.
        before_db, after_db: SQNR of the judged graph's logits against the float network's, as judged and with the layers in
            float, the same images.
        gain_db: the difference.
        uncertainty_db: its standard error over the images.
        confirmed: the gain exceeds two standard errors.
    """

    layers: tuple[str, ...]
    isolated_db: float | None
    share: float
    before_db: float
    after_db: float
    gain_db: float
    uncertainty_db: float
    confirmed: bool


@dataclass(frozen=True)
class NotCompared:
    """A node that was left out, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Attribution:
    """`attribution.json`.

    Attributes:
        sentence: the result in words, the culprits by name or that there is none.
        culprits: what is wrong, the cause of other things first; empty where every error is what the layer's format explains.
        reference, base, judged: the FP32 reference; the float graph that the judged one was made from, which errors are
            measured against; the judged graph.
        images, trial_images: how many layers were measured on, and tried in float on.
        images_sha256, judged_images_sha256: digests of the input arrays of either side, trials included.
        logits_db: SQNR of the judged logits against the reference's.
        answers_changed: images whose answer differs.
        input, float_graph, taps: checks around the layers.
        stages: the graphs of the build, in order.
        layers, activations: in graph order.
        costliest: what leaving the costliest groups in float gains, each by itself, then all of them.
        float_form: what "in float" meant there.
        not_compared: nodes left out.
    """

    sentence: str
    culprits: tuple[DriftFinding, ...]
    reference: GraphFile
    base: GraphFile
    judged: GraphFile
    ran_on: str
    images: int
    trial_images: int
    images_sha256: str
    judged_images_sha256: str
    logits_db: float
    answers_changed: int
    input: InputDrift
    float_graph: FloatDrift
    taps: TapCheck
    stages: tuple[Stage, ...]
    layers: tuple[LayerDrift, ...]
    activations: tuple[ActivationDrift, ...]
    costliest: tuple[FloatTrial, ...]
    float_form: str
    not_compared: tuple[NotCompared, ...]


ATTRIBUTION_ARTIFACT = json_artifact(ATTRIBUTION, Attribution, remake="ufovit drift BUILD --attribute")
