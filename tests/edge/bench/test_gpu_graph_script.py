"""scripts/bench/gpu_graph.py on the CPU: a typed graph in torch. Oracles: the emulation, numpy's float16 and int64."""

import numpy as np
import onnx
import pytest
import torch
from for_all import for_all
from onnx import numpy_helper

from calib.collect import CollectConfig, collect_table
from calib.errors import InputError
from calib.metrics import sqnr_db
from calib.qdq_placement import plan_quantization
from calib.qdq_writer import insert_qdq
from edge.runtime.ort_runner import emulated_runner
from edge.tasks.classification.logits import Logits, write_logits
from engines.typed_graph import type_graph
from scripts.bench import gpu_graph

AGREE_DB = {"fp16": 55.0, "int8": 30.0}  # 11 bits leave 66 dB for one rounding; INT8 codes may fall on either side of a half


@pytest.fixture(scope="module")
def typed(tiny_graph, tiny_images, tmp_path_factory):
    """Precision -> the tiny network's typed graph, and how many layers of it run in INT8."""
    path = tmp_path_factory.mktemp("typed") / "model.onnx"
    path.write_bytes(tiny_graph.SerializeToString())
    plan = plan_quantization(tiny_graph)
    table = collect_table(path, [tiny_images], plan, data_sha256="", config=CollectConfig("minmax", min_images=1))
    return {
        "fp16": (type_graph(tiny_graph), 0),
        "int8": (type_graph(insert_qdq(tiny_graph, table, plan)), len(plan.nodes)),
    }


def in_torch(model, images):
    with torch.inference_mode():
        return gpu_graph.Graph(model, "cpu")(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("precision", AGREE_DB)
def test_torchs_kernels_agree_with_the_emulation(typed, tiny_images, tmp_path, monkeypatch, precision):
    model, layers = typed[precision]
    seen, real = [], gpu_graph.in_int8
    monkeypatch.setattr(gpu_graph, "in_int8", lambda operator, *rest: (seen.append(operator), real(operator, *rest))[1])
    (emulated,) = emulated_runner(model, tmp_path)(tiny_images)
    found = in_torch(model, tiny_images)
    assert len(seen) == layers
    assert sqnr_db(emulated, found) > AGREE_DB[precision]
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    (head,) = [node for node in wrong.graph.node if node.op_type == "Gemm"]
    bias = next(i for i in wrong.graph.initializer if i.name == head.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float16(0.5), bias.name))
    assert sqnr_db(emulated, in_torch(wrong, tiny_images)) < AGREE_DB[precision], "the control: another bias"


@pytest.mark.parametrize("shape", [((3, 40, 16), (16, 24)), ((2, 5, 16), (2, 16, 3)), ((1, 768), (768, 10))])
def test_products_of_codes_are_exact(shape):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-127, 128, size, dtype=np.int8) for size in shape)
    found = gpu_graph.whole_product(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64))


@for_all(length=[1, 2, 7, 48])
def test_a_norm_rounds_after_every_addition(length):
    x = np.random.default_rng(length).normal(size=(4, length, 3)).astype(np.float16)
    terms = list(np.moveaxis(x * x, 1, 0))
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [terms[i] + terms[half + i] for i in range(half)] + terms[2 * half :]
    found = gpu_graph.l2(torch.from_numpy(x), torch.tensor([1])).numpy()
    np.testing.assert_array_equal(found[:, 0], np.sqrt(terms[0]))


def test_a_number_halfway_goes_to_the_even_code_and_the_largest_stay():
    x = torch.tensor([0.25, 0.75, -0.25, 1e4, -1e4], dtype=torch.float16)
    codes = gpu_graph.quantize(x, torch.tensor(0.5, dtype=torch.float16))
    assert codes.tolist() == [0, 2, 0, 127, -128]


@pytest.mark.parametrize("labels", [np.zeros(5, np.int64), None])
def test_a_build_judged_on_other_images_is_refused(tmp_path, monkeypatch, labels):
    logits = np.zeros((5, 10), np.float32)
    write_logits(tmp_path / "logits.npz", Logits(logits, logits, labels))
    monkeypatch.setattr("sys.argv", ["gpu_graph.py", str(tmp_path)])
    with pytest.raises(InputError, match="was not evaluated on all shipped test images"):
        gpu_graph.main()
