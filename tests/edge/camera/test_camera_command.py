"""`ufovit camera` from end to end on a small build: answers, exit codes, one test per fault, signals."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from camera_fakes import ListSource, gone, loaded_cv2, picture, read_all
from stream_server import mjpeg, server

from edge.camera import forced_exit, opencv, session
from edge.camera.capture import LatestFrameFeed
from edge.camera.sinks import recorder
from edge.camera.sources import v4l2
from edge.camera.sources.registry import open_source
from edge.cli import run
from edge.images.preprocess import Preprocess
from edge.runtime.runner import FakeRunner
from engines.build_folder.folder import BuildFolder

ROOT = Path(__file__).resolve().parents[3]
PART = "synthetic://?size=64x48&fps=200"
MAIN = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts in the background without it
from edge.cli.main import main
main()"""


@pytest.fixture
def at_exit(monkeypatch):
    """What would run when the process ends."""
    planned = []
    monkeypatch.setattr(forced_exit, "atexit", types.SimpleNamespace(register=lambda *call: planned.append(call)))
    return planned


@pytest.fixture
def camera(built, capfd, at_exit):
    """camera(source, *options) -> (exit code, stdout, stderr)."""

    def call(source, *options, build=None):
        code = run(["camera", str(build or built / "out"), "--source", str(source), "--threads", "1", *map(str, options)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def start(built, *options, **changes):
    command = [sys.executable, "-c", MAIN, "camera", str(built / "out"), "--threads", "1", *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **changes}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def lines_of(text):
    """Result lines, summary lines of the output; what runs comes first."""
    found = [json.loads(line) for line in text.splitlines()]
    return [x for x in found if x["type"] == "result"], [x for x in found if x["type"] == "summary"]


def test_answers_are_those_of_the_engine(camera, built):
    import onnxruntime

    code, out, err = camera(f"{PART}&frames=12", "--every-frame", "--json", "--top", 2)
    assert code == 0
    results, (summary,) = lines_of(out)
    manifest = BuildFolder(built / "out").manifest
    session_ = onnxruntime.InferenceSession(str(built / "out" / manifest.engine.file), providers=["CPUExecutionProvider"])
    preprocess = Preprocess.from_json({k: v for k, v in manifest.preprocess.items() if k != "sha256"})
    for line, pixels in zip(results, read_all(open_source(f"{PART}&frames=12")), strict=True):
        (logits,) = session_.run(None, {session_.get_inputs()[0].name: preprocess(pixels)[None]})
        shares = np.exp(logits[0].astype(np.float64)) / np.exp(logits[0].astype(np.float64)).sum()
        best = np.argsort(-shares)[:2]
        assert [a["index"] for a in line["top"]] == best.tolist()
        assert [a["label"] for a in line["top"]] == [manifest.labels[i] for i in best]
        assert [a["probability"] for a in line["top"]] == pytest.approx(shares[best], abs=1e-3)
    assert [x["frame"] for x in results] == list(range(12))
    assert (summary["results"], summary["dropped"], summary["ended"]) == (12, 0, "end of the source")
    assert "12 in" in err


def test_json_lines_have_the_documented_fields(camera):
    from edge.camera.sinks import json_lines

    _, out, _ = camera(f"{PART}&frames=3", "--every-frame", "--json", "--audit", 1)
    results, (summary,) = lines_of(out)
    start = json.loads(out.splitlines()[0])
    assert start["type"] == "start"
    for line in (start, *results, summary):
        for name in line:
            assert name in json_lines.__doc__, name
    assert set(results[0]["latency_ms"]) == {"capture", "preprocess", "inference", "postprocess", "age"}
    assert set(summary["latency_ms"]["age"]) == {"p50", "p95", "p99", "max"}
    assert summary["audit"]["compared"] == 3
    assert results[0]["width"], results[0]["height"] == (64, 48)


def test_what_runs_is_said_first(camera, built):
    manifest = BuildFolder(built / "out").manifest
    _, out, _ = camera(f"{PART}&frames=2", "--every-frame", "--json")
    first = json.loads(out.splitlines()[0])
    assert (first["engine_sha256"], first["labels"]) == (manifest.engine.sha256, list(manifest.labels))
    assert (first["runner"], first["random_weights"], first["source"]) == ("ort", False, f"{PART}&frames=2")
    assert first["verdict"] == json.loads((built / "out" / "drift.json").read_text())["verdict"]


def test_drawn_weights_and_failed_builds_are_stamped(camera, monkeypatch):
    genuine = session.open_runner

    def drawn(*arguments, **options):
        found = genuine(*arguments, **options)
        return replace(found, manifest=replace(found.manifest, random_weights=True))

    monkeypatch.setattr(session, "open_runner", drawn)
    monkeypatch.setattr(session, "_verdict", lambda _folder: "fail: 9 points lost")
    _, out, err = camera(f"{PART}&frames=2", "--every-frame", "--json")
    assert json.loads(out.splitlines()[0])["random_weights"] is True
    assert "note: weights RANDOM" in err
    assert "note: this build's verdict: fail: 9 points lost" in err


def test_plain_lines_and_a_summary(camera):
    code, out, err = camera(f"{PART}&frames=40", "--audit", 5)
    assert code == 0
    assert "results/s" in out
    assert "age of the answer" in out
    assert "answers as FP32" in out
    assert "the engine itself" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top", 0), "--top"),
        (("--audit", 0), "--audit"),
        (("--frames", 0), "--frames"),
        (("--duration", -1), "--duration"),
        (("--max-fps", "nan"), "--max-fps"),
        (("--threads", -1), "--threads"),
        (("--reconnect-for", "inf"), "--reconnect-for"),
        (("--runner", "gpu"), "unknown runner"),
        (("--runner", "trt"), "runner trt"),
        (("--record", "a.gif"), "unknown container"),
        (("--record", "/none/a.mp4"), "does not exist"),
        (("--token", "secret"), "--token is about the page"),
        (("--audit-dir", "x"), "--audit-dir is about --audit"),
        (("--serve", "notaport"), "--serve"),
        (("--nonsense",), "Unknown option: --nonsense"),
    ],
)
def test_options_that_will_not_do(camera, options, message):
    code, out, err = camera(f"{PART}&frames=3", *options)
    assert code == 2
    assert message in err
    assert out == ""


def test_no_build(camera, tmp_path):
    code, _, err = camera(PART, build=tmp_path / "none")
    assert code == 2
    assert "not a build folder" in err


def test_fault_no_camera(camera):
    code, _, err = camera("/dev/video63")
    assert code == 4
    assert "camera not found" in err
    assert "next:" in err


def test_fault_busy_camera(camera, tmp_path, monkeypatch):
    (tmp_path / "video0").touch()

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(v4l2, "DEVICES", tmp_path)
    monkeypatch.setattr(v4l2.fcntl, "ioctl", busy)
    code, _, err = camera("0")
    assert code == 4
    assert "in use by another program" in err


@pytest.fixture
def plugged(monkeypatch):
    """plugged(*items) -> a camera whose sources are these, one after the other; an exception is raised by opening."""

    def plug(*sources):
        left = iter(sources)

        def opener(_text, **_playing):
            source = next(left)
            if isinstance(source, BaseException):
                raise source
            return source

        monkeypatch.setattr(session, "open_source", opener)
        return sources

    return plug


def test_fault_unplugged_for_good(camera, plugged):
    (source,) = plugged(ListSource([picture(i) for i in range(5)] + [gone()]))
    code, out, err = camera("0", "--reconnect-for", 0)
    assert code == 4
    assert "error: unplugged" in err
    assert "lost 1 times" in out
    assert source.closed == 1


@pytest.mark.slow
def test_fault_unplugged_and_plugged_in_again(camera, plugged, at_exit):
    plugged(ListSource([picture(), gone()]), gone(), ListSource([picture()] * 3 + [None]))
    code, out, err = camera("0")
    assert code == 0
    assert at_exit == []
    assert "lost 1 times, back 1 times" in out
    assert "frames again after 1.5" in err


def test_fault_a_camera_that_hangs(camera, plugged, monkeypatch, at_exit):
    let_go = threading.Event()
    hanging = ListSource([])
    hanging.read = lambda: let_go.wait(60) and None
    plugged(hanging)
    monkeypatch.setattr(session, "LatestFrameFeed", partial(LatestFrameFeed, stall_s=0.05))
    code, _, err = camera("0", "--reconnect-for", 0)
    let_go.set()
    assert code == 4
    assert "the source stalled" in err
    assert at_exit == [(forced_exit.exit_now, 4)]


@pytest.mark.slow
def test_fault_a_stream_that_says_nothing(built):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"rtsp://admin:s3cret@127.0.0.1:{listener.getsockname()[1]}/live"
        process = start(built, "--source", address)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert "no video within 5 s" in err
    assert "s3cret" not in out + err


def test_fault_corrupt_empty_and_truncated_videos(camera, tmp_path):
    cv2 = loaded_cv2()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(9999))
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 200.0, (256, 192))
    for i in range(60):
        writer.write(np.random.default_rng(i).integers(0, 256, (192, 256, 3)).astype(np.uint8))
    writer.release()
    whole = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "truncated.avi").write_bytes(whole[: len(whole) // 2])
    for name, message in (("empty.mp4", "the video is empty"), ("noise.mp4", "cannot be decoded")):
        code, _, err = camera(tmp_path / name)
        assert (code, message in err) == (2, True)
    code, out, err = camera(tmp_path / "truncated.avi", "--every-frame")
    assert code == 2
    assert "ended early" in err
    assert "results" in out


def test_fault_pictures_without_pixels_and_another_size(camera):
    code, out, _ = camera(f"{PART}&frames=40&empty=8&resize=10", "--every-frame", "--json")
    assert code == 0
    results, (summary,) = lines_of(out)
    assert (summary["results"], summary["bad"]) == (35, 5)
    assert {(x["width"], x["height"]) for x in results} == {(64, 48), (32, 24)}


def test_fault_nothing_but_pictures_without_pixels(camera):
    code, _, err = camera(f"{PART}&empty=1")
    assert code == 4
    assert "100 unusable frames in a row" in err


def test_fault_a_tampered_engine(camera, built, tmp_path):
    shutil.copytree(built / "out", tmp_path / "out")
    engine = tmp_path / "out" / BuildFolder(built / "out").manifest.engine.file
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    code, out, err = camera(f"{PART}&frames=3", build=tmp_path / "out")
    assert (code, out) == (2, "")
    assert engine.name in err


def test_fault_the_manifest_of_another_engine(camera, built, tmp_path):
    shutil.copytree(built / "out", tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    fields = json.loads(path.read_text())
    fields["engine"]["sha256"] = "0" * 64
    path.write_text(json.dumps(fields))
    code, out, err = camera(f"{PART}&frames=3", build=tmp_path / "out")
    assert (code, out) == (2, "")
    assert "manifest.json" in err


def test_fault_disk_full_while_recording(camera, tmp_path, monkeypatch):
    loaded_cv2()
    asked = iter(range(1000))
    monkeypatch.setattr(recorder, "room_for", lambda _path: recorder.RESERVE_BYTES * 2 if next(asked) < 6 else 0)
    monkeypatch.setattr(recorder, "_DISK_CHECK_S", 0.0)
    code, out, err = camera(f"{PART}&frames=30", "--every-frame", "--json", "--record", tmp_path / "a.mp4")
    assert code == 0
    assert len(lines_of(out)[0]) == 30  # inference went on
    assert "recording: disk full: the recording ends here" in err
    assert len(read_all(open_source(str(tmp_path / "a.mp4")))) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_fault_disk_full_from_the_start(camera, tmp_path, monkeypatch):
    loaded_cv2()
    monkeypatch.setattr(recorder, "room_for", lambda _path: 0)
    code, out, err = camera(f"{PART}&frames=30", "--record", tmp_path / "a.mp4")
    assert (code, out) == (4, "")
    assert "disk full" in err


def test_fault_a_network_that_answers_nan(camera, monkeypatch):
    genuine = session.open_runner

    def broken(*arguments, **options):
        found = genuine(*arguments, **options)
        return replace(found, runner=FakeRunner((3, 32, 32), 5, answer=lambda images: (np.full((len(images), 5), np.nan),)))

    monkeypatch.setattr(session, "open_runner", broken)
    code, _, err = camera(f"{PART}&frames=4", "--every-frame")
    assert code == 1
    assert "4 of 4 frames" in err


def test_fault_the_port_is_taken(camera, tmp_path):
    pytest.importorskip("starlette")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = camera(f"{PART}&frames=5", "--serve", port, "--record", tmp_path / "a.mp4")
    assert (code, out) == (2, "")
    assert str(port) in err
    assert list(tmp_path.iterdir()) == []


def test_fault_an_audit_without_a_reference(camera, built, tmp_path):
    shutil.copytree(built / "out", tmp_path / "out")
    (tmp_path / "out" / "model.onnx").unlink()
    code, _, err = camera(f"{PART}&frames=5", "--audit", 1, build=tmp_path / "out")
    assert code == 2
    assert "nothing to audit against" in err


def test_no_picture_at_all(camera, plugged):
    let_go = threading.Event()
    silent = ListSource([])
    silent.read = lambda: let_go.wait(60) and None
    plugged(silent)
    code, _, err = camera("0", "--duration", 0.1)
    let_go.set()
    assert code == 4
    assert "no frame arrived" in err


@pytest.mark.parametrize("option", ["--every-frame", "--loop"])
def test_a_camera_has_no_end_to_start_over_from(camera, plugged, option):
    (source,) = plugged(ListSource([picture()]))
    code, _, err = camera("0", option)
    assert code == 2
    assert "a live source sets its own pace" in err
    assert source.closed == 1


def test_disagreements_are_kept(camera, tmp_path, monkeypatch):
    genuine = session.open_runner

    def inverted(*arguments, **options):
        found = genuine(*arguments, **options)
        return replace(found, runner=FakeRunner((3, 32, 32), 5, answer=lambda images: (-found.runner(images)[0],)))

    monkeypatch.setattr(session, "open_runner", inverted)
    code, out, _ = camera(f"{PART}&frames=4", "--every-frame", "--json", "--audit", 1, "--audit-dir", tmp_path / "kept")
    assert code == 0
    (summary,) = lines_of(out)[1]
    assert summary["audit"] == {"compared": 4, "agreed": 0, "skipped": 0, "saved": 4}
    (folder,) = (tmp_path / "kept").iterdir()
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.json"))) == 4


def test_the_page_is_served_while_it_runs(built):
    pytest.importorskip("starlette")
    import urllib.request

    process = start(built, "--source", PART, "--serve", 0, "--duration", 60)
    try:
        for line in process.stderr:
            if line.startswith("page: "):
                with urllib.request.urlopen(line.split()[1], timeout=30) as page:
                    assert page.status == 200
                break
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_clean_end(built, tmp_path, which):
    loaded_cv2()
    process = start(built, "--source", PART, "--json", "--record", tmp_path / "a.mp4")
    assert json.loads(process.stdout.readline())["type"] == "start"
    for _ in range(10):
        assert json.loads(process.stdout.readline())["type"] == "result"
    process.send_signal(which)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (summary,) = lines_of(out)[1]
    assert (summary["ended"], summary["error"]) == ("interrupted", None)
    assert "Traceback" not in err
    assert len(read_all(open_source(str(tmp_path / "a.mp4")))) >= 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.slow
def test_a_signal_while_a_stream_stalls_is_a_clean_end(built):
    """The thread is inside FFmpeg then; without care the process ends by std::terminate, or seconds later."""
    loaded_cv2()
    with server(mjpeg(40)) as port:
        process = start(built, "--source", f"http://127.0.0.1:{port}/video")
        process.stdout.readline()
        time.sleep(1.5)  # the last picture was taken long ago
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - started < 4.0
    assert process.returncode == 0, err
    assert "interrupted" in out
    assert "terminate" not in err


def test_a_signal_before_the_first_picture_is_a_clean_end_too(camera, plugged):
    plugged(KeyboardInterrupt())
    code, out, err = camera("0")
    assert (code, out) == (0, "")
    assert "interrupted before the first frame" in err


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--json",), ()])
def test_whoever_reads_may_go(built, options):
    process = start(built, "--source", PART, *options)
    process.stdout.readline()
    process.stdout.close()
    started = time.monotonic()
    assert process.wait(60) == 0
    assert time.monotonic() - started < 30
    err = process.stderr.read()
    process.stderr.close()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_nobody_reads_from_the_start(built):
    process = start(built, "--source", PART, "--json")
    process.stdout.close()
    assert process.wait(60) == 0
    err = process.stderr.read()
    process.stderr.close()
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_terminal_gets_a_view_that_is_redrawn(built):
    primary, secondary = os.openpty()
    process = start(built, "--source", f"{PART}&frames=200", stdout=secondary)
    os.close(secondary)
    found = b""
    while True:
        try:
            found += os.read(primary, 65536)
        except OSError:  # how a terminal says that the other side has gone
            break
    process.communicate(timeout=60)
    os.close(primary)
    text = found.decode()
    assert process.returncode == 0
    assert "Ctrl-C to end" in text
    assert "\x1b[1A" in text  # the cursor goes up: redrawn, not repeated
    assert "end of the source" in text


def test_a_device_that_is_closed_twice_is_released_once():
    released = []

    class Capture:
        def release(self):
            released.append(1)

    device = opencv.CaptureDevice("a", Capture(), None, lost="", next_command="")
    device.close()
    device.close()
    assert released == [1]
