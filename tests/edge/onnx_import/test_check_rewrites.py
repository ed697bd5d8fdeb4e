"""Rewriters are applied one by one and compared with the graph as imported; one that differs is undone as a whole."""

import numpy as np
import onnx
import pytest
from import_graphs import GraphWriter, fixed_batch, masked, plain, save, several_outputs, typed
from onnx import numpy_helper

from calib.artifact import read_artifact, write_artifact
from calib.errors import DataError, VerdictError
from calib.files import sha256_bytes
from edge.numeric_tolerances import IMPORT_EQUAL_SHARE, SQNR_CAP_DB
from edge.onnx_import import check_rewrites
from edge.onnx_import.import_model import import_onnx
from edge.onnx_import.import_record import ImportRecord
from edge.onnx_import.imported import ImportOptions
from edge.onnx_import.measured_run import random_images
from edge.onnx_import.output_agreement import agreement_db
from edge.onnx_import.rewritten import Rewritten


def scaled(factor, name=None):
    """A rewriter that scales the last constant, and says that it rewrote the head."""

    def rewriter(model):
        tensor = model.graph.initializer[-1]
        tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), tensor.name))
        return [Rewritten("scaled", "matmul_4", name or "matmul_4")]

    return rewriter


def rewritten(monkeypatch, folder, model, options=None, **rewriters):
    monkeypatch.setattr(check_rewrites, "REWRITERS", rewriters)
    original = import_onnx(save(model, folder), options or ImportOptions())
    record = check_rewrites.rewrite(original.model, [random_images(original.image_input, 3)], original)
    return original.model, record


def test_a_rewrite_that_keeps_the_outputs_is_kept(monkeypatch, tmp_path):
    model, record = rewritten(monkeypatch, tmp_path, plain(), exact=scaled(1 + 1e-7), nothing=lambda _model: [])
    (result,) = record.rewriters
    assert (result.kind, result.kept, result.reason) == ("exact", True, "same outputs")
    assert result.sqnr_db > 100
    assert record.onnx_sha256 == sha256_bytes(model.SerializeToString(deterministic=True))
    assert record.parity.sqnr_db > 100
    assert (record.opset_before, record.opset_after, record.source) == (17, 20, "net.onnx")


@pytest.mark.parametrize("factor", [1.001, 2, 0.5, 0, -1, np.nan, np.inf])
def test_a_rewrite_that_differs_is_undone(factor, monkeypatch, tmp_path):
    unchanged, _ = rewritten(monkeypatch, tmp_path, plain())
    model, record = rewritten(monkeypatch, tmp_path, plain(), wrong=scaled(factor), exact=scaled(1 + 1e-7))
    assert [(result.kind, result.kept) for result in record.rewriters] == [("wrong", False), ("exact", True)]
    assert "outputs differ" in record.rewriters[0].reason
    assert record.parity.sqnr_db > 100
    first, second = (numpy_helper.to_array(m.graph.initializer[-1]) for m in (unchanged, model))
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_a_rewrite_that_does_not_run_is_undone(monkeypatch, tmp_path):
    def broken(model):
        model.graph.node[-1].op_type = "NoSuchOperator"
        return [Rewritten("broken", "matmul_4", "matmul_4")]

    model, record = rewritten(monkeypatch, tmp_path, plain(), broken=broken)
    assert not record.rewriters[0].kept
    assert "does not run" in record.rewriters[0].reason
    assert model.graph.node[-1].op_type == "MatMul"


def test_places_that_are_only_named_need_no_check(monkeypatch, tmp_path):
    _, record = rewritten(monkeypatch, tmp_path, plain(), norm=lambda _m: [Rewritten("norm", "relu_1", "", "kept as it is")])
    (result,) = record.rewriters
    assert (result.kept, result.sqnr_db, result.nodes[0].reason) == (True, None, "kept as it is")


def test_one_wrong_output_of_two_is_enough(monkeypatch, tmp_path):
    def doubled(model):
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type = "Abs"
        return [Rewritten("doubled", relu.name, relu.name)]

    _, record = rewritten(monkeypatch, tmp_path, several_outputs(), doubled=doubled)
    assert not record.rewriters[0].kept


def test_the_record_is_written_and_read(monkeypatch, tmp_path):
    _, record = rewritten(
        monkeypatch, tmp_path, masked(), ImportOptions(constant_inputs={"mask": np.array(1)}), exact=scaled(1)
    )
    write_artifact(tmp_path / "import.json", record)
    assert read_artifact(tmp_path / "import.json", ImportRecord, remake="ufovit build") == record
    assert {change.kind for change in record.changes} >= {"constant_input", "opset"}


def test_a_graph_of_another_file_is_no_parity(monkeypatch, tmp_path):
    monkeypatch.setattr(check_rewrites, "REWRITERS", {})
    original = import_onnx(save(plain(), tmp_path), ImportOptions())
    scaled(1.001)(original.model)
    with pytest.raises(VerdictError, match="does not compute what the file as given computes"):
        check_rewrites.check_parity(original.model, [random_images(original.image_input, 3)], original)
    with pytest.raises(DataError, match="no images"):
        check_rewrites.rewrite(original.model, [], original)


def test_files_in_half_precision_have_their_own_tolerance(monkeypatch, tmp_path):
    _, record = rewritten(monkeypatch, tmp_path, typed(np.float16))
    assert 50 < record.parity.sqnr_db < 80
    _, record = rewritten(monkeypatch, tmp_path, typed(np.float64))
    assert record.parity.sqnr_db is None
    assert "ONNX Runtime cannot run the file as given" in record.parity.reason


def test_a_fixed_batch_is_compared_in_its_own_size(monkeypatch, tmp_path):
    _, record = rewritten(monkeypatch, tmp_path, fixed_batch(4))
    assert record.parity.images == 3
    assert record.parity.sqnr_db > 100
    g = GraphWriter()  # not freed: its answers depend on the batch
    features = g.pooled()
    fixed = g.model(
        g.head(g.add("Sub", features, g.add("ReduceMean", features, axes=[0]))),
        takes={"x": [onnx.TensorProto.FLOAT, 2, 3, 16, 16]},
    )
    _, record = rewritten(monkeypatch, tmp_path, fixed)
    assert record.parity.sqnr_db > 100


def test_agreement_of_outputs():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 5)).astype(np.float32)
    assert agreement_db(a, a) == SQNR_CAP_DB
    assert abs(agreement_db(a, 1.01 * a) - 40) < 0.01
    for wrong in (2 * a, -a, 0 * a):
        assert agreement_db(a, wrong) <= 0.01
    for wrong in (a[:3], np.full_like(a, np.nan), np.where(a == a.max(), np.inf, a)):
        assert agreement_db(a, wrong) == -SQNR_CAP_DB
    infinite = np.where(a == a.max(), np.inf, a)
    assert agreement_db(infinite, infinite) == SQNR_CAP_DB
    assert agreement_db(infinite, a) == -SQNR_CAP_DB
    classes = np.arange(10_000)
    assert agreement_db(classes, np.where(classes < 10_000 * (1 - IMPORT_EQUAL_SHARE) - 1, 1, classes)) == SQNR_CAP_DB
    assert agreement_db(classes, np.where(classes < 20, -1, classes)) == -SQNR_CAP_DB
    assert agreement_db(classes, classes + 1) == -SQNR_CAP_DB
