"""The HTML report. Oracle: the page parsed by the standard library's parser, against the JSON it was made from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_builds import record
from html_page import Page
from report_folder import FALLBACK, LABELS, PLAN, PLAN_STEPS, TENSORS, Recipe, make_folder, render

from calib.artifact import write_artifact
from calib.errors import ArtifactError
from calib.placement_record import FrontierPoint, GroupCost, Placement
from engines.layer_records import EngineEvidence
from engines.roofline import RATES
from engines.speed_estimate import MeasuredRatio, MeasuredSpeed, describe_fp16, make_estimate


def silent(_share: float) -> None:
    pass


def look_up(folder: Path, key: str) -> Any:
    """The value of a key in the JSON artifacts, read without the toolkit."""
    owner, _, path = key.partition(".")
    files = [f"{owner}.json"] if owner in ("export", "xnorm") else ["drift.json", "manifest.json"]
    first, *rest = (path if owner in ("export", "xnorm") else key).split(".")
    for file in files:
        value = json.loads((folder / file).read_text())
        if first in value:
            value = value[first]
            if isinstance(value, dict) or not rest:
                for part in rest:
                    if part not in value:
                        break
                    value = value[part]
                else:
                    return value
    raise KeyError(key)


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = make_folder(tmp_path_factory.mktemp("pass"), Recipe(fallbacks=(FALLBACK,)))
    return folder, render(folder, silent)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = make_folder(tmp_path_factory.mktemp("fail"), Recipe(flips=100, nan_rows=0))
    return folder, render(folder, silent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "build", Recipe())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "verdict"),
    [
        (Recipe(), "PASS"),
        (Recipe(flips=100), "FAIL"),
        (Recipe(flips=9), "INCONCLUSIVE"),
        (Recipe(nan_rows=3), "FAIL"),
    ],
)
def test_verdict_comes_first_with_its_reason(tmp_path: Path, recipe: Recipe, verdict: str) -> None:
    page = Page(render(make_folder(tmp_path, recipe), silent))
    drift = json.loads((tmp_path / "drift.json").read_text())
    assert page.by_id["verdict"] == verdict == drift["verdict"].upper()
    assert page.by_id["reason"] == drift["reason"]
    others = {"PASS", "FAIL", "INCONCLUSIVE"} - {verdict}
    assert not any(re.search(rf"\b{other}\b", page.text) for other in others)
    assert page.text.index(verdict) < page.text.index("Why")
    assert "random-weights" not in page.by_id


def test_what_was_judged_stands_near_the_verdict(passed: tuple[Path, str]) -> None:
    page = Page(passed[1])
    assert "model.int8.onnx, run on ONNX Runtime, CPU: the graph, not the engine (no GPU here)" in page.by_id["ran-on"]
    assert "The INT8 graph answers as well" in page.text
    assert "The INT8 engine answers" not in page.text


@pytest.mark.slow
@pytest.mark.parametrize("which", ["passed", "failed"])
def test_every_figure_is_the_one_of_the_json(which: str, request: pytest.FixtureRequest) -> None:
    folder, html = request.getfixturevalue(which)
    page = Page(html)
    assert {"top1_reference", "top1_engine", "drop_points", "interval.low_points", "interval.high_points", "agreement"} < set(
        page.data
    )
    assert {"sqnr_db", "cosine_min", "flips.right_to_wrong", "images", "engine.bytes", "receipt.int8_mac_fraction"} < set(
        page.data
    )
    assert {"xnorm.images", "xnorm.checks.images"} < set(page.data)
    for key, (exact, shown) in page.data.items():
        value = look_up(folder, key)
        assert float(exact) == value, key
        number = float(re.match(r"[-+]?[\d,.]+(e-?\d+)?", shown)[0].replace(",", ""))  # type: ignore[index]  # must match
        unit = 0.01 if "%" in shown else 1e6 if "MB" in shown else 1.0
        assert number * unit == pytest.approx(value, rel=0.05, abs=0.005), key


def test_nothing_is_loaded_from_elsewhere(failed: tuple[Path, str]) -> None:
    html = failed[1]
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "image", "foreignobject"}
    ids = {a["id"] for _, a in page.tags if a.get("id")}
    for _, attributes in page.tags:
        source = attributes.get("src")
        assert source is None or re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", source)
        assert not any(name.startswith("on") for name in attributes)
        href = attributes.get("href")
        assert href is None or href.removeprefix("#") in ids
    references = re.findall(r"url\(([^)]*)\)", html)
    assert references
    assert {r.removeprefix("#") for r in references} <= ids
    assert "@import" not in html


def test_colours_follow_the_theme(failed: tuple[Path, str]) -> None:
    html = failed[1]
    figures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    declared = set(re.findall(r"--(\w+):", html))
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert {"ink", "muted", "line", "bad"} <= set(re.findall(r"var\(--(\w+)\)", figures))
    assert used <= declared
    assert not re.findall(r"(?:fill|stroke|color):\s*#[0-9a-f]+", figures), "a colour that no theme changes"
    assert "prefers-color-scheme: dark" in html


def test_names_from_files_are_text(failed: tuple[Path, str]) -> None:
    html = failed[1]
    page = Page(html)
    assert "<b>" not in html
    assert "<i>" not in html
    assert "a note with <i>markup</i>" in page.text
    for label in LABELS:
        assert any(row and row[0] == label for row in page.rows), "in the table"
        assert any(label in texts for texts in page.figures), "in the heatmap"


def test_hidden_characters_in_names_are_shown(tmp_path: Path) -> None:
    hostile = ("a\x1b[2J", "b\u202egpj.exe", "c\x00", "\u2066d")
    html = render(make_folder(tmp_path / "build", Recipe(flips=100, labels=hostile)), silent)
    assert not {"\x1b", "\u202e", "\x00", "\u2066"} & set(html)
    assert r"b\u202egpj.exe" in html


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes(failed: tuple[Path, str], tmp_path: Path) -> None:
    """Also in another process, with another hash seed and a matplotlibrc of the user's."""
    folder, html = failed
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsvg.fonttype: path\naxes.grid: True\n")
    program = (
        "import sys, pathlib; from edge.report import render; from engines.build_folder import BuildFolder; "
        "sys.stdout.buffer.write(render(BuildFolder(pathlib.Path(sys.argv[1])), lambda s: None).encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "MPLCONFIGDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, check=True, env=environment)
    assert run.stdout.decode() == html


def test_progress_rises_to_one(folder: Path) -> None:
    shares: list[float] = []
    render(folder, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_heatmap_shows_the_change_of_the_confusion(failed: tuple[Path, str]) -> None:
    folder, html = failed
    drift = json.loads((folder / "drift.json").read_text())
    change = np.array(drift["confusion_engine"]) - np.array(drift["confusion_reference"])
    (texts,) = [f for f in Page(html).figures if "true class" in f]
    shown = sorted(int(t) for t in texts if re.fullmatch(r"[+-]\d+", t))
    assert shown == sorted(int(v) for v in change.ravel() if v)
    assert shown


def test_accuracy_per_class(failed: tuple[Path, str]) -> None:
    folder, html = failed
    drift = json.loads((folder / "drift.json").read_text())
    before, after = np.array(drift["confusion_reference"]), np.array(drift["confusion_engine"])
    rows = {row[0]: row[1:] for row in Page(html).rows}
    for i, label in enumerate(LABELS):
        n = before[i].sum()
        expected = [100 * before[i, i] / n, 100 * after[i, i] / n, 100 * (after[i, i] - before[i, i]) / n]
        assert int(rows[label][0]) == n
        assert [float(c.removesuffix(" %")) for c in rows[label][1:4]] == pytest.approx(expected, abs=0.006)


def test_fallbacks_are_listed(passed: tuple[Path, str], failed: tuple[Path, str]) -> None:
    row = [FALLBACK.layer, FALLBACK.requested, FALLBACK.actual, "6.25 %", FALLBACK.reason]
    page = Page(passed[1])
    assert row in page.rows
    assert "no-fallbacks" not in page.by_id
    assert "no-fallbacks" in Page(failed[1]).by_id


def test_steps_of_one_inference_are_those_of_the_receipt(passed: tuple[Path, str]) -> None:
    """Counts by hand of the steps in the recipe; the picture shows the first of a long block."""
    page = Page(passed[1])
    rows = {row[0]: row[1:3] for row in page.rows}
    kinds = ("product", "attention", "reduction", "pointwise", "reformat", "pad")
    assert [rows[kind][0] for kind in kinds] == ["2", "1", "1", "60", "1", "1"]
    assert rows["product"][1] == "0.12", "110,600 and 8,448 bytes"
    assert "66 steps" in page.by_id["steps"]
    assert "2 of them compute nothing" in page.by_id["steps"]
    assert "1 steps have sizes that the engine does not report" in page.by_id["steps-uncounted"]
    (labels,) = [figure for figure in page.figures if "kB read and written for one image" in figure]
    assert "attn.v/<i>MatMul</i>, attn.q/MatMul" in labels
    assert sum("attn.q/Add" in label for label in labels) == len(PLAN.block_steps[:60]) - 1
    assert "The first 60 of the 63 steps of blocks.0" in page.text


def add_speed(folder: Path, **changes: Any) -> None:
    """Write an estimate of the folder's engine, recorded like every other artifact."""
    digest = json.loads((folder / "manifest.json").read_text())["engine"]["sha256"]
    evidence = EngineEvidence(steps=PLAN_STEPS)
    estimate = make_estimate(digest, evidence, (), describe_fp16("b" * 64, evidence, ()), "rtx")
    write_artifact(folder / "speed.json", replace(estimate, **changes))
    record(folder)


def test_the_expected_speed_and_a_measured_one_in_its_place(folder: Path) -> None:
    assert "speed" not in Page(render(folder, silent)).by_id, "control: no estimate"
    add_speed(folder)
    page = Page(render(folder, silent))
    assert "The FP16 engine of the same network runs 66 steps" in page.by_id["speed"]
    assert "nothing was timed" in page.by_id["speed"]
    rows = [row for row in page.rows if "FP16's speed at batch" in row[-1]]
    assert len(rows) == 2 * len(RATES)
    assert rows[0][0] == "rtx"
    manifest = json.loads((folder / "manifest.json").read_text())
    ratio = MeasuredRatio(1, 1.12, 1.1, 1.14, 40)
    measured = MeasuredSpeed(manifest["engine"]["sha256"], "c" * 64, "fp16", "a <GPU>", "2026", (ratio,))
    write_artifact(folder / "measured_speed.json", measured)
    record(folder)
    page = Page(render(folder, silent))
    expected = "Measured on a <GPU>: this engine runs at 1.12 times FP16's speed at batch 1 (1.10 to 1.14, 40 pairs)."
    assert page.by_id["measured-speed"] == expected
    kept = [row for row in page.rows if "FP16's speed at batch" in row[-1]]
    assert len(kept) == 2 * (len(RATES) - 1 if manifest["target"] in RATES else len(RATES))
    assert f"The measurement replaces it for {manifest['target']}" in page.by_id["speed"]
    (folder / "measured_speed.json").unlink()
    add_speed(folder, targets=(), fp16=None, reason="weights <overflow> FP16")
    assert "weights <overflow> FP16" in Page(render(folder, silent)).by_id["no-speed"]


def test_an_estimate_of_another_engine_is_refused(folder: Path) -> None:
    add_speed(folder, engine_sha256="0" * 64)
    with pytest.raises(ArtifactError, match=r"different builds in one folder[\s\S]*speed\.json, engine_sha256"):
        render(folder, silent)


def test_an_engine_that_does_not_report_its_steps_has_no_such_section(tmp_path: Path) -> None:
    page = Page(render(make_folder(tmp_path, Recipe(plan=None)), silent))
    assert "steps" not in page.by_id
    assert "What does one inference run?" not in page.text


def test_every_range_in_network_order(failed: tuple[Path, str]) -> None:
    folder, html = failed
    tensors = json.loads((folder / "calibration.json").read_text())["tensors"]
    page = Page(html)
    bars = [
        float(re.fullmatch(r"width: ([\d.]+)%", str(a["style"]))[1]) for tag, a in page.tags if tag == "span" and "style" in a
    ]
    shown = [row[2:] for row in page.rows if len(row) == 4 and row[1] == "" and re.fullmatch(r"[\d.e-]+", row[3])]
    assert shown == [[f"{tensors[name][key]:.3g}" for key in ("amax", "scale")] for name in _grouped()]
    amax = np.array([tensors[name]["amax"] for name in _grouped()])
    low = float(re.search(r"The bars start at (\S+);", page.text)[1])
    assert low < amax.min()
    assert low == 10.0 ** round(np.log10(low))
    per_decade = bars / np.log10(amax / low)
    np.testing.assert_allclose(per_decade, per_decade[0], rtol=0.02)
    assert 50 < max(bars) < 100
    assert f"--decade: {np.median(per_decade):.1f}" in html


def _grouped() -> list[str]:
    """Blocks of one tensor share a table, at the place of the first of them; the rest as in the network."""
    alone = [t for t in TENSORS if t == "image" or t.startswith("blocks.10")]
    return alone + [t for t in TENSORS if t not in alone]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_float_build_has_no_ranges_and_says_so(tmp_path: Path, precision: str) -> None:
    page = Page(render(make_folder(tmp_path, Recipe(precision=precision)), silent))
    assert f"{precision.upper()} engine computes in floating point" in page.by_id["no-calibration"]
    assert "The bars start at" not in page.text
    assert page.data[f"receipt.actual.{precision}"] == ("1.0", "100.00%")


def test_the_placement_is_drawn_and_every_layer_in_float_named(tmp_path: Path) -> None:
    costly = GroupCost(("blocks.0.q/<i>MatMul</i>", "blocks.0.k/MatMul"), 0.0312, 12.5, 7.25)
    frontier = (FrontierPoint(0, 1.0, 21.6), FrontierPoint(1, 0.9688, 28.9))
    chosen = Placement(1, (costly, GroupCost(("head",), 0.9, 40.0, 0.1)), frontier, 16, 6, 0.9)
    page = Page(render(make_folder(tmp_path / "placed", Recipe(placement=chosen)), silent))
    assert [", ".join(costly.nodes), "3.12 %", "7.25"] in page.rows
    assert "3.12% of the multiply-accumulates: 21.6 -> 28.9 dB on 16 held-out calibration images" in page.by_id["placement"]
    html = render(make_folder(tmp_path / "kept", Recipe(placement=replace(chosen, float_groups=0))), silent)
    assert "no layer is worth leaving in float" in Page(html).by_id["placement"]
    assert "0.00 % 21.6 dB, chosen; 3.12 % 28.9 dB" in html
    assert "placement" not in Page(render(make_folder(tmp_path / "none", Recipe()), silent)).by_id
    assert "kernel launches for one image, counted" not in html
    points = (replace(frontier[0], steps=1138), replace(frontier[1], steps=1140), FrontierPoint(2, 0.95, 29.5))
    drawn = render(make_folder(tmp_path / "counted", Recipe(placement=replace(chosen, frontier=points))), silent)
    assert "0.00 % 21.6 dB, 1138 steps; 3.12 % 28.9 dB, 1140 steps, chosen; 5.00 % 29.5 dB" in drawn
    (texts,) = [figure for figure in Page(drawn).figures if any("left in float by choice" in text for text in figure)]
    assert [text for text in texts if text.endswith(" steps")] == ["1,138 steps", "1,140 steps"]
    assert "kernel launches for one image, counted" in drawn
    assert Page(drawn).by_id["placement"].endswith("1138 -> 1140 steps per image.")


def test_random_weights_are_stamped(tmp_path: Path) -> None:
    page = Page(render(make_folder(tmp_path, Recipe(random_weights=True)), silent))
    assert "RANDOM WEIGHTS" in page.by_id["random-weights"]
    assert page.text.index("RANDOM WEIGHTS") < page.text.index("PASS") < page.text.index("Why")
    assert not any("percentage points" in t for figure in page.figures for t in figure), "no interval to mislead"
    assert not {"top1_reference", "drop_points", "interval.low_points"} & set(page.data)
    assert {"cosine_min", "sqnr_db", "images"} <= set(page.data)
    assert ("header", {"class": "verdict untrained"}) in page.tags, "a pass that is not green"


@pytest.mark.slow
def test_many_classes_stay_readable(tmp_path: Path) -> None:
    labels = tuple(f"class {i} {'x' * 60}" for i in range(120))
    page = Page(render(make_folder(tmp_path, Recipe(flips=300, images=1200, labels=labels)), silent))
    (texts,) = [f for f in page.figures if "true class" in f]
    assert sum(t.startswith("class") for t in texts) == 2 * 24
    assert max(len(t) for t in texts) <= 24
    assert "24 of 120 classes that changed most" in page.text
    assert "40 of 120 classes that changed most" in page.text


def test_scales_from_proof_are_counted(failed: tuple[Path, str]) -> None:
    folder, html = failed
    sources = [scale["source"] for scale in json.loads((folder / "calibration.json").read_text())["tensors"].values()]
    said = Page(html).by_id["proven"]
    assert said.startswith(f"At {sources.count('proof')} of {len(sources)} tensors")
    assert 0 < sources.count("proof") < len(sources)


def test_import_needs_no_heavy_library() -> None:
    program = (
        "import sys, edge.report, edge.inspect.describers; "
        "print([m for m in ('torch', 'onnx', 'matplotlib', 'jinja2', 'rich', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "[]"
