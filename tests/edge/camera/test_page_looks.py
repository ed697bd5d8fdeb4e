"""How the page looks, and how it is read aloud. Oracle: Chromium's layout, WCAG's formula of contrast."""

from __future__ import annotations

import re
import time

import pytest
from page_browser import (
    PHONE,
    Tabs,
    camera,
    contrast,
    luminance,
    needs_browser,
    says,
)
from page_results import TOKEN, result

from edge.camera.web.dashboard import Dashboard
from edge.tasks.classification import Classification
from edge.tasks.frame_answer import PanelLayout

TEXTS = """() => [...document.querySelectorAll("body *")]
    .filter(node => node.checkVisibility() && node.id !== "spoken")
    .filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()))
    .map(node => {
        let backdrop = node;
        while (getComputedStyle(backdrop).backgroundColor === "rgba(0, 0, 0, 0)") backdrop = backdrop.parentElement;
        const colours = [getComputedStyle(node).color, getComputedStyle(backdrop).backgroundColor];
        return [node.id || node.className || node.tagName, ...colours];
    })"""
"""Everything that shows text: its name, its colour, the background colour."""
AXIS = """async most => {
    const { niceStep, axisText } = await import("/static/charts.js");
    const step = niceStep(most);
    return [step, axisText(step, step)];
}"""

pytestmark = needs_browser


@pytest.mark.parametrize("path", ["", "login"])
def test_a_phone_shows_it_without_scrolling_sideways(open_tab: Tabs, path: str) -> None:
    long_words = {"audit": "x" * 200, "a very long name of a row indeed": "a value"}
    with camera(TOKEN if path else None, notes=lambda: long_words) as (_, url):
        tab, log = open_tab(url + path, PHONE)
        if not path:
            says(tab, "#state", "^Live$")
            says(tab, "#notes", "x{200}")
            assert tab.locator("#pause").bounding_box()["height"] >= 44, "large enough for a thumb"
        time.sleep(0.3)
        assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        beyond = """[...document.querySelectorAll("main *, header *")]
            .filter(node => node.checkVisibility() && node.getBoundingClientRect().right > innerWidth)
            .map(node => node.id || node.className)"""
        assert tab.evaluate(beyond) == []
        assert log.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(open_tab: Tabs, scheme: str) -> None:
    with camera(notes=lambda: {"audit": "99 of 100 agree"}) as (_, url):
        tab, _ = open_tab(url, scheme=scheme)
        says(tab, "#state", "^Live$")
        says(tab, "#notes", "agree")
        pairs = tab.evaluate(TEXTS)
        assert len(pairs) > 30
        weak = [(name, round(contrast(ink, paper), 2)) for name, ink, paper in pairs if contrast(ink, paper) < 4.5]
        assert weak == []
        dark = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1
        assert dark is (scheme == "dark")


def test_contrast_is_measured() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


def test_a_label_is_text_whatever_it_holds(open_tab: Tabs) -> None:
    evil = '<img src=x onerror="document.title=1">'
    page = Dashboard({"model": evil, "verdict": "fail: <b>"}, PanelLayout(), port=0)
    url = page.start()
    given = result(0)
    page(type(given)(**{**vars(given), "answer": Classification((evil, "b", "c")).answer(given.outputs, 1)}))
    try:
        tab, log = open_tab(url)
        says(tab, "#label", re.escape(evil))
        says(tab, "#verdict", "^Verdict: fail$")
        assert tab.locator("main img").count() == 0
        assert log.complaints == []
    finally:
        page.close()


def test_a_screen_reader_hears_an_answer_that_stays(open_tab: Tabs) -> None:
    with camera() as (running, url):
        tab, _ = open_tab(url)
        says(tab, "#spoken", "^bolt, 90 %$")
        for number in range(20):
            running.winner = number % 3
            time.sleep(0.1)
        assert tab.locator("#spoken").inner_text() == "bolt, 90 %", "not of every flicker"
        running.winner = 2
        says(tab, "#spoken", "^washer, 90 %$")
        assert tab.get_by_role("status").inner_text() == "Live"
        assert tab.get_by_role("img", name=re.compile("^Delay from picture to answer: now p50 20.0")).count() == 1


def test_axes_have_round_numbers(open_tab: Tabs) -> None:
    with camera() as (_, url):
        tab, _ = open_tab(url)
        table = {
            0.9: (0.5, "0.5"),
            1.2: (0.5, "0.5"),
            30: (10, "10"),
            31: (20, "20"),
            7: (2.5, "2.5"),
            0.02: (0.01, "0.01"),
            900: (500, "500"),
        }
        for most, (step, text) in table.items():
            found = tab.evaluate(AXIS, most)
            assert found == [pytest.approx(step), text], most
