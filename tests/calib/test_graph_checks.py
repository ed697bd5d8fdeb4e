"""What `load_graph` refuses of an ONNX file, before anything is computed; the control passes ONNX's own checker.

Hostile files are made of a good graph, by field where protobuf allows it, else byte by byte. The limit of memory is measured
in a process of its own.
"""

import random
import subprocess
import sys

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from calib.errors import GraphError, InputError
from calib.graph import index_graph, infer_types, load_graph, parse_graph
from calib.graph_checks import LARGEST_VALUES, check_size
from calib.macs import count_macs
from calib.qdq_placement import plan_quantization
from calib.qdq_writer import read_qdq

RNG = np.random.default_rng(0)


def good():
    """image (batch, 3, 8, 8) -> Conv -> Relu -> Flatten -> Gemm -> logits (batch, 2)."""
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w"], ["c"], name="conv", kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        node("Relu", ["c"], ["r"], name="relu"),
        node("Flatten", ["r"], ["f"], name="flat"),
        node("Constant", [], ["k"], name="constant", value=numpy_helper.from_array(np.ones(2, np.float32), "k_value")),
        node("Gemm", ["f", "g", "k"], ["logits"], name="head"),
    ]
    weights = {"w": RNG.normal(size=(4, 3, 3, 3)), "g": RNG.normal(size=(256, 2))}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sides])
        for name, sides in (("image", (3, 8, 8)), ("logits", (2,)))
    ]
    constants = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def image_side(model, value):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = value


def batch(model, value):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = value


def weight(model, **fields):
    for name, value in fields.items():
        if name == "dims":
            model.graph.initializer[0].dims[:] = value
        else:
            setattr(model.graph.initializer[0], name, value)


def external(tensor, location):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def in_subgraph(model, tensor):
    """An If whose branch holds the tensor."""
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["t"], ["b"])], "branch", [], [out], [tensor])
    model.graph.node.append(helper.make_node("If", ["k"], ["i"], name="if", then_branch=branch, else_branch=branch))


def absent(name):
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "t")
    external(tensor, name)
    return tensor


CHANGES = {
    "a side of 0": (lambda m: image_side(m, 0), "impossible size", "image"),
    "a side of -1": (lambda m: image_side(m, -1), "impossible size", "image"),
    "a side of 2**40": (lambda m: image_side(m, 2**40), "impossible size", "image"),
    "a batch of 0": (lambda m: batch(m, 0), "impossible size", "image"),
    "a batch of -1": (lambda m: batch(m, -1), "impossible size", "named batch"),
    "an unknown input type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
        "unknown element type",
        "99",
    ),
    "an unknown weight type": (lambda m: weight(m, data_type=99), "a tensor cannot be read", "tensor w"),
    "no weight type": (lambda m: weight(m, data_type=0), "a tensor cannot be read", "tensor w"),
    "weight sizes of 2**40": (lambda m: weight(m, dims=[2**40, 2**40]), "does not hold what it declares", "tensor w"),
    "weight sizes of -1": (lambda m: weight(m, dims=[-1, 27]), "does not hold what it declares", "tensor w"),
    "a weight cut short": (lambda m: weight(m, raw_data=bytes(8)), "does not hold what it declares", "tensor w"),
    "a weight cut by a value": (
        lambda m: weight(m, raw_data=m.graph.initializer[0].raw_data[:-4]),
        "cannot be read",
        "tensor w",
    ),
    "a constant cut": (lambda m: setattr(m.graph.node[3].attribute[0].t, "raw_data", b"\0" * 5), "cannot be read", "k_value"),
    "external, absolute": (lambda m: external(m.graph.initializer[0], "/etc/passwd"), "outside the ONNX file", "/etc/passwd"),
    "external, parent": (lambda m: external(m.graph.initializer[1], "../../w.bin"), "outside the ONNX file", "../../w.bin"),
    "external, missing": (lambda m: external(m.graph.initializer[1], "none"), "outside the ONNX file", "found: none"),
    "external attribute": (lambda m: external(m.graph.node[3].attribute[0].t, "/dev/zero"), "outside the ONNX file", "k_value"),
    "external in a subgraph": (lambda m: in_subgraph(m, absent("x.bin")), "outside the ONNX file", "x.bin"),
    "no inputs of a node": (lambda m: m.graph.node[0].ClearField("input"), "number of inputs of Conv", "node conv"),
    "no outputs of a node": (lambda m: m.graph.node[1].ClearField("output"), "a node has no outputs", "node relu"),
    "two outputs of Relu": (lambda m: m.graph.node[1].output.append("z"), "number of outputs of Relu", "found: 2"),
    "DequantizeLinear of one": (
        lambda m: m.graph.node.append(helper.make_node("DequantizeLinear", ["w"], ["d"], name="dq")),
        "number of inputs of DequantizeLinear",
        "node dq",
    ),
    "a text for an axis": (
        lambda m: m.graph.node[2].attribute.append(helper.make_attribute("axis", "one")),
        "wrong type of Flatten's axis",
        "STRING",
    ),
    "no type of an attribute": (lambda m: m.graph.node[0].attribute[0].ClearField("type"), "wrong type of Conv's", "UNDEFINED"),
    "bytes for a text": (lambda m: setattr(m.graph.node[0].attribute[0], "s", b"\xff"), "auto_pad is not UTF-8", "node conv"),
    "opset 2**40": (lambda m: setattr(m.opset_import[0], "version", 2**40), "unknown operator set", "version 1099511627776"),
    "opset -1": (lambda m: setattr(m.opset_import[0], "version", -1), "unknown operator set", "version -1"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "without a graph", ""),
    "no outputs": (lambda m: m.graph.ClearField("output"), "without a graph", ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_that_holds_what_no_graph_can_is_refused(tmp_path, name):
    change, *says = CHANGES[name]
    model, path = good(), tmp_path / "net.onnx"
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError) as refused:
        load_graph(path)
    for text in (*says, str(path)):
        assert text in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_good_graph_is_read_as_it_is(tmp_path):
    model, path = good(), tmp_path / "net.onnx"
    onnx.checker.check_model(model, full_check=True)
    in_subgraph(model, numpy_helper.from_array(np.ones(2, np.float32), "t"))
    for kind in (TensorProto.INT4, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.STRING, TensorProto.BOOL):
        values = ["a", "b", "c"] if kind == TensorProto.STRING else [0, 1, 1]
        model.graph.initializer.append(helper.make_tensor(f"t{kind}", kind, [3], values))
    model.graph.initializer.append(helper.make_tensor("none", TensorProto.FLOAT, [0, 2**40], []))
    model.graph.node.append(helper.make_node("Foreign", [], ["own"], domain="my.domain", what=3))
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    path.write_bytes(model.SerializeToString())
    assert load_graph(path) == (model, path.read_bytes())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>" + b"x" * 10_000, "an HTML page"),
        (b"<html>" + b" " * (5 << 20), "an HTML page"),
        (b"", "an empty file"),
        (bytes(100), "nothing but blanks or zeros"),
        (good().SerializeToString()[:-50], "truncated"),
        (b"\xff" * (5 << 20), "truncated"),
    ],
)
def test_other_files_are_named(tmp_path, content, says):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=says):
        load_graph(tmp_path / "net.onnx")


def test_text_that_is_not_utf8_is_refused():
    data = good().SerializeToString()
    for name in (b"conv", b"Relu", b"image", b"logits", b"kernel_shape", b"k_value"):
        spoilt = data.replace(name, b"\xff" * len(name))
        assert spoilt != data
        with pytest.raises(GraphError, match=r"not UTF-8|not an ONNX file"):
            parse_graph(spoilt, "net.onnx")


def varint(number):
    """A number as protobuf writes it."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


BOMBS = {
    "nodes": lambda n: field(7, field(1, b"") * (n // 2)),
    "constants": lambda n: field(7, field(5, b"") * (n // 2)),
    "texts": lambda n: field(7, field(1, field(1, b"") * (n // 2))),
    "numbers": lambda n: field(7, field(5, b"\x08\x01" * (n // 2))),
    "imports": lambda n: field(8, b"") * (n // 2),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_would_expand_is_refused_before_it_is_parsed(tmp_path, name):
    path = tmp_path / "bomb.onnx"
    path.write_bytes(BOMBS[name](50 << 20))
    program = (
        "import sys, pathlib; from calib.graph import load_graph; from calib.errors import GraphError\n"
        "try: load_graph(pathlib.Path(sys.argv[1]))\n"
        "except GraphError as error: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], error)"
    )
    ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    peak_kib, said = ran.stdout.split(maxsplit=1)
    assert "too many parts" in said
    assert int(peak_kib) < 400 << 10


def test_large_weights_are_not_many_parts():
    model = good()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3000, 1000), np.float32), "large"))
    model.graph.node.append(helper.make_node("Identity", ["large"], ["copy"]))
    data = model.SerializeToString()
    assert len(data) > 10 << 20
    check_size(data, "net.onnx")
    assert parse_graph(data, "net.onnx") == model


def test_a_tensor_that_would_be_computed_too_large_is_refused():
    model = good()
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**20]), "sides"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["sides"], ["huge"]))
    with pytest.raises(GraphError, match=r"too large[\s\S]*huge"):
        infer_types(parse_graph(model.SerializeToString(), "net.onnx"))
    assert LARGEST_VALUES < 2**40


def read_all(data):
    """Everything that commands do with a graph before they run it."""
    model = parse_graph(data, "net.onnx")
    index_graph(model)
    infer_types(model, batch=1)
    count_macs(model)
    read_qdq(model)
    plan_quantization(model)


def test_bytes_changed_at_random_are_read_or_refused():
    rng, data, outcomes = random.Random(7), good().SerializeToString(), []
    headers = [i for i, byte in enumerate(data) if byte < 128]
    for _ in range(1500):
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            spoilt[rng.choice(headers[:300] + headers[-200:])] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))
        try:
            read_all(bytes(spoilt))
            outcomes.append("read")
        except InputError as error:
            str(error).encode()
            outcomes.append(type(error.__cause__) is DecodeError)
    assert outcomes.count("read") > 50
    assert outcomes.count(False) > 50, "not only the parser refuses"
