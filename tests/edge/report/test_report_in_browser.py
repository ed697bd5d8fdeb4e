"""The report in a real browser: no request, both colour schemes, pictures, paper. Oracle: Chromium's pixels and its own log."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_folder import Recipe, attribution, make_folder, render

from calib.artifact import write_artifact

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
PAPER = {"light": (255, 255, 255), "dark": (0x14, 0x17, 0x1B)}
SIZE = (1000, 6000)
ITS_OWN = "not an origin"
"""Initiator, in the log, of what the browser asks for itself: its updates and its clock."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A failed build with everything on it."""
    folder = make_folder(tmp_path_factory.mktemp("browser"), Recipe(flips=40, better=3))
    write_artifact(folder / "attribution.json", attribution(folder))
    path = folder / "report.html"
    path.write_text(render(folder, lambda _share: None))
    return path


def browse(page: Path, folder: Path, *options: str) -> None:
    """Open a page without a window, and without a network for the browser's own errands."""
    run = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    run += ["--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]
    run += [f"--user-data-dir={folder / 'profile'}", f"--window-size={SIZE[0]},{SIZE[1]}", *options, page.as_uri()]
    subprocess.run(run, check=True, capture_output=True, timeout=180, cwd=folder)


def pixels(page: Path, folder: Path, scheme: str) -> np.ndarray:
    """What is seen of a page in a colour scheme, RGB (6000, 1000, 3)."""
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    browse(page, folder, setting, f"--screenshot={folder / 'shot.png'}")
    return np.asarray(Image.open(folder / "shot.png").convert("RGB"))


def asked_for(page: Path, folder: Path) -> list[str]:
    """Addresses that the page made the browser ask for."""
    browse(page, folder, f"--log-net-log={folder / 'net.json'}", f"--screenshot={folder / 'shot.png'}")
    log = json.loads((folder / "net.json").read_text())
    starts = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in log["events"] if event["type"] == starts and "url" in event.get("params", {})]
    return [params["url"] for params in asked if params.get("initiator") != ITS_OWN]


def test_nothing_is_asked_of_the_network(page: Path, tmp_path: Path) -> None:
    assert asked_for(page, tmp_path) == []


@pytest.mark.parametrize(
    "tag", ['<img src="http://127.0.0.1:9/a.png">', '<link rel="stylesheet" href="http://127.0.0.1:9/a.css">']
)
def test_a_page_that_asks_is_noticed(tmp_path: Path, tag: str) -> None:
    """Negative control of the test above."""
    (tmp_path / "asking.html").write_text(f"<!doctype html>{tag}")
    assert [url.partition("/a.")[0] for url in asked_for(tmp_path / "asking.html", tmp_path)] == ["http://127.0.0.1:9"]


def test_what_is_smuggled_in_is_not_fetched(page: Path, tmp_path: Path) -> None:
    """The page's own policy forbids what would get past everything else."""
    smuggled = '<img src="http://127.0.0.1:9/a.png"><script src="http://127.0.0.1:9/a.js"></script></body>'
    (tmp_path / "smuggled.html").write_text(page.read_text().replace("</body>", smuggled))
    assert asked_for(tmp_path / "smuggled.html", tmp_path) == []


def test_both_colour_schemes_show_everything(page: Path, tmp_path: Path) -> None:
    seen = {scheme: pixels(page, tmp_path, scheme) for scheme in PAPER}
    for scheme, image in seen.items():
        assert tuple(image[-5, 5]) == tuple(image[1500, 5]) == PAPER[scheme], scheme
        below = image[600:]
        ink = np.abs(below.astype(int) - PAPER[scheme]).sum(axis=2) > 300
        assert 0.005 < ink.mean() < 0.3, "text and lines stand out from the paper"
        green = (below[:, :, 1] == 200) & (below[:, :, 2] == 40)
        assert green.sum() > 24 * 500, "the pictures of the gallery"
    assert tuple(seen["light"][20, 5]) == (0xB3, 0x26, 0x1E), "the verdict's colour"
    assert tuple(seen["dark"][20, 5]) == (0xB8, 0x35, 0x2C)


def test_it_prints_with_everything_unfolded(page: Path, tmp_path: Path) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext here: apt-get install poppler-utils")
    browse(page, tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    run = subprocess.run(["pdftotext", "-layout", tmp_path / "report.pdf", "-"], capture_output=True, check=True, text=True)
    pages = run.stdout.split("\f")[:-1]
    assert "FAIL" in pages[0], "the verdict stands on the first page"
    folded = ("McNemar", "Images before", "95 % interval", "part of the logits")
    assert [words for words in folded if words not in run.stdout] == [], "nobody can unfold paper"
    for text in pages:
        last = [line for line in text.splitlines() if line.strip()][-1:]
        assert not last or last[0].strip() not in ("Why", "The images themselves", "Ranges of the layers"), "a heading alone"
