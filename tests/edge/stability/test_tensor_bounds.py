"""Bounds on every tensor, operator by operator. Oracle: ONNX Runtime's own tensors on inputs that climb towards the bounds.

No observation may leave its interval, exceed a length or a probe. Controls: rules that are wrong on purpose are caught, and
where a bound can be reached it is.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.ort_session import TappedGraph
from edge.stability.bounds import Bounds, bound_tensors, interval_propagation
from edge.stability.bounds.value import replace, widened
from edge.stability.site import Probe

LOW, HIGH = -2.0, 3.0


def network(nodes, shape=(1, 6, 8, 8), **constants):
    """Nodes as (operator, inputs, outputs, attributes), the input "x", the output that of the last node."""
    made = [
        helper.make_node(op, inputs.split(" "), outputs.split(" "), name=f"{op}_{i}", **attributes)
        for i, (op, inputs, outputs, attributes) in enumerate((*node, {})[:4] for node in nodes)
    ]
    last = made[-1].output[0]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng([seed, *shape]).normal(size=shape) * scale).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def attacks(model, target, seed=0, rounds=6):
    """Inputs: noise, corners of the interval, constants, a checkerboard, next to nothing, and corners that climb towards `target`."""
    rng = np.random.default_rng(seed)
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)

    def corner():
        return np.where(rng.random(shape) < 0.5, LOW, HIGH)

    checkered = np.where(np.indices(shape).sum(axis=0) % 2, LOW, HIGH)
    images = [rng.uniform(LOW, HIGH, shape), np.full(shape, LOW), np.full(shape, HIGH), np.zeros(shape), checkered, rng.normal(size=shape) * 1e-4]
    run, best, reached = TappedGraph(model, (target,)), corner(), -np.inf
    for _ in range(rounds):
        flipped = [np.where(rng.random(shape) < share, LOW + HIGH - best, best) for share in (0.02, 0.1, 0.3)]
        for image in (best, corner(), *flipped):
            found = np.abs(run(image.astype(np.float32))[target]).max()
            if found > reached:
                best, reached = image, found
        images.append(best)
    return [image.astype(np.float32) for image in images]


def exceeded(bounds, model, images):
    """(tensor, what) of everything that was observed beyond its bound."""
    index = [name for name in bounds if name != "x"]
    run, wrong = TappedGraph(model, index), set()
    for image in images:
        for name, array in run(image).items():
            value, x = bounds.values[name], array.astype(np.float64)
            assert value.shape == x.shape, name
            if (x < value.low).any() or (x > value.high).any():
                wrong.add((name, "interval"))
            for fact in value.lengths:
                if ((np.abs(x) ** fact.order).sum(axis=fact.axes, keepdims=True) > fact.bound**fact.order).any():
                    wrong.add((name, f"length {fact.order}"))
            wrong |= {(name, probe.quantity) for probe in probes(name, x.ndim) if beyond(bounds.of(probe), measured(probe, x))}
    return wrong


def beyond(bound, found):
    return bound is not None and found > bound


def probes(name, rank):
    quantities = ("sum", "sum of squares", "deviation", "squared deviation", "sum of squared deviations")
    axes = [(-1,), tuple(range(-rank + 1, 0))] + ([(-2,)] if rank > 1 else [])
    return [Probe("value", (name,)), Probe("square", (name,)), *(Probe(q, (name,), a) for q in quantities for a in axes if a)]


def measured(probe, x):
    centred = x - x.mean(axis=probe.axes, keepdims=True) if probe.axes else x
    return {
        "value": lambda: np.abs(x),
        "square": lambda: x**2,
        "sum": lambda: np.abs(x).sum(axis=probe.axes),
        "sum of squares": lambda: (x**2).sum(axis=probe.axes),
        "deviation": lambda: np.abs(centred),
        "squared deviation": lambda: centred**2,
        "sum of squared deviations": lambda: (centred**2).sum(axis=probe.axes),
    }[probe.quantity]().max()


NORM = [("LayerNormalization", "x g b", "z", {"axis": -1})]
TOKENS = (1, 7, 12)
LN = {"g": normal(12), "b": normal(12, seed=1)}
WEIGHTS = {"w": normal(12, 12, scale=0.3), "wk": normal(12, 12, seed=1, scale=0.3), "c": normal(12, seed=2), "heads": ints(1, 7, 3, 4), "whole": ints(1, 7, 12)}
HEADS = [
    *NORM,
    ("MatMul", "z w", "q0"), ("Add", "q0 c", "q1"), ("Reshape", "q1 heads", "q2"), ("Transpose", "q2", "q", {"perm": [0, 2, 1, 3]}),
    ("MatMul", "z wk", "k0"), ("Reshape", "k0 heads", "k1"), ("Transpose", "k1", "kt", {"perm": [0, 2, 3, 1]}),
    ("Transpose", "k1", "k", {"perm": [0, 2, 1, 3]}),
]  # fmt: skip
ENDS = {"axis1": ints(1), "axis2": ints(2), "last": ints(-1), "two": np.float32(2), "eps": np.float32(1e-6), "half": np.float32(0.5)}
MERGE = [("Transpose", "o", "o1", {"perm": [0, 2, 1, 3]}), ("Reshape", "o1 whole", "o2"), ("MatMul", "o2 w", "out")]

CASES = {
    "conv": network([("Conv", "x w b", "y", {"pads": [1] * 4})], w=normal(5, 6, 3, 3), b=normal(5)),
    "conv, strided, dilated": network([("Conv", "x w", "y", {"strides": [2, 2], "dilations": [2, 2]})], w=normal(5, 6, 3, 3)),
    "depthwise conv": network([("Conv", "x w b", "y", {"pads": [1, 1, 0, 0], "group": 6})], w=normal(12, 1, 3, 3), b=normal(12)),
    "conv 1 x 1": network([("Conv", "x w b", "y"), ("Gelu", "y", "u"), ("Conv", "u v", "t")], w=normal(9, 6, 1, 1), b=normal(9), v=normal(4, 9, 1, 1)),
    "conv, transposed": network([("ConvTranspose", "x w b", "y", {"strides": [2, 2], "group": 2})], w=normal(6, 4, 3, 3), b=normal(8)),
    "convs of a norm over channels": network(
        [("Transpose", "x", "t", {"perm": [0, 2, 3, 1]}), ("LayerNormalization", "t g b", "n", {"axis": -1}), ("Transpose", "n", "z", {"perm": [0, 3, 1, 2]}),
         ("Conv", "z w", "y"), ("Conv", "z v", "u", {"pads": [1] * 4}), ("Conv", "y p", "t2")],
        g=normal(6), b=normal(6, seed=1), w=normal(9, 6, 1, 1), v=normal(4, 6, 3, 3), p=normal(3, 9, 1, 1),
    ),
    "batch norm": network([("BatchNormalization", "x s b m v", "y")], s=normal(6), b=normal(6, seed=1), m=normal(6, seed=2), v=np.abs(normal(6, seed=3))),
    "instance norm": network([("InstanceNormalization", "x s b", "y")], s=normal(6), b=normal(6, seed=1)),
    "instance norm as groups": network(
        [("Reshape", "x groups", "r"), ("InstanceNormalization", "r s b", "i"), ("Reshape", "i whole", "w"), ("Mul", "w g", "y")],
        groups=ints(1, 3, 128), whole=ints(1, 6, 8, 8), s=np.ones(3, np.float32), b=np.zeros(3, np.float32), g=normal(6, 1, 1),
    ),
    "feed-forward": network(
        [*NORM, ("MatMul", "z w", "h0"), ("Add", "h0 b1", "h1"), ("Gelu", "h1", "h"), ("MatMul", "h v", "y0"), ("Add", "y0 c", "y1"), ("Add", "x y1", "y")],
        TOKENS, **LN, w=normal(12, 48, scale=0.3), b1=normal(48), v=normal(48, 12, scale=0.1), c=normal(12),
    ),
    "feed-forward, silu in two": network(
        [*NORM, ("MatMul", "z w", "h0"), ("Sigmoid", "h0", "s"), ("Mul", "s h0", "h"), ("MatMul", "h v", "y")], TOKENS, **LN, w=normal(12, 24), v=normal(24, 12),
    ),
    "gated feed-forward": network(
        [*NORM, ("MatMul", "z w", "h0"), ("Split", "h0", "a b2", {"axis": -1, "num_outputs": 2}), ("Gelu", "a", "a1"), ("Mul", "a1 b2", "h"), ("MatMul", "h v", "y")],
        TOKENS, **LN, w=normal(12, 24), v=normal(12, 12),
    ),
    "gemm": network(
        [("Reshape", "x flat", "f"), ("LayerNormalization", "f g b", "z"), ("Gemm", "z w c", "y", {"transB": 1, "alpha": 0.5, "beta": 2.0})],
        TOKENS, flat=ints(7, 12), **LN, w=normal(5, 12), c=normal(5),
    ),
    "mixing of tokens": network([*NORM, ("Transpose", "z", "t", {"perm": [0, 2, 1]}), ("MatMul", "t w", "y"), ("MatMul", "p x", "y2")], TOKENS, **LN, w=normal(7, 5), p=normal(1, 4, 7)),
    "softmax attention": network([*HEADS, ("MatMul", "q kt", "l"), ("Mul", "l half", "l1"), ("Softmax", "l1", "p"), ("MatMul", "p k", "o"), *MERGE], TOKENS, **LN, **WEIGHTS, **ENDS),
    "attention over channels": network(
        [*HEADS, ("Transpose", "q", "qt", {"perm": [0, 1, 3, 2]}), ("LpNormalization", "qt", "qn", {"axis": -1}), ("LpNormalization", "k", "kn", {"axis": -2}),
         ("MatMul", "qn kn", "l"), ("Softmax", "l", "p"), ("MatMul", "p kt", "ot"), ("Transpose", "ot", "o", {"perm": [0, 1, 3, 2]}), *MERGE],
        TOKENS, **LN, **WEIGHTS,
    ),
    "xnorm, columns": network(
        [*HEADS, ("ReduceL2", "q last", "n"), ("Clip", "n eps", "n1"), ("Div", "q n1", "u"), ("MatMul", "kt k", "kv"), ("ReduceL2", "kv axis2", "m"),
         ("Max", "m eps", "m1"), ("Div", "kv m1", "w1"), ("Mul", "w1 gamma", "w2"), ("MatMul", "u w2", "o"), *MERGE],
        TOKENS, **LN, **WEIGHTS, **ENDS, gamma=normal(1, 3, 1, 1),
    ),
    "xnorm, rows, gamma first": network(
        [*HEADS, ("Mul", "q gamma", "qg"), ("ReduceL2", "q last", "n"), ("Div", "qg n", "u"), ("MatMul", "kt k", "kv"), ("ReduceL2", "kv last", "m"),
         ("Div", "gamma m", "r"), ("Mul", "kv r", "w1"), ("MatMul", "u w1", "o"), *MERGE],
        TOKENS, **LN, **WEIGHTS, **ENDS, gamma=normal(1, 3, 1, 1),
    ),
    "layer norm in pieces": network(
        [("ReduceMean", "x last", "m"), ("Sub", "x m", "d"), ("Pow", "d two", "s"), ("ReduceMean", "s last", "v"), ("Add", "v eps", "v1"), ("Sqrt", "v1", "r"),
         ("Div", "d r", "u"), ("Mul", "u g", "z0"), ("Add", "z0 b", "z"), ("MatMul", "z w", "y")],
        TOKENS, **LN, **WEIGHTS, **ENDS,
    ),
    "rms norm in pieces": network(
        [("Mul", "x x", "s"), ("ReduceMean", "s last", "v"), ("Add", "v eps", "v1"), ("Sqrt", "v1", "r0"), ("Reciprocal", "r0", "r"), ("Mul", "x r", "u"),
         ("Mul", "g u", "z"), ("MatMul", "z w", "y")],
        TOKENS, **LN, **WEIGHTS, **ENDS,
    ),
    "response norm": network(
        [("ReduceL2", "x places", "n"), ("ReduceMean", "n axis1", "m"), ("Add", "m eps", "m1"), ("Div", "n m1", "r"), ("Mul", "x r", "y0"), ("Mul", "y0 g", "y1"), ("Add", "y1 x", "y")],
        places=ints(2, 3), **ENDS, g=normal(6, 1, 1),
    ),
    "softmax in pieces": network(
        [("ReduceMax", "x last", "m"), ("Sub", "x m", "d"), ("Exp", "d", "e"), ("ReduceSum", "e last", "s"), ("Div", "e s", "p"), ("MatMul", "p w", "y")],
        TOKENS, **WEIGHTS, **ENDS,
    ),
    "norm without its axis": network([("ReduceL2", "x last", "n", {"keepdims": 0}), ("Unsqueeze", "n last", "n1"), ("Max", "n1 eps", "n2"), ("Div", "x n2", "y")], TOKENS, **ENDS),
    "log softmax": network([("LogSoftmax", "x", "y")], TOKENS),
    "einsum": network([("Einsum", "x x", "y", {"equation": "bic,bjc->bij"})], TOKENS),
    "products of one tensor": network([("Transpose", "x", "t", {"perm": [0, 2, 1]}), ("MatMul", "x t", "y"), ("Mul", "x x", "s"), ("Mul", "s x", "u")], TOKENS),
    "sums": network([("ReduceSum", "x last", "a"), ("ReduceMean", "x axis1", "b"), ("ReduceMax", "x last", "c"), ("ReduceMin", "x axis1", "d"), ("ReduceL1", "x last", "e"),
                     ("ReduceSumSquare", "x axis1", "f"), ("Sum", "a c e", "y")], TOKENS, **ENDS),
    "pooling": network([("AveragePool", "x", "a", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}), ("MaxPool", "a", "m", {"kernel_shape": [2, 2], "strides": [2, 2]}),
                        ("GlobalAveragePool", "m", "y")]),
    "resize": network([("Resize", "x  scales", "l", {"mode": "linear"}), ("Resize", "x  scales", "c", {"mode": "cubic"})], scales=np.array([1, 1, 1.7, 2.3], np.float32)),
    "rearranging": network(
        [*NORM, ("Slice", "z axis1 axis5 last", "s"), ("Gather", "z order", "t", {"axis": 1}), ("Concat", "s s", "u", {"axis": 2}), ("Concat", "z t", "v0", {"axis": 1}),
         ("Expand", "s big", "e"), ("Tile", "s again", "f"), ("Pad", "t pads seven", "p"), ("Squeeze", "z axis0", "q"), ("Gather", "z one", "h", {"axis": 1}), ("MatMul", "h w", "y")],
        TOKENS, **LN, w=normal(12, 4), axis0=ints(0), axis1=ints(1), axis5=ints(5), last=ints(-1), order=ints(3, 3, 0), big=ints(2, 7, 4), again=ints(1, 1, 2),
        pads=ints(0, 1, 0, 0, 0, 2), seven=np.float32(7), one=np.int64(2),
    ),
    "windows": network(
        [("LayerNormalization", "x g b", "z", {"axis": -1}), ("Reshape", "z windows", "r"), ("Transpose", "r", "t", {"perm": [0, 1, 3, 2, 4, 5]}), ("Reshape", "t rows", "u"), ("MatMul", "u w", "q"), ("ReduceSumSquare", "q last", "y")],
        (1, 4, 6, 12), **LN, windows=ints(1, 2, 2, 3, 2, 12), rows=ints(6, 4, 12), w=normal(12, 5), last=ints(-1),
    ),
    "clips and choices": network(
        [("Clip", "x lo hi", "a"), ("Max", "x hi", "m"), ("Min", "m a", "n"), ("Where", "mask a x", "y"), ("Neg", "y", "z"), ("Abs", "z", "u"), ("PRelu", "x slope", "p")],
        lo=np.float32(-0.5), hi=np.float32(0.75), mask=np.arange(8) % 2 == 0, slope=normal(6, 1, 1),
    ),
    "quotients": network([("Abs", "x", "a"), ("Add", "a one", "b"), ("Div", "x b", "y"), ("Reciprocal", "b", "r"), ("Div", "y c", "z"), ("Sub", "z x", "u"), ("Exp", "x", "e"), ("Div", "e b", "t"), ("Log", "b", "l"), ("Pow", "b third", "p"), ("Pow", "x two", "p2"), ("Pow", "x three", "p3"), ("Sin", "x", "s")],
                         one=np.float32(0.25), c=normal(6, 1, 1) + 3, third=np.float32(-0.3), two=np.float32(2), three=np.float32(3)),
    "quantized": network([("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "y")], s=np.float32(0.01), z=np.int8(5)),
    **{" ".join([op, *map(str, attributes.values())]): network([*NORM, ("MatMul", "z w", "h"), (op, "h", "f", attributes), ("MatMul", "f w", "y")], TOKENS, **LN, w=normal(12, 12))
       for op, attributes in [("Relu", {}), ("LeakyRelu", {"alpha": 0.3}), ("LeakyRelu", {"alpha": -0.5}), ("LeakyRelu", {"alpha": 3.0}), ("Elu", {"alpha": 2.0}), ("Selu", {}), ("Celu", {"alpha": 0.5}),
                              ("HardSwish", {}), ("HardSigmoid", {}), ("Sigmoid", {}), ("Tanh", {}), ("Erf", {}), ("Softplus", {}), ("Softsign", {}), ("Mish", {}), ("Gelu", {}), ("Gelu", {"approximate": "tanh"}), ("Floor", {}), ("Round", {})]},
}  # fmt: skip


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
    tightened = Bounds({name: replace(v, low=v.low / 30, high=v.high / 30, lengths=(), ball=None) for name, v in bounds.values.items()}, {})
    assert exceeded(tightened, model, images), "the attack reaches a thirtieth of some bound, and the comparison sees it"


def wrong_rule(monkeypatch, op, change):
    """Replace a rule by one whose result is changed."""
    rule = interval_propagation.RULES[op]
    monkeypatch.setattr(interval_propagation, "RULES", {**interval_propagation.RULES, op: lambda operator: change(rule(operator), operator)})


def half(value, _operator):
    lengths = tuple(replace(fact, bound=fact.bound / 2) for fact in value.lengths)
    ball = value.ball and value.ball.scaled(np.asarray(0.5))
    return replace(value, low=value.low / 2, high=value.high / 2, lengths=lengths, ball=ball)


def half_upwards(value, _operator):
    return replace(value, high=value.high / 2)


def not_negative(value, _operator):
    return replace(value, low=np.maximum(value.low, 0.0))


def forgets_its_bias(value, operator):
    constant = operator.constant(1)
    return replace(value, low=value.low - constant.min(), high=value.high - constant.max())


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
        ("quotients", "Sub", forgets_its_bias),
        ("quantized", "DequantizeLinear", half),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_a_wrong_rule_is_caught(monkeypatch, case, op, change):
    if change is forgets_its_bias:
        change = lambda value, operator: replace(value, low=value.low + operator.value(1).high, high=value.high - operator.value(1).high)  # noqa: E731
    wrong_rule(monkeypatch, op, change)
    model = CASES[case]
    images = [image for node in model.graph.node if node.op_type == op for image in attacks(model, node.output[0], rounds=12)]
    assert exceeded(bound_tensors(model, LOW, HIGH), model, images)
