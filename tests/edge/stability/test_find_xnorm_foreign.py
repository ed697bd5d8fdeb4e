"""Norms as other exporters write them. Oracle: ONNX's checker, and float64 numpy: the graph that was built divides by a norm.

Every pattern has its twin that is not an XNorm and must not be found.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from for_all import for_all
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from edge.stability.finders.xnorm import find_norms, find_sites

EPS = np.float32(1e-4)


class Pattern:
    """A graph x (2, 3, 5) -> y, node by node; each node's name is its output's."""

    def __init__(self, opset, axis=-1):
        self.opset, self.axis, self.nodes = opset, axis, []
        self.constants = {"eps": EPS, "two": np.float32(2), "axes": np.array([axis], np.int64), "shape": np.array([2, 3, 5])}

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(h.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def reduce(self, op, tensor, output, keep=1):
        """Axes: an attribute before opset 18, a constant since; of ReduceSum since 13."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.node(op, [tensor, "axes"], output, keepdims=keep)
        return self.node(op, [tensor], output, axes=[self.axis], keepdims=keep)

    def model(self, output="y"):
        read = {name for node in self.nodes for name in node.input}
        constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in self.constants.items() if k in read]
        ends = [h.make_tensor_value_info(name, T.FLOAT, [2, 3, 5]) for name in ("x", output)]
        graph = h.make_graph(self.nodes, "stranger", ends[:1], ends[1:], constants)
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def l2(p, guard):
    n = p.reduce("ReduceL2", "x", "norm")
    if guard == "expand":
        n = p.node("Expand", [p.node("Clip", [n, "eps"], "guard"), "shape"], "wide")
    elif guard:
        n = p.node(guard, [n, "eps"], "guard")
    p.node("Div", ["x", n], "y")


def decomposed(p, square, inner=None, outer=None, turned=False):
    if square == "ReduceSumSquare":
        s = p.reduce("ReduceSumSquare", "x", "norm")
    else:
        s = p.reduce("ReduceSum", p.node(square, ["x", "x" if square == "Mul" else "two"], "squared"), "norm")
    s = p.node(inner, ["eps", s] if turned else [s, "eps"], "guard") if inner else s
    n = p.node("Sqrt", [s], "root")
    n = p.node(outer, ["eps", n] if turned else [n, "eps"], "guard") if outer else n
    p.node("Div", ["x", n], "y")


def reciprocal(p, first):
    s = p.node("Max", [p.reduce("ReduceSum", p.node("Mul", ["x", "x"], "squared"), "norm"), "eps"], "guard")
    r = p.node("Reciprocal", [p.node("Sqrt", [s], "root")], "inverse")
    p.node("Mul", ["x", r] if first else [r, "x"], "y")


PATTERNS = {  # name: (builder, kind and place of the eps)
    "ReduceL2 Div": (lambda p: l2(p, None), None),
    "ReduceL2 Clip": (lambda p: l2(p, "Clip"), ("clamp", "norm")),
    "ReduceL2 Max": (lambda p: l2(p, "Max"), ("clamp", "norm")),
    "ReduceL2 Add": (lambda p: l2(p, "Add"), ("added", "norm")),
    "F.normalize": (lambda p: l2(p, "expand"), ("clamp", "norm")),
    "Mul ReduceSum Sqrt": (lambda p: decomposed(p, "Mul"), None),
    "Pow ReduceSum Sqrt": (lambda p: decomposed(p, "Pow"), None),
    "Pow ReduceSum Add Sqrt": (lambda p: decomposed(p, "Pow", inner="Add"), ("added", "square")),
    "Mul ReduceSum Max Sqrt": (lambda p: decomposed(p, "Mul", inner="Max", turned=True), ("clamp", "square")),
    "Mul ReduceSum Sqrt Add": (lambda p: decomposed(p, "Mul", outer="Add", turned=True), ("added", "norm")),
    "ReduceSumSquare": (lambda p: decomposed(p, "ReduceSumSquare"), None),
    "ReduceSumSquare Clip": (lambda p: decomposed(p, "ReduceSumSquare", inner="Clip"), ("clamp", "square")),
    "Reciprocal on the right": (lambda p: reciprocal(p, first=True), ("clamp", "square")),
    "Reciprocal on the left": (lambda p: reciprocal(p, first=False), ("clamp", "square")),
}


def normalised(x, axis, eps):
    """Written from the mathematics, float64."""
    total = (x.astype(np.float64) ** 2).sum(axis, keepdims=True)
    value = float(EPS)
    if eps == ("added", "square"):
        total = total + value
    if eps == ("clamp", "square"):
        total = np.maximum(total, value)
    n = np.sqrt(total)
    if eps == ("added", "norm"):
        n = n + value
    if eps == ("clamp", "norm"):
        n = np.maximum(n, value)
    return x / n


@pytest.mark.parametrize("name", PATTERNS)
@for_all(axis=[-1, 2, 1], opset=[13, 20])
def test_pattern_is_found_and_is_a_norm(name, opset, axis):
    build, eps = PATTERNS[name]
    pattern = Pattern(opset, axis)
    build(pattern)
    model = pattern.model()
    (site,) = find_sites(model, expected=1)
    assert (site.name, site.operand, site.axis, site.argument, site.output) == ("norm", "q", -1 if axis != 1 else -2, "x", "y")
    assert site.nodes == tuple(node.name for node in pattern.nodes), "every node belongs to the norm"
    assert [(e.kind, e.acts_on, e.value, e.node, e.tensor) for e in site.eps] == (
        [(*eps, float(EPS), "guard", "eps")] if eps else []
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    x[0] *= 2.0**-10  # an eps that matters
    (y,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(y, normalised(x, axis, eps), rtol=1e-5)


def dividend_is_another(p):
    p.node("Div", [p.node("Neg", ["x"], "other"), p.reduce("ReduceL2", "x", "norm")], "y")


def product_of_two(p):
    s = p.reduce("ReduceSum", p.node("Mul", ["x", p.node("Neg", ["x"], "other")], "squared"), "norm")
    p.node("Div", ["x", p.node("Sqrt", [s], "root")], "y")


def cube(p):
    p.constants["three"] = np.float32(3)
    s = p.reduce("ReduceSum", p.node("Pow", ["x", "three"], "cubed"), "norm")
    p.node("Div", ["x", p.node("Sqrt", [s], "root")], "y")


def layer_norm(p, centred=True):
    d = p.node("Sub", ["x", p.reduce("ReduceMean", "x", "mean")], "centred") if centred else "x"
    variance = p.reduce("ReduceMean", p.node("Pow", [d, "two"], "squared"), "norm")
    p.node("Div", [d, p.node("Sqrt", [p.node("Add", [variance, "eps"], "guard")], "root")], "y")


def no_root(p):
    p.node("Div", ["x", p.reduce("ReduceSumSquare", "x", "norm")], "y")


def l1(p):
    p.node("Div", ["x", p.reduce("ReduceL1", "x", "norm")], "y")


def multiplied(p):
    p.node("Mul", ["x", p.reduce("ReduceL2", "x", "norm")], "y")


def upside_down(p):
    p.node("Div", [p.reduce("ReduceL2", "x", "norm"), "x"], "y")


def rms_norm(p):
    layer_norm(p, centred=False)


IMPOSTORS = [dividend_is_another, product_of_two, cube, layer_norm, rms_norm, no_root, l1, multiplied, upside_down]


@pytest.mark.parametrize("build", IMPOSTORS)
@for_all(opset=[13, 20])
def test_what_looks_alike_is_no_site(build, opset):
    pattern = Pattern(opset)
    build(pattern)
    assert find_sites(pattern.model()) == ()


@pytest.mark.parametrize(("p", "axis", "found"), [(2, -1, 1), (None, 2, 1), (1, -1, 0)])
def test_lp_normalization(p, axis, found):
    pattern = Pattern(20)
    pattern.node("LpNormalization", ["x"], "y", axis=axis, **({} if p is None else {"p": p}))
    sites = find_sites(pattern.model())
    assert [(s.name, s.axis, s.argument, s.output, s.eps) for s in sites] == [("y", -1, "x", "y", ())] * found


def test_two_norms_of_one_tensor_are_two_sites():
    """Also: the eps may be shared, and each site names its own node."""
    pattern = Pattern(20)
    for i in "ab":
        n = pattern.node("Max", [pattern.reduce("ReduceL2", "x", f"n{i}"), "eps"], f"g{i}")
        pattern.node("Div", ["x", n], f"d{i}")
    pattern.node("Add", ["da", "db"], "y")
    assert [(s.name, s.eps[0].node) for s in find_sites(pattern.model())] == [("na", "ga"), ("nb", "gb")]


def axes_graph(opset, axes):
    """The axes where an exporter may put them: attribute, initializer, Constant node, absent."""
    pattern = Pattern(opset)
    inputs, attributes = ["x"], {}
    if axes == "attribute":
        attributes["axes"] = [-1]
    elif axes in ("initializer", "constant node"):
        inputs.append("axes")
    if axes == "constant node":
        value = numpy_helper.from_array(pattern.constants.pop("axes"))
        pattern.nodes.append(h.make_node("Constant", [], ["axes"], value=value))
    pattern.node("ReduceL2", inputs, "norm", **attributes)
    pattern.node("Max", ["norm", "eps"], "clamp")
    pattern.node("Div", ["x", "clamp"], "y")
    return pattern.model()


@pytest.mark.parametrize(
    ("opset", "axes"), [(13, "attribute"), (20, "initializer"), (20, "constant node"), (13, "absent"), (20, "absent")]
)
def test_axes_wherever_an_exporter_puts_them(opset, axes):
    model = axes_graph(opset, axes)
    if axes == "absent":  # a norm over the whole tensor
        sites, (unjudged,) = find_norms(model)
        assert (sites, unjudged.name) == ((), "norm")
    else:
        assert [(s.name, s.axis, s.nodes) for s in find_sites(model)] == [("norm", -1, ("norm", "clamp", "y"))]


@pytest.mark.slow
def test_torch_s_cosine_attention_is_found():
    """Two F.normalize in a module that knows nothing of this toolkit, through torch's own exporter."""
    import warnings

    import torch
    from torch.nn import functional

    class Cosine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(x.shape[0], 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
            q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1, eps=1e-6)
            return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(Cosine().eval(), (torch.zeros(2, 4, 8),), dynamo=True, opset_version=20, verbose=False)
    sites = find_sites(program.model_proto, expected=2)
    assert [(s.operand, s.axis) for s in sites] == [("q", -1)] * 2
    assert [(e.kind, e.acts_on) for s in sites for e in s.eps] == [("clamp", "norm")] * 2
    np.testing.assert_allclose([s.eps[0].value for s in sites], [1e-12, 1e-6], rtol=1e-6)
