"""What the page does in a real browser. Oracle: Chromium's pixels, its own list of requests, its console."""

from __future__ import annotations

import time

import pytest
from page_browser import (
    Camera,
    Tabs,
    camera,
    curve_width,
    grey_of,
    needs_browser,
    playwright,
    says,
    wait_for,
)
from page_results import LAYOUT, TOKEN, result, served

from edge.camera.web.dashboard import Dashboard

pytestmark = needs_browser


def test_picture_moves_label_changes_charts_fill(open_tab: Tabs) -> None:
    with camera() as (running, url):
        tab, log = open_tab(url)
        says(tab, "#state", "^Live$")
        wait_for(lambda: abs(grey_of(tab) - 40) < 6, "the first picture")
        says(tab, "#label", "^bolt$")
        running.grey, running.winner = 200, 1
        wait_for(lambda: abs(grey_of(tab) - 200) < 6, "the picture moves")
        says(tab, "#label", "^nut$")
        says(tab, "#sure", "^90 %$")
        assert tab.locator("#bars li").all_inner_texts() == ["bolt\n5 %", "nut\n90 %", "washer\n5 %"]
        time.sleep(0.5)  # bars glide
        widths = [bar["width"] for bar in (item.bounding_box() for item in tab.locator(".fill").all())]
        assert widths[1] == pytest.approx(18 * widths[0], rel=0.1), "bars are as long as their share"
        says(tab, "#title", "^ufovit_t · int8$")
        says(tab, "#verdict", "^Verdict: pass$")
        says(tab, "#age50", r"^20\.0$")
        before = [curve_width(tab, f"#{name}-chart") for name in ("age", "fps", "parts")]
        says(tab, "#fps", "^[0-9.]+$")
        time.sleep(3.5)  # of the sixty seconds that are drawn
        after = [curve_width(tab, f"#{name}-chart") for name in ("age", "fps", "parts")]
        assert all(late >= early + 6 for early, late in zip(before, after, strict=True)), (before, after)
        says(tab, "#parts tr:nth-child(3)", "inference3.003.00")
        assert log.complaints == []
        static = {f"static/{name}" for name in ("page.css", "page.js", "charts.js", "stream.js", "icon.svg")}
        asked = {address.partition("?")[0].removeprefix(url) for address in log.asked}
        assert asked == {"", "picture", "figures", *static}, "nothing of anybody else"


def test_a_request_to_elsewhere_would_be_noticed_and_is_forbidden(open_tab: Tabs) -> None:
    """Negative control of the test above, and the page's policy at work."""
    with camera() as (_, url):
        tab, log = open_tab(url)
        tab.evaluate("() => { document.body.appendChild(new Image()).src = 'http://127.0.0.1:9/a.png'; }")
        wait_for(lambda: any("Content Security Policy" in text for text in log.complaints), "a complaint")
        with pytest.raises(playwright.Error, match="Trusted"):
            tab.evaluate("() => { document.body.innerHTML = '<b>x</b>'; }")


def test_the_token_is_asked_for_and_accepted(open_tab: Tabs) -> None:
    with camera(TOKEN) as (_, url):
        tab, log = open_tab(url)
        assert tab.url == f"{url}login"
        tab.get_by_label("Token").fill("not-the-token")
        tab.get_by_role("button").click()
        says(tab, "[role=alert]", "That is not the token")
        assert log.complaints == ["Failed to load resource: the server responded with a status of 401 (Unauthorized)"]
        tab.get_by_label("Token").fill(TOKEN)
        tab.keyboard.press("Enter")
        says(tab, "#state", "^Live$")
        (cookie,) = tab.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert tab.evaluate("document.cookie") == ""
        assert [address for address in log.asked if TOKEN in address] == []
        tab.reload()
        says(tab, "#state", "^Live$")


def test_without_results_the_picture_is_marked_stale_and_recovers(open_tab: Tabs) -> None:
    with camera() as (running, url):
        running.grey = 180
        tab, log = open_tab(url)
        wait_for(lambda: abs(grey_of(tab) - 180) < 6, "the picture")
        running.held = True
        says(tab, "#state", "^No new picture$")
        says(tab, "#banner", r"No new picture for \d+ s")
        assert grey_of(tab) < 130, "and it is darkened"
        says(tab, "#fps", r"^0\.0$")
        running.held = False
        says(tab, "#state", "^Live$")
        wait_for(lambda: abs(grey_of(tab) - 180) < 6, "the picture again")
        assert log.complaints == []


def test_a_picture_that_does_not_get_through_is_marked_though_answers_do(open_tab: Tabs) -> None:
    with camera() as (running, url):
        running.grey = 180
        tab, _ = open_tab(url)
        wait_for(lambda: abs(grey_of(tab) - 180) < 6, "the picture")
        tab.route("**/picture", lambda route: route.abort())
        running.cut_pictures()
        says(tab, "#state", "^Picture late$")
        assert grey_of(tab) < 130, "and it is darkened"
        running.winner = 1
        says(tab, "#label", "^nut$")
        tab.unroute("**/picture")
        says(tab, "#state", "^Live$")
        wait_for(lambda: abs(grey_of(tab) - 180) < 6, "the picture again")


def test_a_slow_network_is_not_taken_for_a_fault(open_tab: Tabs) -> None:
    """An answer every five seconds, as of a large network on a small processor."""
    with camera() as (running, url):
        running.held = True
        tab, _ = open_tab(url)
        tab.evaluate("""() => {
            const state = document.querySelector("#state");
            window.states = [];
            new MutationObserver(() => window.states.push(state.innerText)).observe(state, { childList: true });
        }""")
        for number in range(2):
            given = result(number)
            running.page(type(given)(**{**vars(given), "fps": 0.2}))
            time.sleep(5)
        assert [state for state in tab.evaluate("window.states") if state != "No answer yet"] == ["Live"]


def test_pause_holds_the_picture_and_costs_the_camera_nothing(open_tab: Tabs) -> None:
    with camera() as (running, url):
        tab, log = open_tab(url)
        wait_for(lambda: abs(grey_of(tab) - 40) < 6, "the picture")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "pause"
        tab.keyboard.press("Enter")
        says(tab, "#state", "^Paused$")
        assert tab.get_by_role("button", name="Resume").get_attribute("aria-pressed") == "true"
        running.grey, running.winner = 220, 2
        wait_for(lambda: running.page.broadcast._viewers["picture"] == 0, "the stream ends")
        encoded = running.page.broadcast.encoded
        time.sleep(1.5)
        assert abs(grey_of(tab) - 40) < 6
        says(tab, "#label", "^bolt$")
        assert running.page.broadcast.encoded == encoded
        tab.keyboard.press("Space")
        wait_for(lambda: abs(grey_of(tab) - 220) < 6, "the picture moves on")
        says(tab, "#label", "^washer$")
        assert log.complaints == []


def test_a_tab_that_nobody_sees_asks_for_nothing(open_tab: Tabs) -> None:
    with camera() as (running, url):
        tab, _ = open_tab(url)
        says(tab, "#state", "^Live$")
        hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        hide += "document.dispatchEvent(new Event('visibilitychange')); }"
        tab.evaluate(hide, True)
        wait_for(lambda: running.page.broadcast._viewers == {"picture": 0, "figures": 0}, "both streams end")
        tab.evaluate(hide, False)
        says(tab, "#state", "^Live$")


def test_a_camera_that_stops_is_told_and_one_that_comes_back_is_shown(open_tab: Tabs) -> None:
    with served() as (page, port):
        page(result(0))
        tab, _ = open_tab(f"http://127.0.0.1:{port}/")
        says(tab, "#state", "^(Live|No new picture)$")
        page.close()
        says(tab, "#state", "^Stopped$")
        again = Dashboard({"model": "another"}, LAYOUT, "127.0.0.1", port)
        again.start()
        running = Camera(again)
        try:
            running.grey = 150
            says(tab, "#title", "^another$")
            says(tab, "#state", "^Live$")
            wait_for(lambda: abs(grey_of(tab) - 150) < 6, "its picture")
        finally:
            running.stop()
            again.close()
        guarded = Dashboard({"model": "guarded"}, LAYOUT, "127.0.0.1", port, TOKEN)
        guarded.start()
        try:
            playwright.expect(tab.get_by_label("Token")).to_be_visible(timeout=20_000)
        finally:
            guarded.close()
