"""Small ONNX files as exporters write them, each with one thing that import has to deal with; 3 x 16 x 16 images."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, WIDTH, CLASSES = 16, 8, 5
FLOAT = TensorProto.FLOAT


class GraphWriter:
    """Collects nodes and constants; `add` and `const` return the name of the tensor."""

    def __init__(self, dtype=np.float32):
        self.rng = np.random.default_rng(7)
        self.dtype = dtype
        self.nodes, self.weights = [], []

    def add(self, op, *inputs, outputs=1, **attributes):
        name = f"{op.lower()}_{len(self.nodes)}"
        names = [f"{name}_out"] if outputs == 1 else [f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def const(self, value, dtype=None):
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype or self.dtype), f"const_{len(self.weights)}"))
        return self.weights[-1].name

    def ints(self, *values):
        return self.const(values, np.int64)

    def random(self, *shape):
        return self.const(self.rng.standard_normal(shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1))

    def conv(self, x, inputs=3, outputs=WIDTH, kernel=4, stride=4):
        return self.add(
            "Conv", x, self.random(outputs, inputs, kernel, kernel), kernel_shape=[kernel] * 2, strides=[stride] * 2
        )

    def pooled(self, x="x"):
        """(n, 3, h, w) -> (n, WIDTH)"""
        return self.add("Flatten", self.add("GlobalAveragePool", self.add("Relu", self.conv(x))))

    def tokens(self, x="x"):
        """(n, 3, 16, 16) -> (n, 16, WIDTH)"""
        return self.add("Transpose", self.add("Reshape", self.conv(x), self.ints(0, WIDTH, -1)), perm=[0, 2, 1])

    def head(self, features, width=WIDTH):
        return self.add("MatMul", features, self.random(width, CLASSES))

    def model(self, *outputs, takes=None, opset=17, ir=8, functions=(), domains=(), kind=FLOAT):
        takes = takes or {"x": [kind, "n", 3, SIDE, SIDE]}
        inputs = [helper.make_tensor_value_info(name, element, sizes) for name, (element, *sizes) in takes.items()]
        results = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", inputs, results, self.weights)
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions)


def plain(opset=17, **options):
    g = GraphWriter()
    return g.model(g.head(g.pooled()), opset=opset, **options)


def defaults_as_inputs(ir):
    model = plain(13, ir=ir)
    model.graph.input.extend(helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in model.graph.initializer)
    return model


def weight_after(op):
    """A weight that reaches its layer through a node that only rearranges it."""
    g = GraphWriter()
    weight = g.rng.standard_normal((WIDTH, CLASSES)).astype(np.float16 if op == "Cast" else np.float32)
    weight, extra = {
        "Transpose": (weight.T, ((), {"perm": [1, 0]})),
        "Identity": (weight, ((), {})),
        "Cast": (weight, ((), {"to": FLOAT})),
        "Reshape": (weight.reshape(2, -1), ((g.ints(WIDTH, CLASSES),), {})),
        "Constant": (weight, ((), {})),
    }[op]
    features = g.pooled()
    if op == "Constant":
        stored = g.add("Constant", value=numpy_helper.from_array(weight, "w"))
    else:
        stored = g.add(op, g.const(weight, weight.dtype), *extra[0], **extra[1])
    return g.model(g.add("MatMul", features, stored))


def local_function():
    """The head is a function, which calls another one."""
    g = GraphWriter()
    node, opsets = helper.make_node, [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Scaled", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets)
    nodes = [node("Scaled", ["a"], ["s"], domain="local"), node("MatMul", ["s", "w"], ["b"])]
    outer = helper.make_function("local", "Head", ["a", "w"], ["b"], nodes, opsets)
    out = g.add("Head", g.pooled(), g.random(WIDTH, CLASSES), domain="local")
    return g.model(out, functions=[outer, inner], domains=["local"])


def calls_itself():
    model = local_function()
    model.functions[1].node.append(helper.make_node("Head", ["a", "a"], ["unread"], domain="local"))
    return model


def branch(*nodes, out, initializers=()):
    return helper.make_graph(list(nodes), "branch", [], [helper.make_tensor_value_info(out, FLOAT, None)], list(initializers))


def constant_if(nested=False):
    """`if rank == 4`, as TorchScript writes squeeze: both branches use the same inner names."""
    g = GraphWriter()
    features = g.pooled()
    count = g.add("Size", g.add("Shape", "x"))
    then = branch(helper.make_node("Relu", [features], ["inner"], name="same"), out="inner")
    other = branch(helper.make_node("Neg", [features], ["inner"], name="same"), out="inner")
    condition = g.add("Equal", count, g.const(4, np.int64))
    first = g.add("If", condition, then_branch=then, else_branch=other)
    second = g.add("If", g.add("Not", condition), then_branch=then, else_branch=other)
    if nested:
        then = branch(
            helper.make_node("If", [condition], ["chosen"], name="nested", then_branch=then, else_branch=other), out="chosen"
        )
        first = g.add("If", condition, then_branch=then, else_branch=other)
    return g.model(g.head(g.add("Add", first, second)))


def data_if():
    """The condition depends on the image, and a branch reads the weight of the head."""
    g = GraphWriter()
    features, weight = g.pooled(), g.random(WIDTH, CLASSES)
    then = branch(helper.make_node("MatMul", [features, weight], ["t"]), out="t")
    other = branch(
        helper.make_node("Mul", ["m", "two"], ["e"]), out="e", initializers=[numpy_helper.from_array(np.float32(2), "two")]
    )
    g.nodes.append(helper.make_node("MatMul", [features, weight], ["m"], name="head"))
    condition = g.add("Greater", g.add("ReduceMean", "x", keepdims=0), g.const(0.0))
    return g.model(g.add("If", condition, then_branch=then, else_branch=other))


def loop(iterations=3):
    """A Loop that doubles the features."""
    g = GraphWriter()
    features = g.pooled()
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "v"], ["v2"]), helper.make_node("Identity", ["c"], ["c2"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", FLOAT, None)],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), helper.make_tensor_value_info("v2", FLOAT, None)],
    )  # fmt: skip
    doubled = g.add("Loop", g.const(iterations, np.int64), g.const(True, np.bool_), features, body=body)
    return g.model(g.head(doubled))


def typed(dtype, mask=None):
    """The whole network in another float type; `mask` is added to the features."""
    g = GraphWriter(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    features = g.pooled()
    if mask is not None:
        features = g.add("Max", features, g.const(mask))
    scaled = g.add("Mul", features, g.add("Cast", g.const(2.0, np.float32), to=kind))
    return g.model(g.head(scaled), kind=kind)


def shuffled():
    """Channel shuffle with all sizes taken from Shape, as TorchScript writes it for a free batch."""
    g = GraphWriter()
    y = g.conv("x")

    def size(axis):
        return g.add("Unsqueeze", g.add("Gather", g.add("Shape", y), g.const(axis, np.int64)), g.ints(0))

    half = g.add("Div", size(1), g.ints(2))
    target = g.add("Concat", size(0), g.ints(2), half, size(2), size(3), axis=0)
    swapped = g.add("Transpose", g.add("Reshape", y, target), perm=[0, 2, 1, 3, 4])
    back = g.add("Reshape", swapped, g.add("Concat", size(0), g.ints(-1), size(2), size(3), axis=0))
    return g.model(g.head(g.add("ReduceMean", back, axes=[2, 3], keepdims=0)))


def windows():
    """Window partition and its reverse, whose batch is computed by a division."""
    g = GraphWriter()
    y = g.add("Transpose", g.conv("x"), perm=[0, 2, 3, 1])  # (n, 4, 4, c)
    batch = g.add("Unsqueeze", g.add("Gather", g.add("Shape", y), g.const(0, np.int64)), g.ints(0))
    grid = g.add("Concat", batch, g.ints(2, 2, 2, 2, WIDTH), axis=0)
    parts = g.add("Reshape", g.add("Transpose", g.add("Reshape", y, grid), perm=[0, 1, 3, 2, 4, 5]), g.ints(-1, 4, WIDTH))
    mixed = g.add("Softmax", parts, axis=1)
    count = g.add("Gather", g.add("Shape", mixed), g.const(0, np.int64))
    again = g.add("Unsqueeze", g.add("Div", count, g.const(4, np.int64)), g.ints(0))
    whole = g.add("Reshape", mixed, g.add("Concat", again, g.ints(2, 2, 2, 2, -1), axis=0))
    return g.model(g.head(g.add("ReduceMean", whole, axes=[1, 2, 3, 4], keepdims=0)))


def resized():
    """Resize to sizes from Shape."""
    g = GraphWriter()
    y = g.conv("x")
    shape = g.add("Slice", g.add("Shape", y), g.ints(0), g.ints(2), g.ints(0))
    sizes = g.add("Concat", shape, g.ints(10, 6), axis=0)
    return g.model(g.add("Resize", y, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel"))


def class_token():
    """A token expanded to the batch, before the others."""
    g = GraphWriter()
    tokens = g.tokens()
    batch = g.add("Unsqueeze", g.add("Gather", g.add("Shape", "x"), g.const(0, np.int64)), g.ints(0))
    token = g.add(
        "Expand", g.const(g.rng.standard_normal((1, 1, WIDTH))), g.add("Concat", batch, g.ints(-1 % 2, WIDTH), axis=0)
    )
    joined = g.add("Concat", token, tokens, axis=1)
    return g.model(g.head(g.add("Gather", g.add("Softmax", joined, axis=1), g.const(0, np.int64), axis=1)))


def masked():
    """A second input, int64."""
    g = GraphWriter()
    features = g.add("Mul", g.pooled(), g.add("Cast", "mask", to=FLOAT))
    return g.model(g.head(features), takes={"x": [FLOAT, "n", 3, SIDE, SIDE], "mask": [TensorProto.INT64, "n", WIDTH]})


def pixels_inside():
    """uint8 pixels, channels last; the preprocessing is in the graph."""
    g = GraphWriter()
    x = g.add("Transpose", g.add("Div", g.add("Cast", "x", to=FLOAT), g.const(255.0)), perm=[0, 3, 1, 2])
    return g.model(g.head(g.pooled(x)), takes={"x": [TensorProto.UINT8, "n", SIDE, SIDE, 3]})


def float_nhwc():
    g = GraphWriter()
    x = g.add("Transpose", "x", perm=[0, 3, 1, 2])
    return g.model(g.head(g.pooled(x)), takes={"x": [FLOAT, "n", SIDE, SIDE, 3]})


def free_sizes(unknown=None):
    return plain(takes={"x": [FLOAT, "n", 3, unknown or "h", unknown or "w"]})


def fixed_batch(size, reshaped=True):
    """The batch is written into the input and into a Reshape."""
    g = GraphWriter()
    features = g.pooled()
    if reshaped:
        features = g.add("Reshape", features, g.ints(size, WIDTH))
    return g.model(g.head(features), takes={"x": [FLOAT, size, 3, SIDE, SIDE]})


def free_batch_broken():
    """The batch is said to be free, but a Reshape demands 1."""
    g = GraphWriter()
    return g.model(g.head(g.add("Reshape", g.pooled(), g.ints(1, WIDTH))))


def batch_norm_over_batch():
    """Answers depend on the other images."""
    g = GraphWriter()
    features = g.pooled()
    return g.model(g.head(g.add("Sub", features, g.add("ReduceMean", features, axes=[0], keepdims=1))))


def several_outputs():
    g = GraphWriter()
    y = g.conv("x")
    return g.model(g.head(g.add("Flatten", g.add("GlobalAveragePool", y))), g.add("Relu", y))


def attention_opset23():
    g = GraphWriter()
    tokens = g.tokens()
    q, k, v = (g.add("MatMul", tokens, g.random(WIDTH, WIDTH)) for _ in range(3))
    mixed = g.add("Attention", q, k, v, q_num_heads=2, kv_num_heads=2)
    normed = g.add("RMSNormalization", mixed, g.random(WIDTH), axis=-1)
    return g.model(g.head(g.add("ReduceMean", normed, g.ints(1), keepdims=0)), opset=23, ir=11)


def custom_operator(domain="com.example"):
    g = GraphWriter()
    op = "Gelu" if domain == "com.microsoft" else "Strange"
    return g.model(g.head(g.add(op, g.pooled(), domain=domain)), domains=[domain])


def zip_map():
    model = plain()
    model.graph.output.append(
        helper.make_value_info("map", helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None)))
    )
    model.graph.node.append(helper.make_node("SequenceConstruct", [model.graph.output[0].name], ["map"]))
    return model


def run(model, **inputs):
    """All outputs, by ONNX Runtime."""
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def save(model, folder, name="net.onnx"):
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def save_external(model, folder, location="net.onnx.data"):
    path = folder / "net.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path
