"""Bounds on every tensor, operator by operator. Oracle: ONNX Runtime's own tensors on inputs that climb towards the bounds.

No observation may leave its interval, exceed a length or a probe. Controls: rules that are wrong on purpose are caught, and
where a bound can be reached it is.
"""

from dataclasses import replace

import numpy as np
import onnx.parser
import pytest
from bound_observations import exceeded
from onnx import TensorProto, helper, numpy_helper

from calib.ort_session import TappedGraph
from edge.stability.bounds import Bounds, bound_tensors, interval_propagation
from edge.stability.site import Probe

LOW, HIGH = -2.0, 3.0


def network(nodes, shape=(1, 6, 8, 8), **constants):
    """Nodes as ONNX text, "y = Conv <group = 2> (x, w); ..."; the input is "x", the output that of the last node."""
    made = [onnx.parser.parse_node(node) for node in nodes.split("; ")]
    for i, node in enumerate(made):
        node.name = f"{node.op_type}_{i}"
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(made[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng([seed, *shape]).normal(size=shape) * scale).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def attacks(model, target, seed=0, rounds=6):
    """Inputs: noise, corners of the interval, constants, next to nothing, and corners that climb towards `target`."""
    rng = np.random.default_rng(seed)
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)

    def corner():
        return np.where(rng.random(shape) < 0.5, LOW, HIGH)

    checkered = np.where(np.indices(shape).sum(axis=0) % 2, LOW, HIGH)
    images = [
        rng.uniform(LOW, HIGH, shape),
        np.full(shape, LOW),
        np.full(shape, HIGH),
        np.zeros(shape),
        checkered,
        rng.normal(size=shape) * 1e-4,
    ]
    run, best, reached = TappedGraph(model, (target,)), corner(), -np.inf
    for _ in range(rounds):
        flipped = [np.where(rng.random(shape) < share, LOW + HIGH - best, best) for share in (0.02, 0.1, 0.3)]
        for image in (best, corner(), *flipped):
            found = np.abs(run(image.astype(np.float32))[target]).max()
            if found > reached:
                best, reached = image, found
        images.append(best)
    return [image.astype(np.float32) for image in images]


NORM = "z = LayerNormalization <axis = -1> (x, g, b)"
TOKENS = (1, 7, 12)
LN = {"g": normal(12), "b": normal(12, seed=1)}
WEIGHTS = {
    "w": normal(12, 12, scale=0.3),
    "wk": normal(12, 12, seed=1, scale=0.3),
    "c": normal(12, seed=2),
    "heads": ints(1, 7, 3, 4),
    "whole": ints(1, 7, 12),
}
HEADS = (
    NORM + "; q0 = MatMul(z, w); q1 = Add(q0, c); q2 = Reshape(q1, heads); q = Transpose <perm = [0, 2, 1, 3]> (q2); "
    "k0 = MatMul(z, wk); k1 = Reshape(k0, heads); kt = Transpose <perm = [0, 2, 3, 1]> (k1); k = Transpose "
    "<perm = [0, 2, 1, 3]> (k1)"
)
ENDS = {
    "axis1": ints(1),
    "axis2": ints(2),
    "last": ints(-1),
    "two": np.float32(2),
    "eps": np.float32(1e-6),
    "half": np.float32(0.5),
}
MERGE = "o1 = Transpose <perm = [0, 2, 1, 3]> (o); o2 = Reshape(o1, whole); out = MatMul(o2, w)"

ACTIVATIONS = (
    *(
        "Relu",
        "Selu",
        "HardSwish",
        "HardSigmoid",
        "Sigmoid",
        "Tanh",
        "Erf",
        "Softplus",
        "Softsign",
        "Mish",
        "Gelu",
        "Floor",
        "Round",
    ),
    *("LeakyRelu alpha = 0.3", "LeakyRelu alpha = -0.5", "LeakyRelu alpha = 3.0", "Elu alpha = 2.0", "Celu alpha = 0.5"),
    'Gelu approximate = "tanh"',
)
CASES = {
    "conv": network(
        "y = Conv <pads = [1, 1, 1, 1]> (x, w, b)",
        w=normal(5, 6, 3, 3),
        b=normal(5),
    ),
    "conv, strided, dilated": network(
        "y = Conv <strides = [2, 2], dilations = [2, 2]> (x, w)",
        w=normal(5, 6, 3, 3),
    ),
    "depthwise conv": network(
        "y = Conv <pads = [1, 1, 0, 0], group = 6> (x, w, b)",
        w=normal(12, 1, 3, 3),
        b=normal(12),
    ),
    "conv 1 x 1": network(
        "y = Conv(x, w, b); u = Gelu(y); t = Conv(u, v)",
        w=normal(9, 6, 1, 1),
        b=normal(9),
        v=normal(4, 9, 1, 1),
    ),
    "conv, transposed": network(
        "y = ConvTranspose <strides = [2, 2], group = 2> (x, w, b)",
        w=normal(6, 4, 3, 3),
        b=normal(8),
    ),
    "convs of a norm over channels": network(
        "t = Transpose <perm = [0, 2, 3, 1]> (x); n = LayerNormalization <axis = -1> (t, g, b); z = Transpose "
        "<perm = [0, 3, 1, 2]> (n); y = Conv(z, w); u = Conv <pads = [1, 1, 1, 1]> (z, v); t2 = Conv(y, p)",
        g=normal(6),
        b=normal(6, seed=1),
        w=normal(9, 6, 1, 1),
        v=normal(4, 6, 3, 3),
        p=normal(3, 9, 1, 1),
    ),
    "batch norm": network(
        "y = BatchNormalization(x, s, b, m, v)",
        s=normal(6),
        b=normal(6, seed=1),
        m=normal(6, seed=2),
        v=np.abs(normal(6, seed=3)),
    ),
    "instance norm": network(
        "y = InstanceNormalization(x, s, b)",
        s=normal(6),
        b=normal(6, seed=1),
    ),
    "instance norm as groups": network(
        "r = Reshape(x, groups); i = InstanceNormalization(r, s, b); w = Reshape(i, whole); y = Mul(w, g)",
        groups=ints(1, 3, 128),
        whole=ints(1, 6, 8, 8),
        s=np.ones(3, np.float32),
        b=np.zeros(3, np.float32),
        g=normal(6, 1, 1),
    ),
    "feed-forward": network(
        NORM + "; h0 = MatMul(z, w); h1 = Add(h0, b1); h = Gelu(h1); y0 = MatMul(h, v); y1 = Add(y0, c); y = Add(x, y1)",
        TOKENS,
        **LN,
        w=normal(12, 48, scale=0.3),
        b1=normal(48),
        v=normal(48, 12, scale=0.1),
        c=normal(12),
    ),
    "feed-forward, silu in two": network(
        NORM + "; h0 = MatMul(z, w); s = Sigmoid(h0); h = Mul(s, h0); y = MatMul(h, v)",
        TOKENS,
        **LN,
        w=normal(12, 24),
        v=normal(24, 12),
    ),
    "gated feed-forward": network(
        NORM + "; h0 = MatMul(z, w); a, b2 = Split <axis = -1, num_outputs = 2> (h0); a1 = Gelu(a); h = Mul(a1, b2); y = "
        "MatMul(h, v)",
        TOKENS,
        **LN,
        w=normal(12, 24),
        v=normal(12, 12),
    ),
    "gemm": network(
        "f = Reshape(x, flat); z = LayerNormalization(f, g, b); y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (z, w, c)",
        TOKENS,
        flat=ints(7, 12),
        **LN,
        w=normal(5, 12),
        c=normal(5),
    ),
    "mixing of tokens": network(
        NORM + "; t = Transpose <perm = [0, 2, 1]> (z); y = MatMul(t, w); y2 = MatMul(p, x)",
        TOKENS,
        **LN,
        w=normal(7, 5),
        p=normal(1, 4, 7),
    ),
    "softmax attention": network(
        HEADS + "; l = MatMul(q, kt); l1 = Mul(l, half); p = Softmax(l1); o = MatMul(p, k)" + "; " + MERGE,
        TOKENS,
        **LN,
        **WEIGHTS,
        **ENDS,
    ),
    "attention over channels": network(
        HEADS + "; qt = Transpose <perm = [0, 1, 3, 2]> (q); qn = LpNormalization <axis = -1> (qt); kn = LpNormalization "
        "<axis = -2> (k); l = MatMul(qn, kn); p = Softmax(l); ot = MatMul(p, kt); o = Transpose <perm = [0, 1, 3, "
        "2]> (ot)" + "; " + MERGE,
        TOKENS,
        **LN,
        **WEIGHTS,
    ),
    "xnorm, columns": network(
        HEADS + "; n = ReduceL2(q, last); n1 = Clip(n, eps); u = Div(q, n1); kv = MatMul(kt, k); m = ReduceL2(kv, axis2); "
        "m1 = Max(m, eps); w1 = Div(kv, m1); w2 = Mul(w1, gamma); o = MatMul(u, w2)" + "; " + MERGE,
        TOKENS,
        **LN,
        **WEIGHTS,
        **ENDS,
        gamma=normal(1, 3, 1, 1),
    ),
    "xnorm, rows, gamma first": network(
        HEADS + "; qg = Mul(q, gamma); n = ReduceL2(q, last); u = Div(qg, n); kv = MatMul(kt, k); m = ReduceL2(kv, last); r "
        "= Div(gamma, m); w1 = Mul(kv, r); o = MatMul(u, w1)" + "; " + MERGE,
        TOKENS,
        **LN,
        **WEIGHTS,
        **ENDS,
        gamma=normal(1, 3, 1, 1),
    ),
    "layer norm in pieces": network(
        "m = ReduceMean(x, last); d = Sub(x, m); s = Pow(d, two); v = ReduceMean(s, last); v1 = Add(v, eps); r = "
        "Sqrt(v1); u = Div(d, r); z0 = Mul(u, g); z = Add(z0, b); y = MatMul(z, w)",
        TOKENS,
        **LN,
        **WEIGHTS,
        **ENDS,
    ),
    "rms norm in pieces": network(
        "s = Mul(x, x); v = ReduceMean(s, last); v1 = Add(v, eps); r0 = Sqrt(v1); r = Reciprocal(r0); u = Mul(x, "
        "r); z = Mul(g, u); y = MatMul(z, w)",
        TOKENS,
        **LN,
        **WEIGHTS,
        **ENDS,
    ),
    "response norm": network(
        "n = ReduceL2(x, places); m = ReduceMean(n, axis1); m1 = Add(m, eps); r = Div(n, m1); y0 = Mul(x, r); y1 "
        "= Mul(y0, g); y = Add(y1, x)",
        places=ints(2, 3),
        **ENDS,
        g=normal(6, 1, 1),
    ),
    "softmax in pieces": network(
        "m = ReduceMax(x, last); d = Sub(x, m); e = Exp(d); s = ReduceSum(e, last); p = Div(e, s); y = MatMul(p, w)",
        TOKENS,
        **WEIGHTS,
        **ENDS,
    ),
    "norm without its axis": network(
        "n = ReduceL2 <keepdims = 0> (x, last); n1 = Unsqueeze(n, last); n2 = Max(n1, eps); y = Div(x, n2)",
        TOKENS,
        **ENDS,
    ),
    "log softmax": network(
        "y = LogSoftmax(x)",
        TOKENS,
    ),
    "einsum": network(
        'y = Einsum <equation = "bic,bjc->bij"> (x, x)',
        TOKENS,
    ),
    "products of one tensor": network(
        "t = Transpose <perm = [0, 2, 1]> (x); y = MatMul(x, t); s = Mul(x, x); u = Mul(s, x)",
        TOKENS,
    ),
    "sums": network(
        "a = ReduceSum(x, last); b = ReduceMean(x, axis1); c = ReduceMax(x, last); d = ReduceMin(x, axis1); e = "
        "ReduceL1(x, last); f = ReduceSumSquare(x, axis1); y = Sum(a, c, e)",
        TOKENS,
        **ENDS,
    ),
    "pooling": network(
        "a = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x); m = MaxPool "
        "<kernel_shape = [2, 2], strides = [2, 2]> (a); y = GlobalAveragePool(m)",
    ),
    "resize": network(
        'l = Resize <mode = "linear"> (x, , scales); c = Resize <mode = "cubic"> (x, , scales)',
        scales=np.array([1, 1, 1.7, 2.3], np.float32),
    ),
    "rearranging": network(
        NORM + "; s = Slice(z, axis1, axis5, last); t = Gather <axis = 1> (z, order); u = Concat <axis = 2> (s, s); v0 = "
        "Concat <axis = 1> (z, t); e = Expand(s, big); f = Tile(s, again); p = Pad(t, pads, seven); q = "
        "Squeeze(z, axis0); h = Gather <axis = 1> (z, one); y = MatMul(h, w)",
        TOKENS,
        **LN,
        w=normal(12, 4),
        axis0=ints(0),
        axis1=ints(1),
        axis5=ints(5),
        last=ints(-1),
        order=ints(3, 3, 0),
        big=ints(2, 7, 4),
        again=ints(1, 1, 2),
        pads=ints(0, 1, 0, 0, 0, 2),
        seven=np.float32(7),
        one=np.int64(2),
    ),
    "windows": network(
        "z = LayerNormalization <axis = -1> (x, g, b); r = Reshape(z, windows); t = Transpose <perm = [0, 1, 3, "
        "2, 4, 5]> (r); u = Reshape(t, rows); q = MatMul(u, w); y = ReduceSumSquare(q, last)",
        (1, 4, 6, 12),
        **LN,
        windows=ints(1, 2, 2, 3, 2, 12),
        rows=ints(6, 4, 12),
        w=normal(12, 5),
        last=ints(-1),
    ),
    "clips and choices": network(
        "a = Clip(x, lo, hi); m = Max(x, hi); n = Min(m, a); y = Where(mask, a, x); z = Neg(y); u = Abs(z); p = "
        "PRelu(x, slope)",
        lo=np.float32(-0.5),
        hi=np.float32(0.75),
        mask=np.arange(8) % 2 == 0,
        slope=normal(6, 1, 1),
    ),
    "quotients": network(
        "a = Abs(x); b = Add(a, one); y = Div(x, b); r = Reciprocal(b); z = Div(y, c); u = Sub(z, x); e = Exp(x); "
        "t = Div(e, b); l = Log(b); p = Pow(b, third); p2 = Pow(x, two); p3 = Pow(x, three); s = Sin(x)",
        one=np.float32(0.25),
        c=normal(6, 1, 1) + 3,
        third=np.float32(-0.3),
        two=np.float32(2),
        three=np.float32(3),
    ),
    "quantized": network(
        "q = QuantizeLinear(x, s, z); y = DequantizeLinear(q, s, z)",
        s=np.float32(0.01),
        z=np.int8(5),
    ),
    **{
        " ".join((op, *attributes)): network(
            f"{NORM}; h = MatMul(z, w); f = {op}{f' <{attributes[0]}>' if attributes else ''}(h); y = MatMul(f, w)",
            TOKENS,
            **LN,
            w=normal(12, 12),
        )
        for op, *attributes in (name.split(" ", 1) for name in ACTIVATIONS)
    },
}


UNBOUNDED = {"xnorm, rows, gamma first": ["r"]}
"""gamma / ||a|| without an eps, which grows as ||a|| shrinks; its product with a is bounded."""


def check_bounded(model, case):
    bounds = bound_tensors(model, LOW, HIGH)
    return bounds, attacks(model, model.graph.node[-1].output[0], seed=len(case))


@pytest.fixture(autouse=True)
def no_rule_fails(monkeypatch):
    """A rule that raises leaves a tensor without a bound: here that is an error."""

    def strict(rule):
        def apply(operator):
            try:
                return rule(operator)
            except (IndexError, ValueError) as error:
                raise AssertionError(f"the rule of {operator.node.name} failed") from error

        return apply

    monkeypatch.setattr(interval_propagation, "RULES", {op: strict(rule) for op, rule in interval_propagation.RULES.items()})


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_observed_beyond_its_bound(case):
    model = CASES[case]
    bounds, images = check_bounded(model, case)
    assert [name for name in bounds if bounds.largest(name) is None] == UNBOUNDED.get(case, [])
    assert exceeded(bounds, model, images) == set()
    tightened = Bounds(
        {name: replace(v, low=v.low / 30, high=v.high / 30, lengths=(), ball=None) for name, v in bounds.values.items()}, {}
    )
    assert exceeded(tightened, model, images), "the attack reaches a thirtieth of some bound, and the comparison sees it"


def wrong_rule(monkeypatch, op, change):
    """Replace a rule by one whose result is changed."""
    rule = interval_propagation.RULES[op]
    monkeypatch.setattr(
        interval_propagation, "RULES", {**interval_propagation.RULES, op: lambda operator: change(rule(operator), operator)}
    )


def half(value, _operator):
    lengths = tuple(replace(fact, bound=fact.bound / 2) for fact in value.lengths)
    ball = value.ball and value.ball.scaled(np.asarray(0.5))
    return replace(value, low=value.low / 2, high=value.high / 2, lengths=lengths, ball=ball)


def half_upwards(value, _operator):
    return replace(value, high=value.high / 2)


def not_negative(value, _operator):
    return replace(value, low=np.maximum(value.low, 0.0))


def one_sided(value, operator):
    """x - y taken as x."""
    other = operator.value(1)
    return replace(value, low=value.low + other.high, high=value.high + other.low)


@pytest.mark.parametrize(
    ("case", "op", "change"),
    [
        ("conv", "Conv", half),
        ("conv 1 x 1", "Conv", half),
        ("depthwise conv", "Conv", half_upwards),
        ("conv, transposed", "ConvTranspose", lambda value, operator: half(half(value, operator), operator)),
        ("feed-forward", "LayerNormalization", half),
        ("feed-forward", "Gelu", not_negative),
        ("gemm", "Gemm", half),
        ("mixing of tokens", "MatMul", half),
        ("softmax attention", "Softmax", half),
        ("xnorm, columns", "Div", half),
        ("layer norm in pieces", "Div", half),
        ("rms norm in pieces", "Reciprocal", half_upwards),
        ("response norm", "ReduceL2", half_upwards),
        ("sums", "ReduceSum", half),
        ("sums", "ReduceMax", not_negative),
        ("pooling", "MaxPool", half_upwards),
        ("batch norm", "BatchNormalization", half),
        ("clips and choices", "Where", half),
        ("quotients", "Exp", half_upwards),
        ("quotients", "Sub", one_sided),
        ("quantized", "DequantizeLinear", half),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_a_wrong_rule_is_caught(monkeypatch, case, op, change):
    wrong_rule(monkeypatch, op, change)
    model = CASES[case]
    images = [image for node in model.graph.node if node.op_type == op for image in attacks(model, node.output[0], rounds=12)]
    assert exceeded(bound_tensors(model, LOW, HIGH), model, images)


@pytest.mark.parametrize(
    ("case", "tensor", "within"),
    [
        ("conv 1 x 1", "y", 1.001),  # each weight meets the end of the interval that suits it
        ("depthwise conv", "y", 1.6),
        ("mixing of tokens", "y2", 1.001),
        ("sums", "a", 1.001),
        ("xnorm, columns", "o", 3.0),
        ("softmax attention", "o", 3.0),
        ("feed-forward", "y0", 5.0),
    ],
)
def test_a_bound_is_nearly_reached(case, tensor, within):
    model = CASES[case]
    bounds, run = bound_tensors(model, LOW, HIGH), TappedGraph(model, (tensor,))
    if tensor == "y" and case == "conv 1 x 1":  # the worst pixel of the worst channel
        weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w"))[:, :, 0, 0]
        images = [
            np.where(sign * row > 0, HIGH, LOW)[None, :, None, None] * np.ones((1, 6, 8, 8))
            for row in weight
            for sign in (1, -1)
        ]
    else:
        images = attacks(model, tensor, rounds=60)
    reached = max(np.abs(run(np.asarray(image, np.float32))[tensor]).max() for image in images)
    assert reached <= bounds.largest(tensor) <= within * reached


def test_partial_sums_of_products():
    """Of the sum of |a b|, which signs do not reduce: more than the result, no more than stated."""
    for case, (left, right) in [
        ("softmax attention", ("q", "kt")),
        ("softmax attention", ("p", "k")),
        ("feed-forward", ("h", "v")),
    ]:
        model = CASES[case]
        bounds = bound_tensors(model, LOW, HIGH)
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        taps = [name for name in (left, right) if name not in constants]
        stated, found = bounds.of(Probe("partial sum", (left, right), stored=False)), []
        for image in attacks(model, left, rounds=12):
            tensors = {**constants, **TappedGraph(model, taps)(image)}
            found.append((np.abs(tensors[left]) @ np.abs(tensors[right])).max())
        assert max(found) <= stated <= 30 * max(found)
    assert bounds.of(Probe("partial sum", ("h", "no such tensor"))) is None


def test_what_is_not_known_is_not_bounded():
    nodes = "e = Exp(x); y = CumSum(e, axis); s = Sigmoid(y); z = Add(s, y); p = Softmax(z)"
    model = network(nodes, TOKENS, axis=np.int64(1))
    bounds = bound_tensors(model, LOW, HIGH)
    assert [bounds.largest(name) is None for name in ("e", "y", "s", "z", "p")] == [False, True, False, True, False]
    assert bounds.of(Probe("sum of squares", ("z",), (-1,))) is None
    assert bounds.largest("no such tensor") is None
    assert bounds.of(Probe("value", ("no such tensor",))) is None
    assert list(bounds) == ["x", "e", "y", "s", "z", "p"]
