"""Video files and image folders: the pixels that were written come out, and damage is told."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from camera_fakes import FakeClock, capturing, loaded_cv2, read_all

from calib.errors import InputError
from edge.camera.frame import BadFrame
from edge.camera.sources.registry import open_source
from edge.camera.sources.video_file import DEFAULT_FPS

cv2 = loaded_cv2()

ROOT = Path(__file__).resolve().parents[3]
RED_RGB = (200, 30, 10)


def write_video(path, count=20, size=(64, 48), fps=10.0, fourcc="MJPG", colour=RED_RGB):
    """FrameFeed of one colour, with a white column that moves by two pixels."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), fps, size)
    assert writer.isOpened()
    for i in range(count):
        bgr = np.empty((size[1], size[0], 3), np.uint8)
        bgr[:] = colour[::-1]
        bgr[:, 2 * i : 2 * i + 2] = 255
        writer.write(bgr)
    writer.release()
    return path


@pytest.mark.parametrize(("name", "fourcc"), [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mkv", "mp4v")])
def test_a_video_comes_out_as_it_was_written(tmp_path, name, fourcc):
    source = open_source(str(write_video(tmp_path / name, fourcc=fourcc)))
    assert (source.live, source.fps) == (False, pytest.approx(10.0))
    frames = read_all(source)
    source.close()
    assert len(frames) == 20
    assert all(f.shape == (48, 64, 3) and f.dtype == np.uint8 for f in frames)
    np.testing.assert_allclose(frames[0][:, 50:].reshape(-1, 3).mean(axis=0), RED_RGB, atol=8)
    brightest = [int(frame.mean(axis=(0, 2)).argmax()) for frame in frames]
    np.testing.assert_allclose(brightest, np.arange(20) * 2, atol=2)  # in order, none twice, none left out


def test_a_video_is_looped(tmp_path):
    source = open_source(str(write_video(tmp_path / "a.avi", count=5)), loop=True)
    frames = read_all(source, most=13)
    assert len(frames) == 13
    np.testing.assert_array_equal(frames[2], frames[7])
    np.testing.assert_array_equal(frames[2], frames[12])
    source.close()


def test_a_name_that_ffmpeg_would_take_for_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.avi").rename("concat:x|y.avi")
    assert len(read_all(open_source("concat:x|y.avi"))) == 20
    write_video(tmp_path / "b.avi").rename("still%02d.avi")
    assert len(read_all(open_source("still%02d.avi"))) == 20


def test_a_container_without_a_frame_rate_gets_the_usual_one(tmp_path):
    pictures = [cv2.imencode(".jpg", np.full((32, 32, 3), 9 * i, np.uint8))[1].tobytes() for i in range(12)]
    (tmp_path / "a.mjpeg").write_bytes(b"".join(pictures))
    source = open_source(str(tmp_path / "a.mjpeg"))
    assert source.fps == DEFAULT_FPS == 25.0
    assert len(read_all(source)) == 12


def test_an_empty_video(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match=r"the video is empty\n  where: .*a.mp4\n  found: 0 bytes\n  next"):
        open_source(str(tmp_path / "a.mp4"))


def test_a_video_of_noise(tmp_path):
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    with pytest.raises(InputError, match="cannot be decoded"):
        open_source(str(tmp_path / "a.mp4"))


def test_no_library_prints_beside_us(tmp_path):
    """In a process of its own: FFmpeg reads how much to say once, and here somebody may have opened a video before."""
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    script = "import sys; from edge.camera.sources.registry import open_source; open_source(sys.argv[1])"
    run = [sys.executable, "-c", script, str(tmp_path / "a.mp4")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV_")}
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=clean)
    assert "cannot be decoded" in done.stderr
    assert "moov" not in done.stderr
    loud = ["import cv2", *script.split("; ")[:1], "cv2.VideoCapture(sys.argv[1])"]
    run[2] = "; ".join(loud)
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=clean)
    assert "moov" in done.stderr, "the control: FFmpeg does print where nobody hushed it"


def test_a_video_without_its_index(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", count=60, fourcc="mp4v").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot be decoded(.|\n)*copy or record it again"):
        open_source(str(tmp_path / "a.mp4"))


@pytest.fixture
def truncated(tmp_path):
    """A video whose container promises 100 frames and holds about 40."""
    whole = write_video(tmp_path / "whole.avi", count=100, size=(256, 192)).read_bytes()
    (tmp_path / "a.avi").write_bytes(whole[: int(len(whole) * 0.4)])
    return tmp_path / "a.avi"


def test_a_truncated_video_is_read_as_far_as_it_goes_and_then_told(truncated):
    source = open_source(str(truncated))
    with pytest.raises(InputError, match=r"ended early: truncated or damaged\n.*\n  found: \d+ frames\n  allowed: about 100"):
        read_all(source)
    assert len(read_all(open_source(str(truncated)), most=20)) == 20


def test_a_truncated_video_that_is_looped_says_so_once(truncated):
    said = []
    source = open_source(str(truncated), loop=True, notify=said.append)
    assert len(read_all(source, most=200)) == 200
    assert len(said) == 1
    assert "ended early" in said[0]


def test_a_damaged_stretch_is_skipped_by_the_decoder(tmp_path):
    data = bytearray(write_video(tmp_path / "a.avi", count=100, size=(256, 192)).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (tmp_path / "a.avi").write_bytes(data)
    assert len(read_all(open_source(str(tmp_path / "a.avi")))) >= 90


def test_colours_reach_the_loop_as_red_green_blue(tmp_path):
    clock = FakeClock()
    source = open_source(str(write_video(tmp_path / "a.avi", count=1)))
    about = capturing(lambda: None, clock)
    replace(about, source=source, sleep=clock.sleep).step()
    np.testing.assert_allclose(about.latest.take().pixels[24, 60], RED_RGB, atol=8)


def test_an_image_folder_goes_through_the_decoder_of_all_steps(tmp_path):
    from PIL import Image

    rows = np.arange(12, dtype=np.uint8).reshape(2, 6) * 20
    turned = Image.fromarray(rows)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "b.png", exif=exif)
    Image.new("RGB", (5, 4), RED_RGB).save(tmp_path / "a.bmp")
    (tmp_path / "below").mkdir()
    Image.new("RGB", (3, 3), (0, 0, 255)).save(tmp_path / "below" / "c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    source = open_source(str(tmp_path))
    first, second, third = read_all(source)
    assert first.shape == (4, 5, 3)
    assert first[0, 0].tolist() == list(RED_RGB)
    np.testing.assert_array_equal(second[..., 0], np.rot90(rows, -1))
    np.testing.assert_array_equal(second[..., 0], second[..., 2])
    assert third[0, 0].tolist() == [0, 0, 255]
    assert (source.live, source.fps) == (False, 5.0)


def test_one_image_is_a_source(tmp_path):
    from PIL import Image

    Image.new("RGB", (5, 4), RED_RGB).save(tmp_path / "a.png")
    assert len(read_all(open_source(str(tmp_path / "a.png")))) == 1


def test_a_damaged_image_is_skipped_and_named(tmp_path):
    from PIL import Image

    said = []
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    Image.new("RGB", (5, 4)).save(tmp_path / "c.png")
    source = open_source(str(tmp_path), notify=said.append)
    source.read()
    with pytest.raises(BadFrame, match=r"b\.png"):
        source.read()
    assert source.read().shape == (4, 5, 3)
    assert source.read() is None
    assert len(said) == 1
    assert "b.png" in said[0]


def test_a_folder_without_a_picture_that_can_be_decoded(tmp_path):
    with pytest.raises(InputError, match="no images in the folder"):
        open_source(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path), loop=True)
    with pytest.raises(BadFrame):
        source.read()
    with pytest.raises(InputError, match="none of the images can be decoded"):
        source.read()
