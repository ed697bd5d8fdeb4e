"""`ufovit build` on a tiny network and tiny images: the files it writes, the steps it reuses, and faults and kills.

Oracles: the artifacts read with json and onnx alone, hashlib, ONNX Runtime.
"""

import errno
import json
import os
import signal
import sys

import numpy as np
import pytest
from kill_at_rename import exit_codes
from tiny_project import LABELS, build, command, forget, make_project, read, sha256

from calib.files import atomic_path, canonical_json
from edge.cli import INTERRUPTED, run
from engines.build_folder.step_record import StepRecord, read_record, write_record

INT8_FILES = {
    "model.onnx", "export.json", "golden.npz", "certificate.json", "xnorm.json", "model.folded.onnx", "model.refined.onnx",
    "calibration.json", "model.int8.onnx", "engine.onnx", "manifest.json", "drift.json", "logits.npz", "flips.npz",
    "report.html", "steps.json",
}  # fmt: skip


@pytest.mark.smoke
def test_build_leaves_every_artifact_and_a_chain_of_digests(project):
    out = project / "out"
    assert {p.name for p in out.iterdir()} == INT8_FILES | {".lock"}
    manifest, drift, table = (read(project, f) for f in ("manifest.json", "drift.json", "calibration.json"))
    certificate = read(project, "xnorm.json")
    assert manifest["checkpoint"]["sha256"] == sha256(project / "tiny.safetensors")
    records = ("onnx", "xnorm", "folded_onnx", "refined_onnx", "qdq_onnx", "engine", "calibration")
    for record in (manifest[name] for name in records):
        assert record["sha256"] == sha256(out / record["file"])
    assert certificate["onnx_sha256"] == manifest["onnx"]["sha256"] == drift["reference"]["sha256"]
    assert certificate["folded_onnx_sha256"] == manifest["folded_onnx"]["sha256"]
    assert table["onnx_sha256"] == manifest["refined_onnx"]["sha256"]
    assert table["source_sha256"] in ("", manifest["folded_onnx"]["sha256"])
    assert drift["engine"]["sha256"] == manifest["engine"]["sha256"], "on a CPU the engine itself is judged"
    assert drift["images"] == 80
    assert drift["top1_reference"] == 1.0, "the labels are the network's own answers"
    assert drift["verdict"] == "pass"
    assert manifest["labels"] == list(LABELS)
    assert manifest["random_weights"] is False


def test_drift_figures_agree_with_the_stored_logits(project):
    logits, drift = np.load(project / "out/logits.npz"), read(project, "drift.json")
    same = logits["reference"].argmax(1) == logits["engine"].argmax(1)
    assert drift["agreement"] == pytest.approx(same.mean())
    assert drift["drop_points"] == pytest.approx(100 * (1 - (logits["engine"].argmax(1) == logits["labels"]).mean()))


def test_second_run_reuses_every_step_without_torch(project, capsys, monkeypatch):
    before = {p.name: (p.stat().st_mtime_ns, sha256(p)) for p in (project / "out").iterdir()}
    for heavy in ("torch", "onnx", "onnxruntime", "matplotlib"):
        monkeypatch.setitem(sys.modules, heavy, None)  # an import would raise
    assert build(project) == 0
    assert capsys.readouterr().out.count("unchanged, reused") == 7
    assert {p.name: (p.stat().st_mtime_ns, sha256(p)) for p in (project / "out").iterdir()} == before


def test_only_the_steps_behind_a_change_run_again(project, capsys):
    assert build(project, "--max-drop", "30") == 0
    output = capsys.readouterr().out
    assert [s for s in STEPS if f"{s}: done" in output] == [
        "drift",
        "report",
    ]
    assert read(project, "drift.json")["budget_points"] == 30


@pytest.mark.slow
def test_layers_asked_for_stay_in_float(project):
    import onnx

    def quantized(node):
        graph = onnx.load(project / "out/model.int8.onnx").graph
        producers = {output: n.op_type for n in graph.node for output in n.output}
        (found,) = (n for n in graph.node if n.name == node)
        return [producers.get(name) for name in found.input[:2]] == ["DequantizeLinear", "DequantizeLinear"]

    assert quantized("head/Gemm")
    assert not quantized("stem.0/Conv"), "by default"
    assert build(project, "--keep-float", "head/*", "--keep-float", "stem.3/*") == 0
    assert not quantized("head/Gemm")
    assert quantized("stem.0/Conv")
    assert build(project, "--keep-float", "") == 0
    assert quantized("head/Gemm")
    assert quantized("stem.0/Conv")


@pytest.mark.parametrize(("pattern", "options"), [("haed/*", ()), ("[", ()), ("[", ("--force",))])
def test_a_pattern_that_matches_no_layer_is_refused_before_anything_changes(project, pattern, options, capsys):
    """Also where the graph is exported again: its names are known before the folder changes."""
    before = {p.name: sha256(p) for p in (project / "out").iterdir()}
    assert build(project, "--keep-float", pattern, *options) == 2
    assert pattern in capsys.readouterr().err
    assert {p.name: sha256(p) for p in (project / "out").iterdir()} == before


@pytest.mark.slow
def test_force_runs_everything_and_gives_the_same_graphs(project, capsys):
    graphs = (
        "model.onnx",
        "certificate.json",
        "xnorm.json",
        "model.folded.onnx",
        "model.int8.onnx",
        "calibration.json",
        "engine.onnx",
        "report.html",
    )
    before = {f: sha256(project / "out" / f) for f in graphs if f != "report.html"}
    assert build(project, "--force") == 0
    assert "reused" not in capsys.readouterr().out
    assert {f: sha256(project / "out" / f) for f in before} == before


def test_tampered_artifact_is_made_again(project):
    engine = project / "out/engine.onnx"
    good = engine.read_bytes()
    engine.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert build(project) == 0
    assert engine.read_bytes() == good


@pytest.mark.slow
def test_another_checkpoint_in_the_same_folder_leaves_nothing_stale(project, make_network, tiny_size):
    old = read(project, "manifest.json")
    make_project(project, make_network(7), tiny_size, seed=1)
    assert build(project) == 0
    new = read(project, "manifest.json")
    assert new["checkpoint"]["sha256"] == sha256(project / "tiny.safetensors") != old["checkpoint"]["sha256"]
    assert read(project, "drift.json")["reference"]["sha256"] == new["onnx"]["sha256"] != old["onnx"]["sha256"]


def change_recorded(project, file, **fields):
    """Change fields of a JSON artifact, and make the record fit."""
    path = project / "out" / file
    path.write_bytes(canonical_json({**json.loads(path.read_text()), **fields}))
    steps = read_record(project / "out")
    step = next(name for name, entry in steps.items() if file in entry.writes)
    steps[step] = StepRecord(steps[step].reads, {**steps[step].writes, file: sha256(path)})
    write_record(project / "out", steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "field"),
    [("certificate.json", "repaired_onnx_sha256"), ("xnorm.json", "folded_onnx_sha256"), ("calibration.json", "onnx_sha256")],
)
def test_an_artifact_that_speaks_of_another_file_is_made_again(project, file, field):
    honest = read(project, file)
    change_recorded(project, file, **{field: "0" * 64})
    assert build(project) == 0
    assert read(project, file) == honest


@pytest.mark.parametrize("file", ["export.json", "xnorm.json", "calibration.json"])
def test_what_the_report_would_refuse_is_refused_before_the_verdict_is_replaced(project, file, capsys):
    change_recorded(project, file, schema_version=99)
    before = {path.name: sha256(path) for path in (project / "out").iterdir() if path.is_file()}
    assert run(["drift", str(project / "out"), "--images", "40"]) == 2
    assert file in capsys.readouterr().err
    assert {path.name: sha256(path) for path in (project / "out").iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_broken_quantization_fails_the_verdict(project, monkeypatch):
    """Negative control: every activation scale ten times too small must cost accuracy and end with exit code 1."""
    from calib.calibration_table import TensorScale

    honest = TensorScale.from_amax.__func__
    monkeypatch.setattr(TensorScale, "from_amax", classmethod(lambda cls, amax, *rest: honest(cls, amax / 10, *rest)))
    assert build(project, "--force", "--effort", "fast") == 1
    assert read(project, "drift.json")["verdict"] == "fail"


def test_too_few_images_are_inconclusive(project):
    assert build(project, "--eval-images", "8", "--max-drop", "0.5") == 3
    assert read(project, "drift.json")["verdict"] == "inconclusive"


def test_receipt_below_its_floor_ends_with_1_and_no_engine(project, capsys):
    assert build(project, "--int8-floor", "1.0") == 1
    assert "INT8" in capsys.readouterr().err
    left = {p.name for p in (project / "out").iterdir()}
    assert not left & {"engine.onnx", "manifest.json", "drift.json", "report.html"}


@pytest.mark.slow
def test_random_weights_are_stamped_everywhere(tmp_path, tiny_size, capsys):
    out = tmp_path / "out"
    code = run([
        "build", "ufovit_tiny", "int8", "--target", "cpu", "--random-weights", "--image-size", "32", "--int8-floor", "0.5",
        "--out", str(out),
    ])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "RANDOM" in captured.out
    assert read(tmp_path, "manifest.json")["random_weights"] is True
    assert read(tmp_path, "manifest.json")["checkpoint"] is None
    assert read(tmp_path, "drift.json")["random_weights"] is True
    assert read(tmp_path, "drift.json")["judged_by"] == "numbers"
    assert "RANDOM WEIGHTS" in (out / "report.html").read_text().upper()


@pytest.mark.slow
def test_fp32_needs_no_calibration(project):
    assert build(project, precision="fp32", out="fp32") == 0
    assert not (project / "fp32/calibration.json").exists()
    assert read(project, "drift.json", "fp32")["agreement"] == 1.0


STEPS = ("export", "certify", "calibrate", "quantize", "engine", "drift", "report")
WORK = {
    "export": "export_checkpoint", "certify": "certify_model", "calibrate": "calibrate_model", "quantize": "quantize_model",
    "engine": "build_engine", "drift": "judge_build", "report": "write_report",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_interrupt_in_a_step_changes_nothing_and_leaves_nothing(project, monkeypatch, step, capsys):
    def interrupted(*args, **kwargs):
        with atomic_path(project / "out" / "model.onnx") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    forget(project, step)
    before = {p.name: sha256(p) for p in (project / "out").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(f"edge.pipeline.steps.{step}.{WORK[step]}", interrupted)
        assert build(project) == INTERRUPTED
    assert "same command goes on" in capsys.readouterr().err
    assert {p.name: sha256(p) for p in (project / "out").iterdir()} == before
    assert build(project) == 0
    assert {p.name for p in (project / "out").iterdir()} == INT8_FILES | {".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_full_disk_in_a_step_ends_with_4(project, monkeypatch, step, capsys):
    def full(*args, **kwargs):
        with atomic_path(project / "out" / "anything") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    forget(project, step)
    before = {p.name: sha256(p) for p in (project / "out").iterdir()}
    monkeypatch.setattr(f"edge.pipeline.steps.{step}.{WORK[step]}", full)
    assert build(project) == 4
    assert "disk full" in capsys.readouterr().err
    assert {p.name: sha256(p) for p in (project / "out").iterdir()} == before


PREPARE = (
    "from tiny_network import TINY; from edge.model.sizes import SIZES; SIZES[TINY.name] = TINY; "
    "import edge.model.export; edge.model.export.to_onnx = lambda _network: onnx.load({graph!r})"
)
"""The exporter's graph, from a file: torch would take most of the time of every run."""


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends_the_same(built, project, tiny_graph):
    """SIGKILL at the first rename, then at the second of what is left, and so on: the last run finishes."""
    import onnx

    graph, codes = project / "exported.onnx", []
    onnx.save(tiny_graph, graph)
    for code in exit_codes(command(project, out=project / "killed"), prepare=PREPARE.format(graph=str(graph))):
        codes.append(code)
        if code != -signal.SIGKILL:
            break
    assert codes[-1] == 0
    assert codes.count(-signal.SIGKILL) >= 4
    for file in ("model.onnx", "xnorm.json", "model.folded.onnx", "calibration.json", "model.int8.onnx", "engine.onnx"):
        assert sha256(project / "killed" / file) == sha256(built / "out" / file), file
    first, last = (json.loads(path.read_text()) for path in (built / "out/drift.json", project / "killed/drift.json"))
    assert {**first, "data": ""} == {**last, "data": ""}, "only the path of the images differs"
    assert not [p for p in (project / "killed").iterdir() if p.name.endswith(".tmp")]


@pytest.mark.slow
def test_an_artifact_that_nothing_can_read_is_made_again_though_its_record_fits(project):
    path = project / "out/export.json"
    good = path.read_bytes()
    path.write_bytes(canonical_json({**json.loads(good), "opset": None}))
    record = read_record(project / "out")
    step = record["export"]
    record["export"] = StepRecord(step.reads, {**step.writes, "export.json": sha256(path)})
    write_record(project / "out", record)
    assert build(project) == 0
    assert path.read_bytes() == good
