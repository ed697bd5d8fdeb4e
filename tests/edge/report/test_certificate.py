"""The certificate in the report and in the summary of a build. Oracle: `xnorm.json`, read without the toolkit."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from report_folder import Recipe, make_folder, render
from rich.console import Console

from calib.files import sha256_file
from edge.cli.summary import print_summary

COLOURS = {"stable": "good", "at risk": "warn", "unstable": "bad"}
PANELS = ("before", "sites")


def made(folder: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    """A folder's certificate and report."""
    make_folder(folder, Recipe(**changes))
    return json.loads((folder / "xnorm.json").read_text()), render(folder, lambda _share: None)


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return made(tmp_path_factory.mktemp("folded"))


@pytest.fixture(scope="module")
def unstable(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return made(tmp_path_factory.mktemp("unstable"), xnorm="unstable")


@pytest.fixture(scope="module")
def island(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return made(tmp_path_factory.mktemp("island"), xnorm="island", precision="fp16")


def summary(folder: Path) -> str:
    stream = io.StringIO()
    print_summary(Console(file=stream, width=250), folder)
    return stream.getvalue()


def group(html: str, name: str) -> str:
    """The content of a `<g>` of the figure that holds no other, "" where there is none."""
    found = re.search(rf'<g id="xnorm-{name}">(.*?)</g>', html, flags=re.DOTALL)
    return found[1] if found else ""


def heights(drawn: str) -> list[float]:
    """The y of every point of the paths in a group."""
    return [float(y) for path in re.findall(r'd="([^"]*)"', drawn) for y in re.findall(r"[ML] \S+ (\S+)", path)]


@pytest.mark.parametrize("which", ["repaired", "unstable", "island"])
def test_positions_of_bars_and_ticks_are_those_of_the_json(which: str, request: pytest.FixtureRequest) -> None:
    """Heights are measured against the lines of FP16's limits."""
    certificate, html = request.getfixturevalue(which)
    for panel, sites in enumerate(certificate[key] for key in PANELS):
        top, bottom = (heights(group(html, f"limit{panel}-{i}"))[0] for i in (0, 2))
        ends = math.log2(65504), -24.0

        def value(y: float, top: float = top, bottom: float = bottom, ends: tuple[float, float] = ends) -> float:
            return ends[1] + (y - bottom) / (top - bottom) * (ends[0] - ends[1])

        ticks = heights(group(html, f"seen{panel}"))[::2]
        assert [value(y) for y in ticks] == pytest.approx([math.log2(s["sum_sq_max"]) for s in sites], abs=1e-3)
        for i, site in enumerate(sites):
            bar = group(html, f"bar{panel}-{i}")
            found = sorted(value(y) for y in heights(bar))
            assert found[0] == pytest.approx(math.log2(site["sum_sq_min"]), abs=1e-3)
            certified = site["bound_sum_sq"] is not None
            assert found[-1] == pytest.approx(math.log2(site["bound_sum_sq" if certified else "sum_sq_max"]), abs=1e-3)
            verdict = site["verdicts"]["fp16"]["verdict"]
            assert set(re.findall(r"var\(--(\w+)\)", bar)) == {COLOURS[verdict]}
            assert ("fill: none" in bar) == (not certified), "hollow where nothing is certified"
            assert bool(group(html, f"cross{panel}-{i}")) == (verdict == "unstable")
            assert bool(group(html, f"island{panel}-{i}")) == site["island"]
    assert not group(html, f"bar0-{len(certificate['sites'])}")


def test_bars_of_q_are_pale(repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = repaired
    shown = [group(html, f"bar1-{i}") for i in range(len(certificate["sites"]))]
    strength = [float(re.search(r"opacity: ([\d.]+)", bar)[1]) for bar in shown]  # type: ignore[index]  # must match
    assert [s < 0.6 for s in strength] == [site["operand"] == "q" for site in certificate["sites"]]


def test_panels_say_what_they_show(repaired: tuple[dict[str, Any], str]) -> None:
    html = repaired[1]
    (texts,) = [f for f in Page(html).figures if any("in FP16" in t for t in f)]
    assert {"before: 3 stable, 2 at risk, 1 unstable in FP16", "after folding: 6 stable in FP16"} <= set(texts)
    assert {"65504 largest", "2⁻¹⁴ normal", "2⁻²⁴ subnormal", "blocks.0", "blocks.2"} <= set(texts)
    (alt,) = [a["aria-label"] for tag, a in Page(html).tags if tag == "svg" and "XNorms" in str(a.get("aria-label"))]
    assert "sum of squares of 6 XNorms" in str(alt)
    assert "before: 3 stable, 2 at risk, 1 unstable in FP16; after folding: 6 stable in FP16" in str(alt)


def test_the_section_says_what_was_checked(repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = repaired
    page, sites = Page(html), certificate["sites"]
    assert page.text.index("Is it really INT8?") < page.text.index("Can 16 bits hold XNorm?") < page.text.index("Which answers")
    assert page.by_id["xnorm-verdict"] == (
        "STABLE (it was unstable): 6 XNorms stable in FP16 and INT8, overflow ruled out for every input at 5, at the others on "
        "384 images only; 3 folded by powers of two (before: 2 at risk and 1 unstable)."
    )
    folding = f"On {certificate['checks']['images']} images the FP32 logits before and after are identical to the last bit."
    assert folding in page.by_id["xnorm-folding"]
    assert f"certified at {sum(s['bound_sum_sq'] is not None for s in sites)} of 6 XNorms" in page.by_id["xnorm-basis"]
    assert f"what {certificate['images']} images showed" in page.by_id["xnorm-basis"]
    assert "direction error 0.008" in page.by_id["xnorm-basis"]
    assert "xnorm-islands" not in page.by_id
    assert "no-certificate" not in page.by_id


@pytest.mark.slow
def test_logits_that_changed_are_not_called_identical(tmp_path: Path) -> None:
    certificate, _ = made(tmp_path)
    certificate["checks"]["logits_bit_identical"] = False
    (tmp_path / "xnorm.json").write_text(json.dumps(certificate))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["xnorm"]["sha256"] = sha256_file(tmp_path / "xnorm.json")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    said = Page(render(tmp_path, lambda _share: None)).by_id["xnorm-folding"]
    assert "not identical" in said
    assert "identical to the last bit" not in said


def test_repaired_xnorms_are_listed(repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = repaired
    rows = {row[0]: row[1:] for row in Page(html).rows}
    for old, new in zip(certificate["before"], certificate["sites"], strict=True):
        if not new["fold"]:
            assert new["name"] not in rows
            continue
        was, now = (site["verdicts"]["fp16"] for site in (old, new))
        assert rows[new["name"]] == [
            new["operand"],
            f"{was['verdict']}: {was['reason']}",
            f"{now['verdict']}: {now['reason']}",
            "2^-5 (k/MatMul.weight 2^-3, v/MatMul.weight 2^-1 to 2^-2 by head)",
        ]


def test_long_tables_are_collapsed(tmp_path: Path) -> None:
    certificate, html = made(tmp_path, xnorm="unstable", xnorm_blocks=26)
    names = [row[0] for row in Page(html).rows if "xnorm_kv" in row[0]]
    assert names[0] == certificate["sites"][-1]["name"], "the worst first"
    assert len(names) == 26
    assert "<summary>14 more</summary>" in html


def test_an_unstable_xnorm_shows(unstable: tuple[dict[str, Any], str], repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = unstable
    page, name = Page(html), certificate["sites"][-1]["name"]
    assert page.by_id["xnorm-verdict"].startswith("UNSTABLE: 5 of 6 XNorms stable in FP16 and INT8")
    assert "1 unstable; 2 folded" in page.by_id["xnorm-verdict"]
    (row,) = [row for row in page.rows if row[0] == name]
    assert row[3] == "unstable: sum a^2 overflows in 97.7% of the vectors of head 1"
    assert row[4] == "none"
    assert "after folding: 5 stable, 1 unstable in FP16" in html
    assert "unstable: " not in str([row[3] for row in Page(repaired[1]).rows if "xnorm" in row[0]])


def test_an_island_is_marked_and_its_cost_named(island: tuple[dict[str, Any], str]) -> None:
    certificate, html = island
    page, cost = Page(html), certificate["islands"]
    said = page.by_id["xnorm-islands"]
    assert f"{cost['sites']} of 6, at a cost of {cost['casts']} Casts and {cost['values_per_image']:,} converted values" in said
    (row,) = [row for row in page.rows if row[0] == certificate["sites"][-1]["name"]]
    assert row[4] == "FP32 island"
    assert "after folding: 6 stable in FP16; 1 in FP32 islands" in html


def test_nothing_to_repair(tmp_path: Path) -> None:
    certificate, html = made(tmp_path, xnorm="untouched")
    page = Page(html)
    assert "xnorm-untouched" in page.by_id
    assert "xnorm-folding" not in page.by_id
    assert page.by_id["xnorm-verdict"] == "STABLE: 6 XNorms stable in FP16 and INT8, overflow ruled out for every input."
    assert group(html, f"bar0-{len(certificate['sites']) - 1}")
    assert not group(html, "bar1-0"), "one panel"
    assert "xnorm      6 XNorms stable" in summary(tmp_path)


def test_a_float_build_has_nothing_to_certify(tmp_path: Path) -> None:
    html = render(make_folder(tmp_path, Recipe(precision="fp32")), lambda _share: None)
    assert "nothing had to be certified" in Page(html).by_id["no-certificate"]
    assert not group(html, "bar0-0")
    assert "xnorm" not in summary(tmp_path)


def test_a_build_without_a_certificate_does_not_claim_safety(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe(precision="fp16"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "xnorm": None}))
    said = Page(render(tmp_path, lambda _share: None)).by_id["no-certificate"]
    assert "holds no certificate" in said
    assert "safe" not in said


def test_provenance_names_certificate_and_graph(repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = repaired
    rows = {row[0]: row for row in Page(html).rows}
    assert rows["XNorm certificate"][1] == "xnorm.json"
    assert rows["folded graph"][1] == "model.folded.onnx"
    assert certificate["folded_onnx_sha256"] in html
    assert certificate["data_sha256"] in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "6 XNorms stable in FP16 and INT8, overflow ruled out for every input at 5, at the others on 384 images only; "),
        ({"precision": "fp16"}, "3 folded by powers of two (before: 2 at risk and 1 unstable)"),
        ({"xnorm": "island"}, "2 folded by powers of two; 1 in FP32 islands (before: 2 at risk and 1 unstable)"),
        ({"xnorm": "island"}, "1 XNorm in FP32: 3 Casts, 12,345 values of an image cross them"),
        ({"xnorm": "unstable"}, "5 of 6 XNorms stable in FP16 and INT8"),
        ({"random_weights": True}, "xnorm      6 XNorms stable"),
    ],
)
def test_the_summary_has_a_row(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    make_folder(tmp_path, Recipe(**changes))
    assert said in summary(tmp_path)
