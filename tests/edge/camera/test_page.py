"""The page over HTTP: what is served, how it starts and ends. Oracle: the standard library's client, Pillow's decoder."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import resources

import numpy as np
import pytest
from page_results import IDENTITY, LAYOUT, ask, result, served, stream
from PIL import Image

from calib.errors import InputError, MissingError
from edge.camera.web.dashboard import Dashboard
from edge.camera.web.routes import FILES


@pytest.fixture(scope="module")
def open_page() -> Iterator[int]:
    """The port of a page without a token, with a result on it."""
    with served() as (page, port):
        page(result(7, winner=2))
        yield port


def test_the_files_are_served_as_they_are_with_their_types(open_page: int) -> None:
    folder = resources.files("edge.camera.web") / "static"
    assert {entry.name for entry in folder.iterdir()} == {*FILES, "index.html", "login.html"}
    for name, media in FILES.items():
        status, headers, body = ask(open_page, f"/static/{name}")
        assert (status, headers["content-type"], body) == (200, media, (folder / name).read_bytes())
    assert ask(open_page, "/")[2] == (folder / "index.html").read_bytes()


def test_the_page_brings_everything_along_and_no_script_in_the_document() -> None:
    folder = resources.files("edge.camera.web") / "static"
    for entry in folder.iterdir():
        text = entry.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", ""), f"{entry.name} names another address"
        if entry.name.endswith(".html"):
            assert "<style" not in text
            assert " style=" not in text
            assert " on" not in text.replace(" one", "").replace(" on ", ""), "a handler in the document"
            assert text.count("<script") == text.count('<script type="module" src="/static/')


def test_a_picture_is_the_frame(open_page: int) -> None:
    with stream(open_page, "/picture") as answer:
        assert answer.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        assert answer.readline() == b"--frame\r\n"
        head = dict(line.split(": ") for line in iter(lambda: answer.readline().decode().strip(), ""))
        jpeg = answer.read(int(head["Content-Length"]))
        assert answer.read(11) == b"\r\n--frame\r\n", "its end comes with it"
    assert (head["Content-Type"], head["X-Result"]) == ("image/jpeg", "7")
    seen = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert seen.shape == (120, 160, 3)
    assert np.abs(seen.astype(int) - 7).max() <= 3


def test_figures_are_events_with_json(open_page: int) -> None:
    with stream(open_page, "/figures") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        told = {}
        while "result" not in told:
            line = answer.readline().decode()
            if line.startswith("event: "):
                told[line[7:].strip()] = json.loads(answer.readline().decode().removeprefix("data: "))
    assert told["about"]["identity"] == [list(row) for row in IDENTITY.items()]
    assert (told["result"]["title"], told["result"]["figure"]) == ("washer", "90 %")


def test_a_taken_port_is_told_before_anything_starts() -> None:
    with served() as (_, port):
        other = Dashboard(IDENTITY, LAYOUT, "127.0.0.1", port)
        with pytest.raises(InputError, match=f"(?s)port {port} is in use.*next: --serve {port + 1}"):
            other.start()
        other.close()


def test_it_starts_once_and_closes_twice() -> None:
    page = Dashboard(IDENTITY, LAYOUT, port=0)
    page.start()
    with pytest.raises(InputError, match="started before"):
        page.start()
    page.close()
    page.close()
    page(result(0))
    with pytest.raises(InputError, match="started before"):
        page.start()


def test_closing_ends_every_stream_within_a_second_and_leaves_nothing() -> None:
    before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    threads = set(threading.enumerate())
    with served() as (page, port):
        page(result(0))
        assert {number: signal.getsignal(number) for number in before} == before, "signals are the command's"
        with stream(port, "/picture") as picture, stream(port, "/figures") as figures:
            picture.readline()
            figures.readline()
            started = time.monotonic()
            page.close()
            assert time.monotonic() - started < 1.5, "a second, and what a busy machine adds"
            assert b"event: end\n" in figures.read()
            picture.read()
        assert set(threading.enumerate()) <= threads
        again = Dashboard(IDENTITY, LAYOUT, "127.0.0.1", port)
        again.start()
        again.close()


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_libraries_it_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingError, match=r"(?s)starlette and uvicorn.*pip install 'ufovit-edge\[camera\]'"):
        Dashboard(IDENTITY, LAYOUT)


def test_nothing_is_printed_and_no_library_is_loaded_early() -> None:
    code = """
import sys, edge.camera.web.dashboard as module
assert not {"starlette", "uvicorn", "cv2", "PIL", "torch", "onnx"} & set(sys.modules), "too early"
sys.path.insert(0, "tests/support")
from page_results import ask, served, result, say
with served("correct-horse-battery") as (page, port):
    page(result(0))
    ask(port, "/?token=correct-horse-battery")
    ask(port, "/login", "POST", "token=wrong")
    say(port, b"nonsense\\r\\n\\r\\n")
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
