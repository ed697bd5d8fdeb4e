"""No false alarm and no missed one: the verdict on a network against what emulated FP16 makes of its logits.

The oracle is the emulation of the whole network (`engines.fp16_emulation`), which knows nothing of certificates.
"""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import text_model

from edge.stability.certify import CertifyConfig, certify_graph
from edge.stability.fp16_network import compare_logits, emulated_agreement, kept_nodes
from edge.stability.network_certification import certify_network

pytestmark = pytest.mark.slow

EXPONENTS = range(-18, 16, 3)


def scaled(graph, layer, exponent):
    """Weights and biases of every `layer` times 2^exponent: the same function, while no eps is felt."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    for tensor in model.graph.initializer:
        if f".attn.{layer}/" in tensor.name or tensor.name.endswith(f".attn.{layer}.bias"):
            values = numpy_helper.to_array(tensor) * np.float32(2.0**exponent)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.fixture(scope="module")
def outcomes(tiny_graph, tiny_images):
    """(layer, exponent) -> verdict before, verdict after, agreement of FP16 before, after the repair."""
    found = {}
    for layer in ("q", "k", "v"):
        for exponent in EXPONENTS:
            model = scaled(tiny_graph, layer, exponent)
            done = certify_graph(model, [tiny_images], data_sha256="", config=CertifyConfig(("fp16",)))
            before = emulated_agreement(model, model, tiny_images)
            kept = kept_nodes(done.model, done.certificate)
            after = emulated_agreement(model, done.model, tiny_images, keep_fp32=kept)
            found[layer, exponent] = (done.certificate.verdict_before, done.certificate.verdict, before, after)
    return found


def loses(agreement):
    return agreement.not_finite > 0 or agreement.sqnr_db < 30


def test_every_verdict_occurs(outcomes):
    assert {before for before, *_ in outcomes.values()} == {"stable", "at risk", "unstable"}
    assert sum(loses(before) for *_, before, _ in outcomes.values()) >= 10, "FP16 really loses these networks"


def test_what_is_called_unstable_loses(outcomes):
    alarms = {key: before for key, (verdict, _, before, _) in outcomes.items() if verdict == "unstable"}
    assert {key: str(before) for key, before in alarms.items() if not loses(before)} == {}


def test_what_is_called_stable_does_not_lose(outcomes):
    calm = {key: before for key, (verdict, _, before, _) in outcomes.items() if verdict == "stable"}
    assert {key: str(before) for key, before in calm.items() if before.sqnr_db < 55} == {}


def test_the_repair_loses_nothing(outcomes):
    """Where an eps is felt in FP32 already, no folding is exact, and the site stays as it is or becomes an island."""
    repaired = {key: after for key, (_, verdict, _, after) in outcomes.items() if verdict == "stable"}
    assert len(repaired) >= 30
    assert {key: str(after) for key, after in repaired.items() if after.sqnr_db < 55} == {}


def test_the_comparison_notices():
    """Negative control: doubled, shuffled and NaN logits do not agree."""
    logits = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    assert not loses(compare_logits(logits, logits + np.float32(1e-4)))
    assert loses(compare_logits(logits, 2 * logits))
    assert loses(compare_logits(logits, logits[::-1]))
    spoiled = logits.copy()
    spoiled[3, 0] = np.nan
    found = compare_logits(logits, spoiled)
    assert loses(found)
    assert (found.not_finite, found.agreement) == (1, 0.95)


ONE_OPERATOR = "n = ReduceL2<keepdims=1>(a, last)"
IN_PIECES = "s = Mul(a, a) t = ReduceSum<keepdims=1>(s, last) n = Sqrt(t)"


@pytest.mark.parametrize(
    ("norm", "backend", "scale", "verdict"),
    [
        (ONE_OPERATOR, "trt_rtx", 300.0, False),  # sums of squares beyond FP16, which this target keeps in FP32
        (ONE_OPERATOR, None, 300.0, True),
        (IN_PIECES, "trt_rtx", 300.0, True),  # stored squares
        (ONE_OPERATOR, "trt_rtx", 1e5, True),  # the vectors themselves
    ],
)
def test_an_xnorm_is_unstable_only_where_its_target_loses_it(norm, backend, scale, verdict):
    model = text_model(f"a = Mul(x, scale) {norm} y = Div(a, n)", scale=np.float32(scale), last=np.array([-1]))
    x = np.random.default_rng(2).uniform(0.5, 1, (8, 5, 8)).astype(np.float32)
    config = CertifyConfig(("fp16",), backend=backend, repair=False)
    done = certify_network(model, lambda: [x], interval=(np.zeros(1), np.ones(1)), data_sha256="", config=config)
    emulated = done.certificate.emulated.before
    assert [site.kind for site in done.certificate.sites if site.kind == "xnorm"], "it is an XNorm"
    assert (done.certificate.verdict == "unstable") == verdict
    assert (emulated.sqnr_db is None or emulated.sqnr_db < 20) == verdict, f"{emulated}"
