"""`--placement` of `ufovit calibrate`. Oracles: the Q/DQ nodes and bytes of the written graph, SQNR in numpy, MACs by hand."""

import numpy as np
import onnx
import pytest
from calibrate_files import MACS, figure, held_out, logits, sqnr_db, table_of


def quantized_nodes(path):
    graph = onnx.load(path).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {node.name for node in graph.node if node.name in MACS and dequantized.issuperset(node.input[:2])}


@pytest.fixture
def placed(calibrate, tmp_path, capsys):
    """Folder and output of a run with the default placement."""
    assert calibrate(out=tmp_path / "placed") == 0
    return tmp_path / "placed", capsys.readouterr().out


def test_what_costs_too_much_stays_in_float_and_is_said(world, calibrate, placed, tmp_path):
    out, said = placed
    table = table_of(out)
    assert table["float_nodes"]
    assert quantized_nodes(out / "model.int8.onnx") == set(MACS) - set(table["float_nodes"])
    share = sum(MACS[node] for node in table["float_nodes"]) / sum(MACS.values())
    assert 0 < share <= 0.1
    assert f"{share:.2%} of the multiply-accumulates: " in said.partition("placement ")[2]
    for node in table["float_nodes"]:
        assert f"in float   {node}: {MACS[node] / sum(MACS.values()):.2%} of the multiply-accumulates, costs " in said
    assert calibrate("--placement", "all", out=tmp_path / "all") == 0
    assert quantized_nodes(tmp_path / "all/model.int8.onnx") == set(MACS)
    assert "placement" not in table_of(tmp_path / "all")
    images = held_out(np.load(world / "images.npy"))
    exact = logits(world / "net.onnx", images)
    better, before = (sqnr_db(exact, logits(folder / "model.int8.onnx", images)) for folder in (out, tmp_path / "all"))
    assert better > before


def test_a_stored_table_keeps_its_placement(world, calibrate, placed, tmp_path):
    out, _ = placed
    again = ("--table", out / "calibration.json", "--holdout", world / "test.npy")
    assert calibrate(*again, graph=out / "model.refined.onnx", images=None) == 0
    assert (tmp_path / "out/model.int8.onnx").read_bytes() == (out / "model.int8.onnx").read_bytes()
    assert table_of(tmp_path / "out") == table_of(out)


@pytest.mark.parametrize("kind", ["names", "json"])
def test_a_file_names_what_stays_in_float(calibrate, placed, tmp_path, kind):
    out, _ = placed
    names = table_of(out)["float_nodes"]
    listed = tmp_path / "layers.txt"
    listed.write_text("# chosen before\n\n" + "\n".join(names) + "\n")
    assert calibrate("--placement", listed if kind == "names" else out / "calibration.json") == 0
    assert (tmp_path / "out/model.int8.onnx").read_bytes() == (out / "model.int8.onnx").read_bytes()


def test_a_budget_chooses_by_itself(calibrate, tmp_path, capsys):
    assert calibrate("--max-drop", 50) == 0
    assert "placement" not in table_of(tmp_path / "out")
    assert calibrate("--max-drop", 50, "--placement", "auto") == 2
    assert "--placement auto and --max-drop exclude each other" in capsys.readouterr().err


def test_a_floor_leaves_nothing_in_float_that_would_miss_it(calibrate, tmp_path, capsys):
    assert calibrate("--int8-floor", 1.0) == 0
    assert figure(r"INT8 +(\S+)%", capsys.readouterr().out) == 100.0
    assert table_of(tmp_path / "out")["placement"]["float_groups"] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "unknown placement, and no such file"),
        (b"# nothing\n\n", "names no layer"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"nowhere/*\n", "matches no node"),
    ],
)
def test_a_file_that_is_no_placement(calibrate, tmp_path, capsys, content, said):
    file = tmp_path / "layers.txt"
    if content is not None:
        file.write_bytes(content)
    assert calibrate("--placement", file) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_json_that_is_no_table(calibrate, tmp_path, capsys):
    (tmp_path / "layers.json").write_text('["head"]')
    assert calibrate("--placement", tmp_path / "layers.json") == 2
    assert "not a JSON object" in capsys.readouterr().err
