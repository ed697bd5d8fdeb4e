"""Oracle: the network in torch; ONNX Runtime and onnx's checker on the written graph."""

import contextlib
import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript.rewriter.rules.common import slice_split_rule

import edge.model.export
from calib.artifact import read_artifact, write_artifact
from calib.errors import VerdictError
from calib.files import sha256_bytes, sha256_file
from calib.metrics import sqnr_db
from edge.model.export import check_parity, export_onnx, simplify, to_onnx
from edge.model.export_foldings import fold
from edge.model.export_record import ExportRecord
from edge.numeric_tolerances import EXPORT_SQNR_DB

ROOT = Path(__file__).resolve().parents[3]


def run_onnx(model, images):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    return logits


def torch_logits(network, images):
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def export_once(make_network, tiny_graph, tiny_images, tmp_path_factory):
    """export() of the network of seed 0, with the graph that the exporter made once for all tests."""
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge.model.export, "to_onnx", lambda _folded: copy.deepcopy(tiny_graph))
        record = export_onnx(make_network(0), path, tiny_images)
    return path, record


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_onnx_agrees_with_torch_at_any_batch(make_network, export_once, tiny_images, batch):
    path, _ = export_once
    found, expected = run_onnx(path.read_bytes(), tiny_images[:batch]), torch_logits(make_network(0), tiny_images[:batch])
    assert found.shape == (batch, 5)
    assert sqnr_db(expected, found) > EXPORT_SQNR_DB
    assert sqnr_db(expected, torch_logits(make_network(1), tiny_images[:batch])) < 20, "another network is told apart"


def test_record(export_once, tiny_graph, tmp_path):
    path, record = export_once
    assert record.onnx_sha256 == sha256_file(path)
    assert record.opset == 20
    assert record.foldings == ("xnorm_gamma", "layer_scale", "stem_batch_norm")
    assert record.parity.images == 6
    assert EXPORT_SQNR_DB < record.parity.sqnr_db <= 300
    assert 0 < record.parity.max_abs < 1e-3
    assert record.simplification.nodes_before == len(tiny_graph.graph.node)
    assert record.simplification.nodes_after == len(onnx.load(path).graph.node)
    assert record.simplification.used, record.simplification.reason
    write_artifact(tmp_path / "export.json", record)
    assert read_artifact(tmp_path / "export.json", ExportRecord, remake="x") == record


@pytest.fixture(params=["exported", "written"])
def graph(request, tiny_graph, export_once):
    return tiny_graph if request.param == "exported" else onnx.load(export_once[0])


@pytest.mark.slow
def test_the_exporter_as_it_is_gives_the_same_bytes(make_network, tiny_graph, monkeypatch):
    """The rule that is left out finds nothing in this network; it is back in its place afterwards."""
    assert "try_rewrite" not in vars(slice_split_rule)
    genuine = edge.model.export._exporting

    @contextlib.contextmanager
    def with_every_rule():
        with genuine():
            left_out = vars(slice_split_rule).pop("try_rewrite")
            yield
            vars(slice_split_rule)["try_rewrite"] = left_out

    monkeypatch.setattr(edge.model.export, "_exporting", with_every_rule)
    plain = to_onnx(fold(make_network(0)))
    assert plain.SerializeToString(deterministic=True) == tiny_graph.SerializeToString(deterministic=True)


def test_interface_and_opset(graph):
    onnx.checker.check_model(graph, full_check=True)
    assert [(o.domain, o.version) for o in graph.opset_import if o.domain in ("", "ai.onnx")] == [("", 20)]
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {"image": ["batch", 3, 32, 32], "logits": ["batch", 5]}


def test_nodes_are_named_by_module_path(graph, make_network):
    modules = {name for name, _ in fold(make_network(0)).named_modules()}
    names = [node.name for node in graph.graph.node]
    assert len(set(names)) == len(names)
    for node in graph.graph.node:
        scope, _, op = node.name.rpartition("/")
        assert scope in modules
        assert re.fullmatch(rf"{node.op_type}(_\d+)?", op)
    linear = {name for name, m in fold(make_network(0)).named_modules() if isinstance(m, torch.nn.Linear)} - {"head"}
    assert {f"{name}/MatMul" for name in linear} <= set(names)
    convolutions = {name for name, m in fold(make_network(0)).named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {f"{name}/Conv" for name in convolutions} <= set(names)
    assert sum(node.op_type == "Gemm" for node in graph.graph.node) == 1
    assert not [n for n in graph.graph.node if re.search(r"^val_|_val_", " ".join((*n.input, *n.output)))]


def test_single_nodes_where_tensorrt_needs_them(graph):
    counts = {op: sum(n.op_type == op for n in graph.graph.node) for op in ("LayerNormalization", "Gelu", "ReduceL2", "Erf")}
    assert counts == {"LayerNormalization": 3 * 2 + 2 * 2 + 1, "Gelu": 3 + 2 * 2 + 2, "ReduceL2": 8, "Erf": 0}
    assert not [n for n in graph.graph.node if n.op_type == "BatchNormalization" and n.name.startswith("stem")]
    assert not [i.name for i in graph.graph.initializer if re.search(r"gamma|gain|scale\d", i.name)], "all folded"


def test_no_machine_in_the_bytes(graph):
    data = graph.SerializeToString(deterministic=True)
    for trace in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", ".py", "Traceback", "pkg.torch"):
        assert trace.encode() not in data, trace
    assert not list(graph.metadata_props) + list(graph.graph.metadata_props)
    assert all(not node.metadata_props and not node.doc_string for node in graph.graph.node)


@pytest.mark.slow
def test_same_network_gives_the_same_bytes_in_another_process(tiny_graph, tmp_path):
    """Another interpreter, hash seed and working folder."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests/support')!r}, {str(ROOT / 'tests/edge')!r}]\n"
        "import conftest\n"
        "from calib.files import sha256_bytes\n"
        "from edge.model.export import to_onnx; from edge.model.export_foldings import fold\n"
        "make = conftest.make_network.__wrapped__()\n"
        "print(sha256_bytes(to_onnx(fold(make(0))).SerializeToString(deterministic=True)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == sha256_bytes(tiny_graph.SerializeToString(deterministic=True))


SPOILS = {
    "missing": ("import sys; sys.exit('No module named onnxsim')", "failed with status 1: No module named onnxsim"),
    "crashing": ("import os; os.kill(os.getpid(), 11)", "failed with status -11"),
    "hanging": ("import time; time.sleep(60)", "took more than 0.5 s"),
    "silent": ("pass", "failed with status 0"),
    "writing rubbish": ("import sys; open(sys.argv[2], 'wb').write(b'rubbish')", "cannot be used"),
    "writing an empty file": ("import sys; open(sys.argv[2], 'wb')", "cannot be used"),
    "changing a weight": (
        "import onnx, sys; from onnx import numpy_helper as nh; m = onnx.load(sys.argv[1])\n"
        "w = next(i for i in m.graph.initializer if i.name == 'blocks.1.ffn.2/MatMul.weight')\n"
        "w.CopyFrom(nh.from_array(nh.to_array(w) * 1.001, w.name)); onnx.save(m, sys.argv[2])",
        "graph differs: SQNR",
    ),
    "dropping the output": (
        "import onnx, sys; m = onnx.load(sys.argv[1]); del m.graph.output[:]; onnx.save(m, sys.argv[2])",
        "cannot be used",
    ),
    "writing NaN": (
        "import onnx, sys; from onnx import numpy_helper as nh; m = onnx.load(sys.argv[1])\n"
        "w = next(i for i in m.graph.initializer if i.name == 'head.weight')\n"
        "w.CopyFrom(nh.from_array(nh.to_array(w) * float('nan'), w.name)); onnx.save(m, sys.argv[2])",
        "cannot be used",
    ),
    "freezing the batch": (
        "import onnx, sys; m = onnx.load(sys.argv[1])\n"
        "for v in (*m.graph.input, *m.graph.output): v.type.tensor_type.shape.dim[0].dim_value = 6\n"
        "onnx.save(m, sys.argv[2])",
        "cannot be used",
    ),
}


@pytest.fixture
def fake_onnxsim(monkeypatch):
    """Replaces the onnxsim of the child process by a script; the limits of the call stay as they are."""
    real = subprocess.run

    def replace(script):
        def run(command, **options):
            assert command[:2] == [sys.executable, "-c"]
            assert "onnxsim" in command[2]
            return real([sys.executable, "-c", script, *command[3:5]], **options)

        monkeypatch.setattr(edge.model.export.subprocess, "run", run)

    return replace


@pytest.mark.parametrize("spoil", SPOILS)
def test_onnxsim_at_its_worst_keeps_the_original(tiny_graph, tiny_images, fake_onnxsim, spoil):
    script, reason = SPOILS[spoil]
    fake_onnxsim(script)
    before = tiny_graph.SerializeToString(deterministic=True)
    kept, record = simplify(tiny_graph, tiny_images, seconds=0.5 if spoil == "hanging" else 120)
    assert kept is tiny_graph
    assert kept.SerializeToString(deterministic=True) == before
    assert not record.used
    assert reason in record.reason
    assert record.nodes_before == record.nodes_after == len(tiny_graph.graph.node)


def test_an_honest_simplifier_is_used(tiny_graph, tiny_images, fake_onnxsim):
    """Negative control of the test above."""
    fake_onnxsim("import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])")
    assert simplify(tiny_graph, tiny_images)[1].used


@pytest.mark.slow
def test_onnxsim_itself_folds_constants_and_fuses_nothing(tiny_graph, tiny_images):
    """A sum of two constants put before the logits goes; every other node stays, which onnxsim's fusions would not let."""
    longer = onnx.ModelProto()
    longer.CopyFrom(tiny_graph)
    half = onnx.numpy_helper.from_array(np.full(1, 0.5, np.float32), "half")
    longer.graph.initializer.append(half)
    last = next(node for node in longer.graph.node if "logits" in node.output)
    last.output[0] = "unshifted"
    longer.graph.node.append(onnx.helper.make_node("Add", ["half", "half"], ["one"]))
    longer.graph.node.append(onnx.helper.make_node("Mul", ["unshifted", "one"], ["logits"]))
    simplified, record = simplify(longer, tiny_images)
    assert record.used
    assert record.nodes_before - record.nodes_after == 1
    assert [n.op_type for n in simplified.graph.node] == [*(n.op_type for n in tiny_graph.graph.node), "Mul"]


def test_onnxsim_that_cannot_be_started_keeps_the_original(tiny_graph, tiny_images, monkeypatch):
    monkeypatch.setattr(edge.model.export.sys, "executable", "/nonexistent/python")
    kept, record = simplify(tiny_graph, tiny_images)
    assert kept is tiny_graph
    assert "cannot be started" in record.reason


def perturbed(path, target, change):
    model = onnx.load(path)
    change(model)
    onnx.save(model, target)
    return target


def scale_weight(name, factor):
    def change(model):
        tensor = next(i for i in model.graph.initializer if i.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), name))

    return change


@pytest.mark.parametrize(
    "change",
    [
        scale_weight("head.weight", 1.01),
        scale_weight("head.weight", -1),
        scale_weight("blocks.0.attn.proj/MatMul.weight", 0),
        scale_weight("pos_embed", 0.99),
        scale_weight("stem.0.weight", 1.01),
    ],
)
def test_parity_fails_for_a_changed_graph(make_network, export_once, tiny_images, tmp_path, change):
    path, _ = export_once
    check_parity(make_network(0), path, tiny_images)
    changed = perturbed(path, tmp_path / "changed.onnx", change)
    with pytest.raises(VerdictError, match=r"does not compute what the network computes[\s\S]*dB"):
        check_parity(make_network(0), changed, tiny_images)


def test_a_graph_that_fails_parity_is_not_left_behind(make_network, tiny_graph, tiny_images, tmp_path, monkeypatch):
    wrong = copy.deepcopy(tiny_graph)
    scale_weight("head.weight", 1.1)(wrong)
    monkeypatch.setattr(edge.model.export, "to_onnx", lambda _folded: wrong)
    monkeypatch.setattr(
        edge.model.export, "simplify", lambda proto, _images: (proto, edge.model.export.Simplification(False, "", 1, 1))
    )
    with pytest.raises(VerdictError):
        export_onnx(make_network(0), tmp_path / "model.onnx", tiny_images)
    assert list(tmp_path.iterdir()) == []


ODD_SHAPES = {
    "48 x 80 pixels": {"image_size": (48, 80), "depth": 1, "class_layers": 1},
    "another stem": {"dim": 20, "heads": 5, "stem_widths": (3, 6, 9, 20), "depth": 1, "image_size": (64, 32)},
    "wide class layers": {"class_layers": 3, "ffn_expansion": 2, "depth": 1, "kv_axis": "last"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_SHAPES)
def test_any_shape_is_exported(make_network, name):
    network = make_network(5, **ODD_SHAPES[name])
    cfg = network.cfg
    images = np.random.default_rng(6).normal(size=(2, 3, cfg.height, cfg.width)).astype(np.float32)
    model = to_onnx(fold(network))
    found = run_onnx(model, images)
    assert sqnr_db(torch_logits(network, images), found) > EXPORT_SQNR_DB
    assert sqnr_db(torch_logits(network, images[:, :, ::-1].copy()), found) < 40, "rows are told apart"
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [0, 3, cfg.height, cfg.width]
    assert sum(node.op_type == "ReduceL2" for node in model.graph.node) == cfg.xnorm_sites
