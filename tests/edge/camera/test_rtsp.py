"""Streams: one that accepts and says nothing, one that stops, a wrong password; and no password in any message."""

import socket
import time

import numpy as np
import pytest
from camera_fakes import loaded_cv2, read_all
from stream_server import mjpeg, server, silent

from calib.errors import MissingError
from edge.camera.capture import Capture, LatestFrameFeed
from edge.camera.frame import SourceLost
from edge.camera.latest_frame import LatestFrame
from edge.camera.reconnect import Reconnect
from edge.camera.sources.registry import open_source

loaded_cv2()

TIMEOUT_S = 0.4


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_accepts_and_says_nothing(scheme, capfd):
    with (
        server(silent) as port,
        pytest.raises(MissingError, match=r"cannot be opened: no video within 0.4 s") as raised,
    ):
        open_source(f"{scheme}://admin:s3cret@127.0.0.1:{port}/live?key=t0ken", timeout_s=TIMEOUT_S)
    text = str(raised.value)
    assert f"{scheme}://127.0.0.1:{port}/live" in text
    printed = "".join(capfd.readouterr())
    assert not any(secret in text + printed for secret in ("s3cret", "t0ken", "admin"))
    assert printed == ""


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(MissingError, match="cannot be opened"):
        open_source(f"rtsp://127.0.0.1:{port}/", timeout_s=TIMEOUT_S)


@pytest.mark.slow
def test_a_stream_gives_pictures_and_its_stall_is_a_loss():
    with server(mjpeg(40)) as port:
        source = open_source(f"http://me:s3cret@127.0.0.1:{port}/video", timeout_s=1.0)
        assert source.live
        first = source.read()
        np.testing.assert_allclose(first[24, 32], (200, 40, 0), atol=12)
        with pytest.raises(SourceLost, match="stopped delivering frames") as raised:
            read_all(source)
        source.close()
    assert "s3cret" not in str(raised.value) + source.name
    assert raised.value.exit_code == 4


@pytest.mark.slow
def test_a_stream_that_stalls_mid_run_is_opened_again():
    said = []
    with server(mjpeg(40)) as port:
        address = f"http://me:s3cret@127.0.0.1:{port}/video"
        about = Capture(
            lambda: open_source(address, timeout_s=0.7),
            LatestFrame(time.monotonic),
            Reconnect(30, 0.05),
            time.monotonic,
            said.append,
        )
        frames = LatestFrameFeed(about, about.opener())
        deadline = time.monotonic() + 60
        while about.stats.reconnected < 2 and time.monotonic() < deadline:
            frames.next(0.1)
        frames.stop()
    assert about.stats.reconnected >= 2
    assert "stopped delivering frames" in said[0]
    assert "frames again" in said[1]
    assert "s3cret" not in "".join(said)
