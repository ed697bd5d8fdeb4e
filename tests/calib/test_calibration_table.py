import json
from dataclasses import replace

import pytest

from calib.calibration_table import CalibrationTable, RangeShift, TensorScale, check_table, load_table, save_table
from calib.errors import ArtifactError, DataError, InputError


@pytest.fixture
def table():
    tensors = {"x": TensorScale.from_amax(1.27, "x", "mse"), "y": TensorScale.from_amax(3, "y", "mse")}
    return CalibrationTable(
        "graph",
        "data",
        512,
        "mse",
        tensors,
        synthetic=True,
        preprocess_sha256="preprocessing",
        source_sha256="source",
        refinements=("migrate ranges", "correct biases"),
        float_nodes=("stem/Conv",),
        range_shift=RangeShift(0.01, 0.2, "y"),
    )


def test_round_trip(table, tmp_path):
    path = tmp_path / "calibration.json"
    save_table(path, table)
    assert load_table(path) == table
    fields = json.loads(path.read_text())
    assert fields.keys() == {
        *("schema_version", "onnx_sha256", "data_sha256", "images", "method", "tensors", "synthetic"),
        *("preprocess_sha256", "source_sha256", "refinements", "float_nodes", "range_shift"),
    }
    assert fields["range_shift"] == {"median": 0.01, "largest": 0.2, "tensor": "y"}
    assert fields["tensors"]["x"].keys() == {"amax", "scale", "method", "source", "bound"}


def test_the_smaller_of_data_and_proof_gives_the_scale():
    data = TensorScale.from_amax(1.27, "x", "mse")
    wider = TensorScale.from_amax(1.27, "x", "mse", 2.0)
    assert (wider.amax, wider.scale, wider.source, wider.bound) == (data.amax, data.scale, "data", 2.0)
    assert data.source == "data"
    assert TensorScale.from_amax(1.27, "x", "mse", 1.27).source == "proof", "equal: what is proven needs no image"
    proof = TensorScale.from_amax(1.27, "x", "mse", 0.5)
    assert (proof.amax, proof.scale, proof.source) == (0.5, TensorScale.from_amax(0.5, "x", "mse").scale, "proof")
    assert proof.scale < data.scale
    with pytest.raises(DataError, match="tensor x"):
        TensorScale.from_amax(1.27, "x", "mse", 0.0)


def test_a_table_from_before_is_read_with_what_was_so_then(tmp_path):
    tensors = {"x": TensorScale.from_amax(1.27, "x", "mse")}
    table = CalibrationTable("graph", "data", 512, "mse", tensors)
    path = tmp_path / "calibration.json"
    save_table(path, table)
    fields = json.loads(path.read_text())
    for name in ("preprocess_sha256", "source_sha256", "refinements", "float_nodes", "range_shift"):
        fields.pop(name)
    for entry in fields["tensors"].values():
        entry.pop("source")
        entry.pop("bound")
    path.write_text(json.dumps(fields))
    assert load_table(path) == table


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: f.update(schema_version=99),
        lambda f: f.pop("images"),
        lambda f: f.update(images="many"),
        lambda f: f["tensors"]["x"].update(scale=0.02),
        lambda f: f["tensors"]["x"].update(scale=2 * f["tensors"]["x"]["scale"]),
        lambda f: f["tensors"]["x"].update(amax=0.0),
        lambda f: f["tensors"]["x"].update(amax=-1.27),
        lambda f: f["tensors"]["x"].pop("amax"),
        lambda f: f["tensors"]["x"].update(source="hearsay"),
        lambda f: f.update(preprocess_sha256=None),
        lambda f: f.update(refinements="migrate ranges"),
        lambda f: f.update(float_nodes=[1]),
        lambda f: f["range_shift"].update(median="little"),
        lambda f: f["range_shift"].pop("tensor"),
    ],
)
def test_a_spoiled_table_is_refused(table, tmp_path, spoil):
    path = tmp_path / "calibration.json"
    save_table(path, table)
    fields = json.loads(path.read_text())
    spoil(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError):
        load_table(path)


def test_a_stale_table_is_refused_with_the_command_that_remakes_it(table):
    check_table(table, onnx_sha256="graph", data_sha256="data", preprocess_sha256="preprocessing")
    check_table(table, onnx_sha256="graph")
    with pytest.raises(ArtifactError, match=r"another graph[\s\S]*other weights[\s\S]*sha256 graph[\s\S]*ufovit build"):
        check_table(table, onnx_sha256="other", data_sha256="data")
    with pytest.raises(ArtifactError, match=r"other calibration images[\s\S]*sha256 data[\s\S]*ufovit build"):
        check_table(table, onnx_sha256="graph", data_sha256="other")
    with pytest.raises(ArtifactError, match=r"other preprocessing[\s\S]*sha256 preprocessing[\s\S]*sha256 other"):
        check_table(table, onnx_sha256="graph", data_sha256="data", preprocess_sha256="other")
    with pytest.raises(ArtifactError, match=r"other preprocessing[\s\S]*allowed: none recorded"):
        check_table(table, onnx_sha256="graph", preprocess_sha256="")
    with pytest.raises(ArtifactError, match=r"next: ufovit calibrate x\.onnx$"):
        check_table(table, onnx_sha256="other", remake="ufovit calibrate x.onnx")


def test_the_graph_that_was_refined_is_told_from_the_refined_one(table):
    check_table(replace(table, source_sha256="graph"), onnx_sha256="graph")
    with pytest.raises(InputError) as caught:
        check_table(table, onnx_sha256="source", data_sha256="other")
    text = str(caught.value)
    assert "belongs to the refined graph that was made from this graph" in text
    assert "migrate ranges, correct biases" in text
    assert "allowed: sha256 graph" in text
    assert "next: pass model.refined.onnx" in text
    with pytest.raises(ArtifactError, match="another graph"):
        check_table(replace(table, source_sha256=""), onnx_sha256="source")
    with pytest.raises(ArtifactError, match="another graph"):
        check_table(replace(table, source_sha256=""), onnx_sha256="")


def test_the_command_that_remakes_an_unreadable_table_is_the_callers(tmp_path):
    with pytest.raises(ArtifactError, match="next: ufovit calibrate"):
        load_table(tmp_path / "none.json", remake="ufovit calibrate")
