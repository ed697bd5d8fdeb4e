"""Oracle: ONNX Runtime on the untouched graph cut at each tensor, without any graph optimization."""

import hashlib
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper as h

from calib.calibration_table import RangeShift
from calib.calibrators import METHODS
from calib.collect import LARGEST_SETTLED_SHIFT, CollectConfig, collect_table, observe, range_shift_warning
from calib.errors import DataError, GraphError, InputError, UsageError
from calib.qdq_placement import QuantPlan, QuantPoint, plan_quantization

MINMAX = CollectConfig("minmax")


def untapped(path, tensor, images):
    """Values of one tensor, computed by the graph that ends there."""
    if tensor == "image":
        return images
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(h.make_empty_tensor_value_info(tensor))
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"image": images})[0]


def test_every_tap_equals_the_tensor_of_the_untapped_graph(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    table = collect_table(tiny_path, np.split(images, 8), plan, data_sha256="d", config=MINMAX)
    assert tuple(table.tensors) == plan.activations
    for name, entry in table.tensors.items():
        values = untapped(tiny_path, name, images)
        assert entry.amax == pytest.approx(np.abs(values).max(), rel=1e-5), name
        assert entry.scale * 127 == pytest.approx(entry.amax, rel=2**-9)
    assert (table.images, table.method, table.data_sha256, table.synthetic) == (64, "minmax", "d", False)
    assert table.onnx_sha256 == hashlib.sha256(tiny_path.read_bytes()).hexdigest()


def test_histograms_count_every_element(tiny, tiny_path, images):
    halves, _ = observe(tiny_path, [images], plan_quantization(tiny), CollectConfig())
    assert sum(halves.images) == 64
    for name, histogram in halves.total().items():
        assert histogram.size == untapped(tiny_path, name, images).size


@pytest.mark.parametrize("method", METHODS)
def test_batching_does_not_change_the_table(tiny, tiny_path, images, method):
    plan, config = plan_quantization(tiny), CollectConfig(method)
    tables = [
        collect_table(tiny_path, parts, plan, data_sha256="d", config=config)
        for parts in ([images], np.split(images, [5, 40]), np.split(images, 64))
    ]
    for name, entry in tables[0].tensors.items():
        for other in tables[1:]:  # kernels may sum in another order for another batch size
            assert other.tensors[name].amax == pytest.approx(entry.amax, rel=0.05 if method != "minmax" else 1e-5)
    assert collect_table(tiny_path, [images], plan, data_sha256="d", config=config) == tables[0]


def test_progress_and_stamp(tiny, tiny_path, images):
    seen = []
    config = CollectConfig("minmax", synthetic=True)
    table = collect_table(
        tiny_path, np.split(images, 4), plan_quantization(tiny), data_sha256="", config=config, progress=seen.append
    )
    assert seen == [16, 32, 48, 64]
    assert table.synthetic


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_batches_in_any_order_give_the_same_table(tiny, tiny_path, images, threads):
    plan, batches = plan_quantization(tiny), np.split(images, [3, 10, 31, 40])
    config = CollectConfig(threads=threads)
    tables = [
        collect_table(tiny_path, [batches[i] for i in order], plan, data_sha256="d", config=config)
        for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 3, 1))
    ]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].range_shift is not None
    assert collect_table(tiny_path, [*batches[:4], images[:24]], plan, data_sha256="d", config=config) != tables[0]


@pytest.mark.parametrize("at_once", [2, 5])
def test_batches_at_once_give_the_same_table_in_the_same_order(tiny, tiny_path, images, at_once):
    plan, batches, seen = plan_quantization(tiny), np.split(images, [3, 10, 31, 40]), []
    tables = [
        collect_table(tiny_path, batches, plan, data_sha256="d", config=CollectConfig(at_once=count), progress=seen.append)
        for count in (1, at_once)
    ]
    assert tables[0] == tables[1]
    assert seen == 2 * [3, 10, 31, 40, 64]


def test_a_bad_batch_among_several_at_once_is_named(tiny, tiny_path, images):
    batches = np.split(images, 8)
    batches[5][1, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"NaN or infinity in the images[\s\S]*batch after image 40"):
        collect_table(tiny_path, batches, plan_quantization(tiny), data_sha256="d", config=CollectConfig(at_once=3))


@pytest.mark.parametrize("wrong", [{"at_once": 0}, {"threads": 0}, {"min_images": 0}])
def test_invalid_counts_are_refused(wrong):
    with pytest.raises(UsageError, match=r"at_once|threads|min_images"):
        CollectConfig(**wrong)


def test_the_range_shift_is_that_of_two_halves_of_the_images(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    table = collect_table(tiny_path, np.split(images, 4), plan, data_sha256="d", config=MINMAX)
    odd = np.array([zlib.crc32(image.tobytes()) % 2 == 1 for image in images])
    by_hand = {}
    for name in plan.activations:
        values = untapped(tiny_path, name, images)
        rows = odd if len(values) == len(images) else np.repeat(odd, len(values) // len(images))
        one, other = (float(np.abs(values[chosen]).max()) for chosen in (rows, ~rows))
        by_hand[name] = abs(one - other) / max(one, other)
    assert table.range_shift.median == pytest.approx(np.median(list(by_hand.values())), rel=1e-4)
    assert table.range_shift.largest == pytest.approx(max(by_hand.values()), rel=1e-4)
    assert by_hand[table.range_shift.tensor] == max(by_hand.values())


def test_more_images_give_a_smaller_range_shift(tiny, tiny_path):
    """The control of the measure: ranges of 32 images move more than those of 2,048 of the same kind."""
    plan = plan_quantization(tiny)
    few, many = (np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32) for count in (32, 2048))
    shifts = [
        collect_table(tiny_path, [shown], plan, data_sha256="d", config=CollectConfig("percentile:99.9")).range_shift.median
        for shown in (few, many)
    ]
    assert shifts[0] > 3 * shifts[1] > 0


def test_a_warning_is_given_when_ranges_have_not_settled(tiny, tiny_path, images):
    table = collect_table(tiny_path, [images], plan_quantization(tiny), data_sha256="d", config=MINMAX)
    moving = replace(table, range_shift=RangeShift(2 * LARGEST_SETTLED_SHIFT, 0.5, "kv"))
    sentence = range_shift_warning(moving)
    for part in (
        "64 images",
        f"{2 * LARGEST_SETTLED_SHIFT:.1%}",
        f"at most {LARGEST_SETTLED_SHIFT:.0%}",
        "50% at kv",
        "more images",
    ):
        assert part in sentence
    assert range_shift_warning(replace(table, range_shift=RangeShift(LARGEST_SETTLED_SHIFT, 0.5, "kv"))) is None
    assert range_shift_warning(replace(table, range_shift=None)) is None


def test_the_preprocessing_is_stamped(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    config = replace(MINMAX, preprocess_sha256="p")
    assert collect_table(tiny_path, [images], plan, data_sha256="d", config=config).preprocess_sha256 == "p"
    assert collect_table(tiny_path, [images], plan, data_sha256="d", config=MINMAX).preprocess_sha256 == ""


def test_too_few_images_are_refused(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    for batches in ([images[:31]], []):
        with pytest.raises(DataError, match=r"too few[\s\S]*at least 32[\s\S]*--calib-data"):
            collect_table(tiny_path, batches, plan, data_sha256="d", config=MINMAX)
    assert (
        collect_table(tiny_path, [images[:2]], plan, data_sha256="d", config=CollectConfig("minmax", min_images=2)).images == 2
    )


@pytest.mark.parametrize("method", METHODS)
def test_bounds_that_are_not_exceeded_change_no_scale(tiny, tiny_path, images, method):
    plan, config = plan_quantization(tiny), CollectConfig(method)
    free = collect_table(tiny_path, [images], plan, data_sha256="d", config=config)
    largest = {name: float(np.abs(untapped(tiny_path, name, images)).max()) for name in plan.activations}
    for factor in (1.001, 100):
        bounds = {name: factor * value for name, value in largest.items()} | {"no tensor of the plan": 0.0}
        bounded = collect_table(tiny_path, [images], plan, data_sha256="d", bounds=bounds, config=config)
        assert {n: (t.amax, t.scale, t.source) for n, t in bounded.tensors.items()} == {
            n: (t.amax, t.scale, "data") for n, t in free.tensors.items()
        }
        assert {n: t.bound for n, t in bounded.tensors.items()} == {n: factor * largest[n] for n in free.tensors}
    assert {entry.source for entry in free.tensors.values()} == {"data"}


def test_a_bound_that_the_images_exceed_is_refused_with_the_tensor_named(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    largest = float(np.abs(untapped(tiny_path, "xn", images)).max())
    with pytest.raises(InputError, match=rf"exceeds the bound that was proven[\s\S]*tensor xn[\s\S]*found: {str(largest)[:5]}"):
        collect_table(tiny_path, [images], plan, data_sha256="d", bounds={"xn": largest / 2}, config=MINMAX)
    assert collect_table(tiny_path, [images], plan, data_sha256="d", bounds={"xn": 2 * largest}, config=MINMAX).images == 64


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_images_are_refused(tiny, tiny_path, images, bad):
    images[40, 0, 0, 0] = bad
    with pytest.raises(DataError, match="batch after image 32"):
        collect_table(tiny_path, np.split(images, 2), plan_quantization(tiny), data_sha256="d", config=MINMAX)


def test_a_nan_inside_the_network_is_refused_with_the_tensor_named(tiny, images, tmp_path):
    for tensor in tiny.graph.initializer:
        if tensor.name == "w_v":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((8, 8), np.inf, np.float32), "w_v"))
    onnx.save(tiny, tmp_path / "bad.onnx")
    with pytest.raises(DataError, match="tensor v1"):
        collect_table(tmp_path / "bad.onnx", [images], plan_quantization(tiny), data_sha256="d", config=MINMAX)


def test_a_tensor_that_is_always_zero_is_refused_with_its_name(tiny, tiny_path, images):
    with pytest.raises(DataError, match=r"tensor image[\s\S]*amax 0"):
        collect_table(tiny_path, [0 * images], plan_quantization(tiny), data_sha256="d", config=MINMAX)


def test_arrays_that_the_graph_does_not_take_are_refused(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    with pytest.raises(DataError, match="float64"):
        collect_table(tiny_path, [images.astype(float)], plan, data_sha256="d", config=MINMAX)
    with pytest.raises(DataError, match="does not take these images"):
        collect_table(tiny_path, [images[:, :2]], plan, data_sha256="d", config=MINMAX)


def test_a_foreign_plan_is_refused(tiny_path, images):
    plan = QuantPlan((QuantPoint("n", 0, "elsewhere", "activation"),))
    with pytest.raises(GraphError, match=r"another graph[\s\S]*elsewhere"):
        collect_table(tiny_path, [images], plan, data_sha256="d", config=MINMAX)


@pytest.mark.parametrize("spoil", [lambda data: data[:0], lambda data: data[:-40], lambda data: b"\xff" + data])
def test_files_without_a_graph_are_refused(tiny, tiny_path, images, spoil):
    tiny_path.write_bytes(spoil(tiny_path.read_bytes()))
    with pytest.raises(GraphError, match="not an ONNX file"):
        collect_table(tiny_path, [images], plan_quantization(tiny), data_sha256="d", config=MINMAX)
    tiny_path.unlink()
    with pytest.raises(GraphError, match="file not found"):
        collect_table(tiny_path, [images], plan_quantization(tiny), data_sha256="d", config=MINMAX)


def test_a_graph_that_onnx_runtime_refuses_is_an_input_error(tiny, tiny_path, images):
    plan = plan_quantization(tiny)
    tiny.graph.node[1].op_type = "Gelato"
    onnx.save(tiny, tiny_path)
    with pytest.raises(GraphError, match=r"refuses the graph[\s\S]*Gelato"):
        collect_table(tiny_path, [images], plan, data_sha256="d", config=MINMAX)


def test_weights_in_other_files_are_refused(tiny, images, tmp_path):
    onnx.save(tiny, tmp_path / "t.onnx", save_as_external_data=True, size_threshold=16)
    with pytest.raises(GraphError, match="outside the ONNX file"):
        collect_table(tmp_path / "t.onnx", [images], plan_quantization(tiny), data_sha256="d", config=MINMAX)


def test_configuration_is_validated():
    with pytest.raises(UsageError, match="unknown calibration method"):
        CollectConfig("best")
    for wrong in ({"threads": 0}, {"min_images": 0}):
        with pytest.raises(UsageError, match="positive"):
            CollectConfig("minmax", **wrong)


MEMORY = """
import sys
import numpy as np, onnx
from pathlib import Path
from calib.collect import CollectConfig, observe
from calib.qdq_placement import plan_quantization

images = np.ones((64, 3, 8, 8), np.float32)
path = Path(sys.argv[1])
kept = []
for batches in (20, 400):
    plan = plan_quantization(onnx.load(path))
    halves, _ = observe(path, (images for _ in range(batches)), plan, CollectConfig())
    kept.append(np.ones(int(sys.argv[2]) * batches, np.uint8))
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_memory_does_not_grow_with_the_number_of_images(tiny, tiny_path, images):
    stored = sum(untapped(tiny_path, name, images).nbytes for name in plan_quantization(tiny).activations)

    def growth_kib(leak_per_batch):
        command = [sys.executable, "-c", MEMORY, str(tiny_path), str(leak_per_batch)]
        few, many = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return int(many) - int(few)

    assert growth_kib(0) < 400 * stored / 1024 / 4
    assert growth_kib(stored) > 400 * stored / 1024 / 2, "a calibrator that keeps what it sees is caught"
