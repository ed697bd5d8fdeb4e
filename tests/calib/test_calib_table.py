import json

import pytest

from calib.errors import InputError
from calib.table import CalibrationTable, TensorScale, check_table, load_table, save_table


@pytest.fixture
def table():
    tensors = {"x": TensorScale.from_amax(1.27, "x", "mse"), "y": TensorScale.from_amax(3, "y", "mse")}
    return CalibrationTable("graph", "data", 512, "mse", tensors, synthetic=True)


def test_round_trip(table, tmp_path):
    path = tmp_path / "calibration.json"
    save_table(path, table)
    assert load_table(path) == table
    fields = json.loads(path.read_text())
    assert fields.keys() == {"schema_version", "onnx_sha256", "data_sha256", "images", "method", "tensors", "synthetic"}
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
    with pytest.raises(InputError, match="tensor x"):
        TensorScale.from_amax(1.27, "x", "mse", 0.0)


def test_a_table_from_before_proofs_is_from_data(table, tmp_path):
    path = tmp_path / "calibration.json"
    save_table(path, table)
    fields = json.loads(path.read_text())
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
    check_table(table, onnx_sha256="graph", data_sha256="data")
    check_table(table, onnx_sha256="graph")
    with pytest.raises(InputError, match=r"another graph[\s\S]*ufovit build"):
        check_table(table, onnx_sha256="other", data_sha256="data")
    with pytest.raises(InputError, match=r"other calibration images[\s\S]*ufovit build"):
        check_table(table, onnx_sha256="graph", data_sha256="other")
