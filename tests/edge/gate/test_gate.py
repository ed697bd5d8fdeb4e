"""The gate: planted regressions are caught and named, and a gate with unlimited tolerance misses them."""

import hashlib
import json
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from gate_builds import Planted, edit, gate, lose_answers, memory_build, plant, read_build, record, set_field, update_baseline
from report_folder import LABELS, Recipe

from calib.errors import ArtifactError, InputError
from calib.files import canonical_json
from edge.gate.baseline import LatencyRatio, StepFigures, read_baseline
from edge.gate.compare_builds import compare_builds
from edge.gate.gate_tolerances import QUANTITIES, STEP_QUANTITIES
from edge.gate.junit import junit_xml
from edge.gate.markdown import markdown_summary
from edge.gate.update import default_tolerances, make_baseline
from edge.tasks.classification.logits import pack_answers, unpack_answers
from edge.tasks.gate_row import Row, Tolerance

ALL = (
    *("verdict", "reference", "accuracy", "agreement", "sqnr", "scale_largest", "scale_mean"),
    *("xnorm_verdict", "xnorm_headroom", "xnorm_floor", "network_verdict", "network_unjudged"),
    *("headroom_layer_norm", "headroom_output", "headroom_residual", "headroom_softmax"),
    *("network_islands", "emulated_sqnr", "share", "size", "steps", "reformats", "pads", "moved_bytes", "latency"),
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder, baseline file) of a good build."""
    folder = tmp_path_factory.mktemp("base")
    update_baseline(plant(folder / "good"), folder / "baseline.json")
    return folder / "good", folder / "baseline.json"


def results(report):
    return {row.quantity: row.result for row in report.rows}


def move_wrong_answers(reference, engine, labels):
    """Wrong answers that become other wrong ones: accuracy is the same."""
    wrong = np.flatnonzero(reference.argmax(1) != labels)[:100]
    for i in wrong:
        other = next(c for c in range(len(LABELS)) if c not in (labels[i], reference[i].argmax()))
        engine[i, other] = engine[i].max() + 1


def noisier(reference, engine, labels):
    engine += np.random.default_rng(1).normal(0, 0.2, engine.shape).astype(np.float32)


def nan_row(reference, engine, labels):
    engine[3] = np.nan


def other_fp32(reference, engine, labels):
    """Reference and engine go wrong together, on images that both get wrong: only the reference row notices."""
    wrong = np.flatnonzero(reference.argmax(1) != labels)[:40]
    for i in wrong:
        other = next(c for c in range(len(LABELS)) if c not in (labels[i], reference[i].argmax()))
        for logits in (reference, engine):
            logits[i, other] = logits[i].max() + 1


def shares(**actual):
    def change(fields):
        fields["receipt"]["actual"] = actual
        fields["receipt"]["int8_mac_fraction"] = actual["int8"]

    return change


def without_site(fields):
    del fields["sites"][2]


def more_of(kind):
    """A change of a manifest: one step more of a kind."""

    def change(fields):
        (total,) = (total for total in fields["receipt"]["plan"]["kinds"] if total["name"] == kind)
        total["steps"] += 1

    return change


def not_judged(fields):
    fields["unjudged"].append({"name": "loop", "reason": "its body is not judged"})


PLANTED = {
    "more flips": (Planted(logits=lose_answers(60)), "accuracy"),
    "lower agreement": (Planted(logits=move_wrong_answers), "agreement"),
    "lower SQNR": (Planted(logits=noisier), "sqnr"),
    "headroom lost": (Planted(xnorm=set_field("sites", 3, "fp16_headroom_bits", to=2.0)), "xnorm_headroom"),
    "floor lost": (Planted(xnorm=set_field("sites", 0, "fp16_floor_bits", to=9.0)), "xnorm_floor"),
    "INT8 share lower": (Planted(manifest=shares(int8=0.995, fp16=0.005)), "share"),
    "engine grown": (Planted(engine=b"engine" * 54_000), "size"),
    "another FP32 network": (Planted(logits=other_fp32), "reference"),
    "a step more": (Planted(manifest=set_field("receipt", "plan", "total", "steps", to=67)), "steps"),
    "a transpose more": (Planted(manifest=more_of("reformat")), "reformats"),
    "padding more": (Planted(manifest=more_of("pad")), "pads"),
    "larger activations": (
        Planted(manifest=set_field("receipt", "plan", "total", "activation_bytes", to=2_000_000)),
        "moved_bytes",
    ),
    "stream grown": (Planted(network=set_field("sites", 8, "headroom_bits", to=3.0)), "headroom_residual"),
    "another island": (Planted(network=set_field("islands", "sites", to=2)), "network_islands"),
    "FP16 worse": (Planted(network=set_field("emulated", "after", "sqnr_db", to=40.0)), "emulated_sqnr"),
}
OF_NETWORK = {
    "headroom_residual": "network_headroom",
    **{name: name for name in ("network_islands", "emulated_sqnr")},
}
"""Row -> its tolerance."""
WITHOUT_TOLERANCE = {
    "budget missed": (Planted(logits=lose_answers(60), budget=0.5), "verdict"),
    "NaN rows": (Planted(logits=nan_row), "verdict"),
    "certificate worse": (Planted(xnorm=set_field("verdict", to="at risk")), "xnorm_verdict"),
    "site missing": (Planted(xnorm=without_site), "xnorm_headroom"),
    "floor missing": (Planted(xnorm=set_field("sites", 0, "fp16_floor_bits", to=None)), "xnorm_floor"),
    "precision missing from the receipt": (Planted(manifest=set_field("receipt", "actual", to={"fp16": 1.0})), "share"),
    "certificate missing": (Planted(manifest=set_field("xnorm", to=None)), "xnorm_headroom"),
    "steps missing": (Planted(manifest=set_field("receipt", "plan", to=None)), "moved_bytes"),
    "network worse": (Planted(network=set_field("verdict", to="at risk")), "network_verdict"),
    "more is not judged": (Planted(network=not_judged), "network_unjudged"),
    "no emulation": (Planted(network=set_field("emulated", "after", "sqnr_db", to=None)), "emulated_sqnr"),
    "a kind without headroom": (Planted(network=set_field("sites", 9, "headroom_bits", to=None)), "headroom_output"),
    "network's certificate missing": (Planted(), "network_verdict"),
}
NOT_A_NUMBER = {
    "NaN headroom": (Planted(xnorm=set_field("sites", 0, "fp16_headroom_bits", to=float("nan"))), "xnorm.json"),
    "NaN SQNR": (Planted(drift=set_field("sqnr_db", to=float("nan"))), "drift.json"),
    "NaN agreement": (Planted(drift=set_field("agreement", to=float("nan"))), "drift.json"),
    "NaN top-1": (Planted(drift=set_field("top1_engine", to=float("nan"))), "drift.json"),
    "NaN share": (Planted(manifest=shares(int8=float("nan"))), "manifest.json"),
}


def test_the_same_build_passes_with_a_row_for_everything(base):
    report = gate(*base)
    assert report.verdict == "pass"
    assert tuple(row.quantity for row in report.rows) == ALL
    assert results(report) == {**dict.fromkeys(ALL, "pass"), "latency": "skipped"}
    assert all(row.reason for row in report.rows if row.result != "skipped")
    assert all(row.detail for row in report.rows), "a skipped row says why"
    loose = memory_build(*logits_of(base[0]))
    assert loose.measured.answers == read_baseline(base[1]).measured.answers


def logits_of(folder):
    sides = read_build(folder).sides
    return sides.reference[0], sides.engine[0], sides.truth


@pytest.mark.parametrize("name", [*PLANTED, *WITHOUT_TOLERANCE])
def test_a_planted_regression_is_caught_and_named(base, tmp_path, name):
    planted, quantity = (PLANTED | WITHOUT_TOLERANCE)[name]
    folder = plant(tmp_path / "bad", planted)
    gone = {"certificate missing": "xnorm.json", "network's certificate missing": "certificate.json"}.get(name)
    if gone:
        (folder / gone).unlink()
        record(folder)
    report = gate(folder, base[1])
    assert report.verdict == "fail"
    assert results(report)[quantity] == "fail"
    assert quantity in report.reason


@pytest.mark.parametrize("name", NOT_A_NUMBER)
def test_nan_in_an_artifact_is_refused(base, tmp_path, name):
    planted, file = NOT_A_NUMBER[name]
    with pytest.raises(InputError, match=rf"not a JSON file[\s\S]*{file}[\s\S]*NaN, which is not a finite number"):
        gate(plant(tmp_path / "bad", planted), base[1])


@pytest.mark.parametrize("name", PLANTED)
def test_without_its_tolerance_the_gate_misses_it(base, tmp_path, name):
    planted, quantity = PLANTED[name]
    loose = tmp_path / "loose.json"
    loose.write_text(base[1].read_text())
    edit(loose, set_field("tolerances", OF_NETWORK.get(quantity, quantity), "tolerance", to=1e6))
    assert results(gate(plant(tmp_path / "bad", planted), loose))[quantity] == "pass"


def test_only_the_quantity_that_was_lost_fails(base, tmp_path):
    """Each regression that touches one quantity alone leaves every other row unchanged."""
    for name in PLANTED.keys() - {"more flips", "lower agreement"}:
        planted, quantity = PLANTED[name]
        found = results(gate(plant(tmp_path / name, planted), base[1]))
        assert [q for q, result in found.items() if result == "fail"] == [quantity]


def test_a_loss_near_the_tolerance_is_inconclusive(base, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(base[1].read_text())
    edit(path, set_field("tolerances", "sqnr", "tolerance", to=1e6))  # an answer planted so costs more SQNR than a real one
    report = gate(plant(tmp_path / "near", Planted(logits=lose_answers(18))), path)
    assert (report.verdict, results(report)["accuracy"]) == ("inconclusive", "inconclusive")


IDENTITY = {
    "another model": Planted(manifest=set_field("model", to="ufovit_s")),
    "another precision": Planted(manifest=set_field("precision", to="fp16")),
    "another target": Planted(manifest=set_field("target", to="desktop")),
    "another checkpoint": Planted(manifest=set_field("checkpoint", "sha256", to="a" * 64)),
    "other labels": Planted(manifest=set_field("labels", to=["a", "b", "c", "d"])),
    "other data": Planted(drift=set_field("data_sha256", to="9" * 64)),
}


@pytest.mark.parametrize("name", [*IDENTITY, "other preprocessing", "another judged file"])
def test_a_baseline_of_something_else_is_refused(base, tmp_path, name):
    folder = plant(tmp_path / "other", IDENTITY.get(name, Planted()))
    if name == "other preprocessing":
        edit(folder / "manifest.json", set_field("preprocess", "sha256", to="8" * 64))
        edit(folder / "drift.json", set_field("preprocess_sha256", to="8" * 64))
    if name == "another judged file":
        edit(folder / "drift.json", set_field("engine", "file", to="engine.engine"))
    record(folder)
    with pytest.raises(InputError, match=f"not of this build: {name}") as refused:
        gate(folder, base[1])
    assert f"ufovit gate BUILD --baseline {base[1]} --update" in str(refused.value)


def test_everything_that_differs_is_named(base, tmp_path):
    change = set_field("checkpoint", "sha256", to="a" * 64)
    folder = plant(tmp_path / "other", Planted(manifest=lambda fields: (change(fields), set_field("model", to="x")(fields))))
    with pytest.raises(InputError, match="not of this build: another model, another checkpoint"):
        gate(folder, base[1])


def test_labels_changed_with_a_forged_digest_are_refused(base, tmp_path):
    """Both sides read the labels of the build: rows would compare wrong with wrong, and find nothing lost."""

    def shift(reference, engine, labels):
        labels[:] = (labels + 1) % reference.shape[1]

    with pytest.raises(InputError, match="not of this build: the images are labelled otherwise"):
        gate(plant(tmp_path / "shifted", Planted(logits=shift)), base[1])


@pytest.fixture
def before_steps(base, tmp_path):
    """The baseline as it was written before steps were recorded: no such figure and no such tolerance."""
    path = tmp_path / "old.json"
    fields = json.loads(base[1].read_text())
    del fields["measured"]["steps"]
    for name in STEP_QUANTITIES:
        del fields["tolerances"][name]
    sealed = [fields["identity"], fields["origin"], fields["measured"]]
    fields["seal"] = hashlib.sha256(canonical_json(sealed)).hexdigest()
    path.write_text(json.dumps(fields))
    return path


def test_a_baseline_without_steps_stays_readable_and_an_update_adds_them(base, before_steps):
    report = gate(base[0], before_steps)
    assert report.verdict == "pass"
    assert {results(report)[name] for name in STEP_QUANTITIES} == {"skipped"}
    changes = update_baseline(base[0], before_steps)
    assert "steps: None -> 66" in changes
    assert results(gate(base[0], before_steps))["steps"] == "pass"


def test_fewer_steps_pass(base, tmp_path):
    fewer = Planted(manifest=set_field("receipt", "plan", "total", "steps", to=40))
    assert results(gate(plant(tmp_path / "better", fewer), base[1]))["steps"] == "pass"


BROKEN = {
    "schema_version": (set_field("schema_version", to=99), "unknown schema version"),
    "edited figure": (set_field("measured", "answers", "figures", "sqnr_db", to=20.0), "figures were edited"),
    "edited identity": (set_field("identity", "data_sha256", to="9" * 64), "figures were edited"),
    "NaN figure": (
        set_field("measured", "answers", "figures", "sqnr_db", to=float("nan")),
        "NaN, which is not a finite number",
    ),
    "missing field": (lambda fields: fields["measured"].pop("share"), "malformed artifact"),
    "missing tolerance": (lambda fields: fields["tolerances"].pop("sqnr"), "do not match its quantities"),
    "negative tolerance": (set_field("tolerances", "sqnr", "tolerance", to=-1.0), "invalid tolerance"),
    "NaN tolerance": (set_field("tolerances", "sqnr", "tolerance", to=float("nan")), "NaN, which is not a finite number"),
    "infinite tolerance": (
        set_field("tolerances", "sqnr", "tolerance", to=float("inf")),
        "Infinity, which is not a finite number",
    ),
    "no reason": (set_field("tolerances", "sqnr", "reason", to=" "), "invalid tolerance"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_baseline_is_refused(base, tmp_path, name):
    change, says = BROKEN[name]
    broken = tmp_path / "baseline.json"
    broken.write_text(base[1].read_text())
    edit(broken, change)
    with pytest.raises(InputError, match=says):
        gate(base[0], broken)


def test_a_damaged_folder_is_refused_before_anything_is_compared(base, tmp_path):
    folder = plant(tmp_path / "damaged")
    with (folder / "engine.engine").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(InputError, match=r"engine\.engine"):
        gate(folder, base[1])


def test_figures_that_do_not_follow_from_the_logits_are_refused(base, tmp_path):
    folder = plant(tmp_path / "polished", Planted(logits=noisier, drift=set_field("sqnr_db", to=60.0)))
    with pytest.raises(InputError, match=r"does not follow from the logits\.npz[\s\S]*sqnr_db"):
        gate(folder, base[1])


def test_missing_or_damaged_logits_are_refused(base, tmp_path):
    folder = plant(tmp_path / "gone")
    (folder / "logits.npz").write_bytes(b"PK no archive")
    record(folder)
    with pytest.raises(InputError, match="logits cannot be read"):
        gate(folder, base[1])
    (folder / "logits.npz").unlink()
    record(folder)
    with pytest.raises(InputError, match="missing"):
        gate(folder, base[1])


@pytest.mark.parametrize("classes", [2, 254, 255, 1000])
def test_packed_answers_come_back(classes):
    rng = np.random.default_rng(classes)
    answers = rng.integers(-1, classes, 3000)
    packed = pack_answers(answers, classes)
    assert (unpack_answers(packed, classes, 3000) == answers).all()
    for wrong in (packed[:-8], "", "no base64!", packed.replace(packed[20], "A")):
        with pytest.raises(InputError, match="answers"):
            unpack_answers(wrong, classes, 3000)
    with pytest.raises(InputError, match="one per image"):
        unpack_answers(packed, classes, 2999)


def test_latency_is_judged_by_its_interval(base, tmp_path):
    path = tmp_path / "timed.json"
    update_baseline(base[0], path, latency=LatencyRatio(0.50, 0.49, 0.51, 100))
    for ratio, result in [
        (LatencyRatio(0.52, 0.51, 0.53, 100), "pass"),
        (LatencyRatio(0.56, 0.55, 0.58, 100), "inconclusive"),
        (LatencyRatio(0.62, 0.60, 0.64, 100), "fail"),
        (None, "fail"),
    ]:
        assert results(gate(base[0], path, ratio))["latency"] == result
    assert results(gate(base[0], base[1], LatencyRatio(9, 8, 10, 5)))["latency"] == "skipped"
    for wrong in ((0.5, 0.6, 0.7, 9), (float("nan"), 0.1, 0.2, 9), (0.5, 0.4, float("inf"), 9), (0.5, 0.4, 0.6, 0)):
        with pytest.raises(InputError, match="invalid latency ratio"):
            LatencyRatio(*wrong)


def test_a_build_without_labels_is_judged_by_agreement_alone(tmp_path):
    labelled = memory_build(*small_logits())
    recorded = labelled.measured.answers
    without = replace(recorded, figures={**recorded.figures, "top1": None})
    bare = replace(labelled, sides=replace(labelled.sides, truth=None), measured=replace(labelled.measured, answers=without))
    assert results(compare_builds(bare, make_baseline(bare), tmp_path))["accuracy"] == "skipped"
    assert results(compare_builds(bare, make_baseline(labelled), tmp_path))["accuracy"] == "fail"


def small_logits():
    reference = np.eye(4, dtype=np.float32)[np.arange(400) % 4] * 9
    return reference, reference + np.float32(0.01), np.arange(400) % 4


def test_tolerances_that_rest_on_timing_are_wider():
    build = memory_build(*small_logits())
    tight = default_tolerances(build.identity, build.origin, build.measured)
    wide = default_tolerances(build.identity, replace(build.origin, backend="trt"), build.measured)
    assert tight.keys() == wide.keys() == QUANTITIES | {"reference", "accuracy", "agreement", "sqnr"}
    stepped = replace(build.measured, steps=StepFigures(100, 5, 2, 10**6))
    assert default_tolerances(build.identity, build.origin, stepped).keys() == tight.keys() | STEP_QUANTITIES
    assert [name for name in tight if wide[name].tolerance > tight[name].tolerance] == ["share", "size"]


def test_a_baseline_of_an_earlier_release_is_read_and_says_what_it_lacks(base, tmp_path):
    """Its seal knows nothing of the network's certificate; an update records one."""
    path, old = tmp_path / "old.json", plant(tmp_path / "old")
    (old / "certificate.json").unlink()
    record(old)
    update_baseline(old, path)
    edit(path, lambda fields: fields["measured"].pop("network"))
    report = gate(base[0], path)
    (row,) = [row for row in report.rows if "network" in row.quantity]
    assert (report.verdict, row.quantity, row.result) == ("pass", "network_verdict", "skipped")
    assert "--update" in row.detail
    assert any(change.startswith("network: None -> ") for change in update_baseline(base[0], path))
    assert results(gate(base[0], path)) == results(gate(*base))
    edit(path, lambda fields: fields["measured"].pop("network"))
    with pytest.raises(ArtifactError, match="figures were edited"):
        gate(base[0], path)


def test_junit_and_markdown_say_what_the_report_says(base, tmp_path):
    report = gate(plant(tmp_path / "bad", Planted(logits=lose_answers(60))), base[1])
    odd = Row("sqnr", "fail", "a|b", "<i>", "&", None, None, "why\x00", "line\none | two <b>")
    report = replace(report, rows=(*report.rows, odd))
    suites = ET.fromstring(junit_xml(report))
    cases = {case.get("name"): [child.tag for child in case] for case in suites.iter("testcase")}
    assert cases["accuracy"] == ["failure"]
    assert cases["latency"] == ["skipped"]
    assert cases["size"] == ["system-out"]
    failed = sum(row.result == "fail" for row in report.rows)
    assert (int(suites.get("tests")), int(suites.get("failures")), int(suites.get("skipped"))) == (len(ALL) + 1, failed, 1)
    text = markdown_summary(report)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(report.rows)
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "<b>" not in text
    assert "- **accuracy**: 60 images lost" in text


def test_no_name_or_note_steers_the_page_or_the_parser(base, tmp_path):
    """A baseline is a file from a pull request. Oracles: an XML parser, and the syntax of Markdown."""
    hostile = "![x](http://evil/) **b** `c` <img src=x> \x1b[2J\u202e\x00\ud800\ufffe\r\n- [ ] | # a"
    report = gate(*base)
    row = Row(hostile, "fail", *[hostile] * 3, None, None, hostile, hostile)
    report = replace(report, folder=hostile, baseline=hostile, verdict="fail", rows=(row,), notes=(hostile,))
    refused = replace(report, verdict="refused", reason=hostile + "\n```\n" + hostile)
    for written in (report, refused):
        suites = ET.fromstring(junit_xml(written))
        texts = [text for element in suites.iter() for text in (element.text or "", *element.attrib.values())]
        assert any(r"\x1b[2J\u202e\x00\ud800\ufffe" in text for text in texts)
        markdown = markdown_summary(written)
        assert markdown.encode()
        assert not {"\x1b", "\u202e", "\x00", "\r"} & set(markdown)
        for line in markdown.partition("```")[0].splitlines():
            bare = re.sub(r"`[^`]*`", "", line.replace("- **\\!", "- \\!"))
            assert not re.search(r"(?<!\\)(!\[|\]\(|`)|<img", bare), line
    assert markdown_summary(refused).count("\n```") == 2, "the reason cannot end its block"


def test_junit_is_read_by_a_junit_library(base):
    junitparser = pytest.importorskip("junitparser")
    read = junitparser.JUnitXml.fromstring(junit_xml(gate(*base)))
    assert (read.tests, read.failures, read.errors, read.skipped) == (len(ALL), 0, 0, 1)


def test_update_keeps_edited_tolerances_and_lists_what_changed(base, tmp_path):
    path = tmp_path / "baseline.json"
    assert update_baseline(base[0], path) == ["new baseline"]
    first = path.read_bytes()
    assert update_baseline(base[0], path) == ["nothing changed"]
    assert path.read_bytes() == first
    edit(path, set_field("tolerances", "size", to={"tolerance": 0.5, "reason": "a new head is on its way"}))
    changes = update_baseline(plant(tmp_path / "grown", Planted(engine=b"engine" * 60_000)), path)
    assert "engine_bytes: 300000 -> 360000" in changes
    assert "tolerance of size: 0.5, edited, kept" in changes
    assert read_baseline(path).tolerances["size"] == Tolerance(0.5, "a new head is on its way")
    edit(path, set_field("schema_version", to=0))
    assert update_baseline(base[0], path)[0].startswith("new baseline, of a new version")


@pytest.mark.parametrize("content", [b"<<<<<<< ours\n{}\n>>>>>>> theirs\n", b'{"schema_version": 99}', b""])
def test_update_does_not_replace_a_damaged_baseline(base, tmp_path, content):
    """It may hold tolerances that were edited by hand: a merge conflict is to be resolved."""
    path = tmp_path / "baseline.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"(?s)baseline\.json.*next: git (restore|checkout --ours)"):
        update_baseline(base[0], path)
    assert path.read_bytes() == content


def test_random_weights_have_no_accuracy_row(tmp_path):
    folder = plant(tmp_path / "random", recipe=Recipe(random_weights=True))
    update_baseline(folder, tmp_path / "b.json")
    report = gate(folder, tmp_path / "b.json")
    assert results(report)["accuracy"] == "skipped"
    assert any("RANDOM" in note for note in report.notes)


def test_the_report_is_an_artifact(base):
    report = gate(*base)
    assert json.loads(json.dumps(report.rows[2].loss)) == 0.0
