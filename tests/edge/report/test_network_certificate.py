"""The certificate of the whole network in the report. Oracle: `certificate.json`, read without the toolkit."""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gate_builds import record
from html_page import Page
from network_certificates import BLOCKS, HIDDEN, add_certificate, network_certificate
from report_folder import Recipe, make_folder, render
from rich.console import Console

from edge.cli.summary import print_summary
from edge.report import network_drawing, network_words
from edge.stability.kind_summaries import summarize_kinds

CLASSES = {"stable": "good", "at risk": "warn", "unstable": "bad"}


def made(folder: Path, *, unstable: bool = False) -> tuple[dict[str, Any], str]:
    make_folder(folder, Recipe())
    add_certificate(folder, unstable=unstable)
    record(folder)
    return json.loads((folder / "certificate.json").read_text()), render(folder, lambda _share: None)


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return made(tmp_path_factory.mktemp("repaired"))


@pytest.fixture(scope="module")
def unstable(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return made(tmp_path_factory.mktemp("unstable"), unstable=True)


def drawn(html: str) -> list[dict[str, Any]]:
    """Every bar of the figure: class, title, top and bottom as powers of two, hollow, tick, line of before, cross."""
    figure = re.search(r'<svg id="network".*?</svg>', html, flags=re.DOTALL)
    assert figure
    lines = {name: float(y) for y, name in re.findall(r'M\S+ (\S+?)H\S+" stroke.*?fill="currentColor">([^<]*)<', figure[0])}
    upper = next(y for name, y in lines.items() if name.startswith("65504"))
    lower = next(y for name, y in lines.items() if name.startswith("2⁻²⁴"))

    def power(y: str) -> float:
        return -24 + (float(y) - lower) / (upper - lower) * (math.log2(65504) + 24)

    bars = []
    for colour, content in re.findall(r'<g class="(\w+)">(<title>.*?)</g>', figure[0], flags=re.DOTALL):
        y, height = re.findall(r'<rect x="\S+" y="(\S+)" width="\S+" height="(\S+)"', content)[0]
        tick = re.search(r'd="M\S+ (\S+?)h\S+" class="seen"', content)
        before = re.search(r'd="M\S+ (\S+?)V(\S+?)" class="before (\w+)"', content)
        bars.append(
            {
                "colour": colour,
                "title": re.search(r"<title>(.*?)</title>", content, flags=re.DOTALL)[1].split("\n"),  # type: ignore[index]
                "top": power(y),
                "bottom": power(str(float(y) + float(height))),
                "hollow": 'fill-opacity="0.12"' in content,
                "tick": power(tick[1]) if tick else None,
                "before": (power(before[2]), before[3]) if before else None,
                "crossed": "×" in content,  # noqa: RUF001  # the mark of an unstable tensor
            }
        )
    return bars


@pytest.mark.parametrize("which", ["repaired", "unstable"])
def test_a_bar_is_what_the_json_says(which: str, request: pytest.FixtureRequest) -> None:
    certificate, html = request.getfixturevalue(which)
    bars = {bar["title"][0]: bar for bar in drawn(html)}
    held: dict[str, list[tuple[str, str]]] = {}
    for site in certificate["sites"]:
        for q in site["quantities"]:
            held.setdefault(q["tensor"], []).append((site["verdicts"]["fp16"]["verdict"], q["computed_in"]))
    assert len(bars) == len(certificate["tensors"]) + BLOCKS, "and a sum inside each LayerNorm"
    for tensor in certificate["tensors"]:
        bar, ((verdict, kept),) = bars[tensor["name"]], held[tensor["name"]]
        seen, bound = tensor["observed_max"], tensor["certified_max"]
        assert bar["bottom"] == pytest.approx(math.log2(tensor["observed_min"]), abs=0.01)
        assert bar["top"] == pytest.approx(math.log2(bound or seen), abs=0.01)
        assert bar["hollow"] == (bound is None)
        assert (bar["tick"] is None) == (bound is None)
        assert bar["colour"] == (CLASSES[verdict] if kept == "fp16" else "muted")
        assert bar["crossed"] == (verdict == "unstable")
        assert f"{seen:.4g}" in bar["title"][1]
    order = [name for name in (bar["title"][0] for bar in drawn(html)) if not name.startswith("the sum")]
    assert order == [tensor["name"] for tensor in certificate["tensors"]]


def test_before_the_repair_is_a_line(repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = repaired
    bars = {bar["title"][0]: bar for bar in drawn(html)}
    for site in certificate["before"]:
        for q in site["quantities"]:
            bar = bars[q["name"]]
            top, colour = bar["before"]
            assert top == pytest.approx(math.log2(q["certified_max"] or q["observed_max"]), abs=0.01)
            assert colour == "bad"
            assert "before the repair" in bar["title"][-1]
    assert not any(bars[site["quantities"][0]["name"]]["before"] for site in certificate["sites"] if site["kind"] == "residual")


def test_colours_are_those_of_fp16_whatever_was_asked_for() -> None:
    certificate = replace(network_certificate(unstable=True), precisions=("int8",))
    verdicts = [bar.range.verdict for bar in network_drawing.drawing(certificate).bars]
    assert verdicts.count("unstable") == 1
    assert {kind.verdict for kind in summarize_kinds(certificate)} == {"stable"}, "in INT8, which is what was asked for"


def test_a_figure_of_a_large_network_is_bounded_and_hides_nothing() -> None:
    certificate = network_certificate(unstable=True, blocks=900)
    drawing, few = network_drawing.drawing(certificate), network_drawing.drawing(network_certificate())
    assert drawing.tensors == 900 * 4 + 1
    assert len(drawing.bars) <= network_drawing.LARGEST
    assert sum(bar.members for bar in drawing.bars) == drawing.tensors
    assert [bar.range.verdict for bar in drawing.bars].count("unstable") == 1, "the one tensor, in its bar"
    assert max(bar.range.seen for bar in drawing.bars) == 1e5
    assert all(bar.members == 1 for bar in few.bars)
    assert "more, this one the largest" in drawing.bars[0].title


def test_the_section_says_verdict_coverage_and_what_is_not_judged(repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = repaired
    page, cover = Page(html), certificate["coverage"]
    assert page.by_id["network-verdict"].startswith(
        "STABLE in what is judged, 1 place not judged (before the repair: unstable) in FP16 and BF16. Overflow is ruled out "
        f"for every input at {cover['certified']} of {cover['stored']} tensors, at {cover['judged'] - cover['certified']} the "
        "images decide, 1 are not judged; 77 constants were checked."
    )
    assert "Repaired: 3 scaled in the weights, 1 in FP32 islands." in page.by_id["network-verdict"]
    assert page.by_id["network-unjudged"].strip() == f"If_{HIDDEN}: its branches are not judged"
    assert "58.5 dB; before the repair: 25.00% of 16 images answered alike, 3 with NaN" in page.by_id["network-emulated"]
    assert "1 site in FP32: 2 Casts, 4,096 values" in page.by_id["network-islands"]
    assert "trt_rtx, measured: plan text" in page.by_id["network-precisions"]
    assert page.data["certificate.coverage.certified"] == (str(cover["certified"]), str(cover["certified"]))
    assert HIDDEN not in html
    assert "XNorm, head by head" in page.text


def test_kinds_and_their_worst_are_tabulated(repaired: tuple[dict[str, Any], str]) -> None:
    certificate, html = repaired
    rows = {row[0]: row for row in Page(html).rows}
    counts = Counter(site["kind"] for site in certificate["sites"])
    for kind, count in counts.items():
        sites = [site for site in certificate["sites"] if site["kind"] == kind]
        bits = min((site["headroom_bits"], site["name"]) for site in sites if site["headroom_bits"] is not None)
        row = rows[network_words.KINDS[kind]]
        assert row[1] == str(count)
        assert row[3] == f"{bits[0]:.1f} bits"
        assert row[4][:20] == bits[1][:20]
        assert row[5] == str(sum(site["verdicts"]["fp16"]["rests_on"] == "certified" for site in sites))
    assert rows["LayerNorm"][2] == "unstable → stable"
    assert rows["LayerNorm"][6] == "3"


def test_sites_that_are_not_stable_come_first(unstable: tuple[dict[str, Any], str]) -> None:
    _, html = unstable
    page = Page(html)
    first = next(row for row in page.rows if row[0].startswith("blocks") and len(row) == 5 and "oftmax" in row[0])
    assert first == ["blocks.2.attn/Softmax", "softmax", "unstable: x overflows", "unstable: x overflows", "none"]
    names = [row[0] for row in page.rows if row[0].endswith(("/ReduceMean", "/Softmax")) and len(row) == 5]
    assert names[0] == "blocks.2.attn/Softmax"
    assert len(names) == 4
    assert page.by_id["network-verdict"].startswith("UNSTABLE in what is judged")


def test_without_one_the_page_is_as_before(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe())
    html = render(tmp_path, lambda _share: None)
    assert 'id="network"' not in html
    assert "Can 16 bits hold XNorm?" in html


def test_every_kind_has_a_name_and_least_headroom_names_its_site() -> None:
    kinds = {kind.kind: kind for kind in summarize_kinds(network_certificate())}
    assert kinds["residual"].tightest == f"blocks.{BLOCKS - 1}/Add"
    assert kinds["residual"].headroom_bits == 7.0 - (BLOCKS - 1)
    assert kinds["softmax"].verdict_before == "unstable"


def test_the_summary_of_a_build_has_a_row(tmp_path: Path) -> None:
    make_folder(tmp_path, Recipe())
    stream = io.StringIO()
    print_summary(Console(file=stream, width=300), tmp_path)
    assert "certificate" not in stream.getvalue()
    add_certificate(tmp_path)
    record(tmp_path)
    print_summary(Console(file=stream, width=300), tmp_path)
    (row,) = [line for line in stream.getvalue().splitlines() if line.startswith("certificate")]
    assert "STABLE in what is judged, 1 place not judged (before the repair: unstable) in FP16 and BF16" in row
    assert "repaired: 3 scaled in the weights, 1 in FP32 islands; FP16 emulated: 100.00% of 16 images" in row
