"""Import, pass by pass, on small graphs as exporters write them. Oracle: ONNX Runtime on the file as given."""

import numpy as np
import onnx
import pytest
from import_graphs import (
    CLASSES,
    SIDE,
    WIDTH,
    attention_opset23,
    batch_norm_over_batch,
    calls_itself,
    class_token,
    constant_if,
    custom_operator,
    data_if,
    defaults_as_inputs,
    fixed_batch,
    float_nhwc,
    free_batch_broken,
    free_sizes,
    local_function,
    loop,
    masked,
    pixels_inside,
    plain,
    resized,
    run,
    save,
    several_outputs,
    shuffled,
    typed,
    weight_after,
    windows,
    zip_map,
)
from onnx.reference import ReferenceEvaluator

from calib.errors import GraphError, UsageError
from calib.graph import infer_types, load_graph, opset_version
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.imported import ImportOptions
from edge.onnx_import.measured_run import random_images
from edge.onnx_import.output_agreement import agreement_db

NOTHING = ImportOptions()


def imported(model, folder, options=NOTHING):
    return import_onnx(save(model, folder), options)


def same_outputs(model, result, count=3, given=None, tolerance=1e-5):
    """Whether the imported graph gives what the file gives, on more images than import itself tried."""
    images = random_images(result.image_input, count)
    expected = run(model, **{model.graph.input[0].name: images, **(given or {})})
    outputs = run(result.model, **{result.image_input.name: images})
    assert len(expected) == len(outputs)
    for a, b in zip(expected, outputs, strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
    return expected


def operators(result):
    return [node.op_type for node in result.model.graph.node]


def kinds(result):
    return {change.kind for change in result.changes}


WINDOWS = ["Conv", "Transpose", "Reshape", "Transpose", "Reshape", "Softmax", "Reshape", "ReduceMean", "MatMul"]
PLAIN = ["Conv", "Relu", "GlobalAveragePool", "Flatten", "MatMul"]
EXPORTED = {
    "initializers as inputs, IR 3": (lambda: defaults_as_inputs(3), PLAIN, "default"),
    "initializers as inputs, IR 8": (lambda: defaults_as_inputs(8), PLAIN, "default"),
    "weight after Transpose": (lambda: weight_after("Transpose"), PLAIN, "folded"),
    "weight after Identity": (lambda: weight_after("Identity"), PLAIN, "folded"),
    "weight after Cast": (lambda: weight_after("Cast"), PLAIN, "folded"),
    "weight after Reshape": (lambda: weight_after("Reshape"), PLAIN, "folded"),
    "weight in a Constant": (lambda: weight_after("Constant"), PLAIN, "opset"),
    "local functions": (local_function, [*PLAIN[:-1], "Add", "MatMul"], "inlined"),
    "If with a constant condition": (constant_if, [*PLAIN[:-1], "Relu", "Neg", "Add", "MatMul"], "branch"),
    "nested If": (lambda: constant_if(nested=True), [*PLAIN[:-1], "Neg", "Relu", "Add", "MatMul"], "branch"),
    "If on the image": (data_if, [*PLAIN, "ReduceMean", "Greater", "If"], "kept_in_float"),
    "Loop": (loop, [*PLAIN[:-1], "Loop", "MatMul"], "kept_in_float"),
    "shuffle of a free batch": (shuffled, ["Conv", "Reshape", "Transpose", "Reshape", "ReduceMean", "MatMul"], "folded"),
    "window partition": (windows, WINDOWS, "folded"),
    "Resize to computed sizes": (resized, ["Conv", "Resize"], "folded"),
    "class token": (class_token, None, "opset"),
    "pixels inside": (pixels_inside, ["Cast", "Div", "Transpose", *PLAIN], "opset"),
    "channels last": (float_nhwc, ["Transpose", *PLAIN], "opset"),
    "several outputs": (several_outputs, None, "opset"),
    "operator of ONNX Runtime": (lambda: custom_operator("com.microsoft"), [*PLAIN[:-1], "Gelu", "MatMul"], "kept_in_float"),
    "attention and RMS norm of opset 23": (attention_opset23, None, "expanded"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTED)
def test_what_exporters_write_is_imported(name, tmp_path):
    make, expected, kind = EXPORTED[name]
    model = make()
    result = imported(model, tmp_path)
    same_outputs(model, result)
    assert expected is None or operators(result) == expected
    assert kind in kinds(result)
    assert opset_version(result.model) == 20
    assert result.image_input.shape[0] is None
    names = [node.name for node in result.model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    onnx.checker.check_model(result.model, full_check=True)
    load_graph(save(result.model, tmp_path, "again.onnx"))  # what every later step does
    types = infer_types(result.model, 2)
    for node in result.model.graph.node:
        for tensor in node.output:
            assert types[tensor].shape is not None, node.name
            assert None not in types[tensor].shape, node.name


def test_a_second_import_changes_nothing(tmp_path):
    first = imported(windows(), tmp_path)
    second = import_onnx(save(first.model, tmp_path, "second.onnx"), NOTHING)
    assert second.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)
    assert second.changes == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_become_float32(dtype, tmp_path):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    result = imported(typed(kind), tmp_path)
    assert result.dtypes == (dtype,)
    assert result.image_input.dtype == "float32"
    stored = {tensor.data_type for tensor in result.model.graph.initializer}
    assert stored <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert "Cast" not in operators(result)
    images = random_images(result.image_input, 2)
    (expected,) = ReferenceEvaluator(typed(np.float64)).run(None, {"x": images.astype(np.float64)})
    (found,) = run(result.model, x=images)
    assert found.dtype == np.float32
    assert agreement_db(expected, found) > {"float16": 55, "bfloat16": 40, "float64": 120}[dtype]


def test_the_largest_float64_becomes_no_infinity(tmp_path):
    result = imported(typed(np.float64, mask=-1.8e308 / 1.01), tmp_path)
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer]
    assert all(np.isfinite(values).all() for values in stored)


def test_shape_arithmetic_in_float64_is_exact(tmp_path):
    """floor(size * 0.7 in FP64), which FP32 would round to another whole number."""
    from import_graphs import GraphWriter

    g = GraphWriter()
    height = g.add("Cast", g.add("Gather", g.add("Shape", "x"), g.const(2, np.int64)), to=onnx.TensorProto.DOUBLE)
    end = g.add("Cast", g.add("Floor", g.add("Mul", height, g.const(0.99999999 / 2, np.float64))), to=onnx.TensorProto.INT64)
    cut = g.add("Slice", "x", g.ints(0), g.add("Unsqueeze", end, g.ints(0)), g.ints(2))
    model = g.model(cut)
    result = imported(model, tmp_path)
    assert operators(result) == ["Slice"]
    assert same_outputs(model, result)[0].shape[2] == SIDE // 2 - 1


# inputs


def test_free_sizes_are_pinned_by_an_option(tmp_path):
    model = free_sizes()
    result = imported(model, tmp_path, ImportOptions({"x": (1, 3, SIDE, 2 * SIDE)}))
    assert result.image_input.shape == (None, 3, SIDE, 2 * SIDE)
    same_outputs(model, result)


@pytest.mark.parametrize("unknown", ["h", "?", -1, None])
def test_free_sizes_need_the_option(unknown, tmp_path):
    with pytest.raises(GraphError, match=r"(?s)leaves sizes of its input free.*axis 2.*axis 3.*--input-shape x=1x3x224x224"):
        imported(free_sizes(unknown), tmp_path)


@pytest.mark.parametrize("shape", [(1, 3, 32), (1, 4, 16, 16), (1, 3, 16, 16, 1)])
def test_a_shape_that_does_not_fit_is_refused(shape, tmp_path):
    with pytest.raises(UsageError, match=r"(?s)does not fit the input.*\?x3x\?x\?"):
        imported(free_sizes(), tmp_path, ImportOptions({"x": shape}))


def test_unknown_inputs_are_refused_by_name(tmp_path):
    for options in (ImportOptions({"pixels": (1, 3, 16, 16)}), ImportOptions(constant_inputs={"pixels": np.ones(3)})):
        with pytest.raises(UsageError, match=r"(?s)names an input that the graph does not have.*pixels.*allowed: x"):
            imported(plain(), tmp_path, options)


@pytest.mark.parametrize("value", [np.array(1), np.ones((1, WIDTH), np.int64), np.ones((4, WIDTH), np.float64)])
def test_a_constant_input_is_fixed(value, tmp_path):
    model = masked()
    result = imported(model, tmp_path, ImportOptions(constant_inputs={"mask": value}))
    assert [v.name for v in result.model.graph.input] == ["x"]
    same_outputs(model, result, given={"mask": np.ones((3, WIDTH), np.int64)})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.ones(WIDTH, np.int64), "does not fit the input"),
        (np.ones((1, WIDTH + 1), np.int64), "does not fit the input"),
        (np.arange(2 * WIDTH).reshape(2, WIDTH), "one for all images"),
        (np.full((1, WIDTH), 0.5), "does not fit the input's type"),
        (np.full((1, WIDTH), np.nan), "not finite"),
        (np.array([["a"] * WIDTH]), "not finite numbers"),
    ],
)
def test_a_constant_that_does_not_fit_is_refused(value, why, tmp_path):
    with pytest.raises(UsageError, match=why):
        imported(masked(), tmp_path, ImportOptions(constant_inputs={"mask": value}))


def test_a_second_input_needs_a_value(tmp_path):
    with pytest.raises(GraphError, match=r"(?s)only one input may vary.*mask int64 \?x8.*--constant-input mask=FILE.npy"):
        imported(masked(), tmp_path)


def test_layout_and_type_of_the_image_are_stated(tmp_path):
    for make, dtype, layout in ((plain, "float32", "nchw"), (float_nhwc, "float32", "nhwc"), (pixels_inside, "uint8", "nhwc")):
        image = imported(make(), tmp_path).image_input
        assert (image.name, image.dtype, image.layout) == ("x", dtype, layout)


def test_outputs_keep_order_and_names(tmp_path):
    model = several_outputs()
    result = imported(model, tmp_path)
    assert [v.name for v in result.model.graph.output] == [v.name for v in model.graph.output]
    dims = [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in result.model.graph.output]
    assert dims == [["batch", CLASSES], ["batch", WIDTH, 4, 4]]


# the batch


def test_a_fixed_batch_is_freed(tmp_path):
    model = fixed_batch(4)
    result = imported(model, tmp_path)
    assert result.image_input.shape[0] is None
    images = random_images(result.image_input, 4)
    np.testing.assert_allclose(run(result.model, x=images)[0], run(model, x=images)[0], rtol=1e-5)
    assert run(result.model, x=images[:3])[0].shape == (3, CLASSES)


def test_a_fixed_batch_of_one_stays(tmp_path):
    assert imported(fixed_batch(1), tmp_path).image_input.shape[0] == 1


@pytest.mark.parametrize("make", [free_batch_broken, batch_norm_over_batch])
def test_a_free_batch_that_changes_answers_becomes_one(make, tmp_path):
    result = imported(make(), tmp_path)
    assert result.image_input.shape[0] == 1
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    (change,) = [change for change in result.changes if change.kind == "batch"]
    assert "fixed to 1" in change.detail


# what is refused


def without_weight():
    model = plain()
    del model.graph.initializer[1]
    return model


def cyclic():
    model = plain()
    model.graph.node[1].input[0] = model.graph.node[3].output[0]
    return model


def computed_twice():
    model = plain()
    model.graph.node.add().CopyFrom(model.graph.node[1])
    return model


def wrong_dtype():
    model = plain()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def size(value):
    model = plain()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = value
    return model


def from_the_future():
    model = plain()
    model.opset_import[0].version = 90
    return model


def no_images():
    model = plain()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    del dims[1:]
    return model


REFUSED = {
    "missing initializer": (without_weight, "reads a tensor that nothing computes", "matmul_4"),
    "cycle": (cyclic, "has a cycle", "relu_1"),
    "computed twice": (computed_twice, "computed twice", "relu_1_out"),
    "dtypes swapped": (wrong_dtype, "ONNX Runtime refuses the graph", "conv_0"),
    "size 0": (lambda: size(0), "impossible size", "x"),
    "size 2**40": (lambda: size(2**40), "impossible size", "x"),
    "function that calls itself": (calls_itself, "a local function calls itself", "Head"),
    "custom operator": (custom_operator, "operators that ONNX Runtime cannot run", "com.example.Strange (node strange_4)"),
    "sequence output": (zip_map, "an output of the graph is not a tensor", "map is a sequence"),
    "opset of the future": (from_the_future, "too old or too new", "opset 90"),
    "not a batch": (no_images, "not a batch", "x float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_named(name, tmp_path):
    make, what, named = REFUSED[name]
    with pytest.raises(GraphError) as caught:
        imported(make(), tmp_path)
    assert what in str(caught.value)
    assert named in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_nodes_in_another_order_are_sorted(tmp_path):
    model = plain()
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    result = imported(model, tmp_path)
    assert operators(result) == PLAIN
    same_outputs(plain(), result)


def test_equal_names_of_nodes_become_unique(tmp_path):
    model = plain()
    for node in model.graph.node:
        node.name = "same"
    assert [node.name for node in imported(model, tmp_path).model.graph.node] == ["same", *(f"same_{i}" for i in range(2, 6))]


def test_foreign_bytes_are_recognised(tmp_path):
    pointer = tmp_path / "net.onnx"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(GraphError, match=r"(?s)Git LFS pointer.*next: git lfs pull"):
        import_onnx(pointer, NOTHING)
    pointer.write_text("<!DOCTYPE html><html>")
    with pytest.raises(GraphError, match="an HTML page"):
        import_onnx(pointer, NOTHING)
    with pytest.raises(GraphError, match="file not found"):
        import_onnx(tmp_path / "absent.onnx", NOTHING)
