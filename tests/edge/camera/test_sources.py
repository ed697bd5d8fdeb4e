"""Sources told apart, refused with a reason, cameras asked why not, pipelines written, addresses shown without passwords."""

import errno
import itertools
import os
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from camera_fakes import read_all

from calib.errors import InputError, MissingError
from edge.camera.frame import BadFrame, SourceLost, check_frame
from edge.camera.opencv import load_with_gstreamer, to_bgr, to_rgb
from edge.camera.sources import v4l2
from edge.camera.sources.csi import csi_pipeline
from edge.camera.sources.registry import open_source
from edge.camera.sources.rtsp import redact_address
from edge.camera.sources.source_options import parse_count, parse_fps, parse_parameters, parse_size
from edge.camera.sources.synthetic import Synthetic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://somewhere/film.mp4", "unknown kind of source"),
        ("", "source not found"),
        ("nothing.mp4", "source not found"),
        ("/dev/null", "neither a file nor a folder"),
        ("synthetic://here", "invalid synthetic source"),
        ("synthetic://?colour=red", "invalid options of the source"),
        ("synthetic://?size=0x4", "invalid size of the source"),
        ("synthetic://?fps=fast", "invalid frame rate of the source"),
        ("synthetic://?frames=-1", "not a whole number"),
        ("csi://", "invalid CSI camera"),
        ("csi://99", "invalid CSI camera"),
        ("csi://0?flip=9", "invalid CSI camera"),
        ("csi://0 ! filesink location=x", "invalid CSI camera"),
        ("rtsp://", "malformed address of the stream"),
        ("rtsp://host:notaport/", "malformed address of the stream"),
        ("/dev/video0?size=big", "invalid size of the source"),
        ("0?format=MJPEG", "invalid pixel format"),
        ("0?gain=3", "invalid options of the source"),
    ],
)
def test_what_is_no_source_is_refused_with_what_is(text, message):
    with pytest.raises(InputError, match=message) as raised:
        open_source(text)
    assert "allowed" in str(raised.value)


def test_parameters():
    values = parse_parameters("size=1280x720&fps=29.97&frames=12", ("size", "fps", "frames"))
    assert (parse_size(values), parse_fps(values), parse_count(values, "frames")) == ((1280, 720), 29.97, 12)
    assert (parse_size({}), parse_fps({}), parse_count({}, "x")) == (None, None, 0)
    assert parse_parameters("", ("size",)) == {}
    for query in ("fps=1&fps=2", "fps=", "fps", "&", "depth=1"):
        with pytest.raises(InputError, match="invalid options"):
            parse_parameters(query, ("fps",))
    for fps in ("0", "-1", "nan", "inf", "1001"):
        with pytest.raises(InputError, match="frame rate"):
            parse_fps({"fps": fps})


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """A folder for /dev."""
    monkeypatch.setattr(v4l2, "DEVICES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["0", "/dev/video0", "/dev/video0?size=640x480"])
def test_no_camera(devices, text):
    with pytest.raises(MissingError, match=r"camera not found\n  where: .*video0\n  found: cameras here: none"):
        open_source(text)
    (devices / "video4").touch()
    with pytest.raises(MissingError, match=r"cameras here: .*video4"):
        open_source(text)


def test_a_device_that_is_no_camera(devices):
    (devices / "video0").touch()  # the kernel answers ENOTTY to a camera's question
    with pytest.raises(InputError, match=r"not a camera that delivers pictures\n.*\n  found: Inappropriate ioctl"):
        open_source("0")


@pytest.mark.parametrize(
    ("code", "message", "next_command"),
    [
        (errno.EBUSY, "in use by another program", "fuser -v"),
        (errno.ENOTTY, "not a camera that delivers pictures", "v4l2-ctl --list-devices"),
        (errno.ENODEV, "camera not found", "connect one"),
    ],
)
def test_the_driver_says_why_not(devices, monkeypatch, code, message, next_command):
    (devices / "video0").touch()
    asked = []

    def ioctl(descriptor, request, data):
        asked.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), request, data, descriptor))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(v4l2.fcntl, "ioctl", ioctl)
    with pytest.raises((MissingError, InputError), match=message) as raised:
        open_source("0")
    assert next_command in str(raised.value)
    ((path, request, data, descriptor),) = asked
    assert path == str(devices / "video0")
    assert (request >> 30, request >> 16 & 0x3FFF, chr(request >> 8 & 0xFF), request & 0xFF) == (3, len(data), "V", 8)
    assert np.frombuffer(data[:12], np.uint32).tolist() == [0, 1, 1]  # give up all buffers of capture by mmap
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_camera_that_may_not_be_opened(devices, monkeypatch, code):
    (devices / "video0").touch()

    def refuse(_path, _flags):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(v4l2.os, "open", refuse)
    with pytest.raises(MissingError, match=r"no permission to open the camera(.|\n)*usermod -aG video"):
        open_source("0")


class FakeOpenCV(types.SimpleNamespace):
    """As much of cv2 as a camera uses; remembers what it was told."""

    error = type("error", (Exception,), {})

    def __init__(self, *, opens=True, pictures=(), gstreamer="YES (1.20.3)"):
        super().__init__(CAP_V4L2=200, CAP_GSTREAMER=1800, CAP_PROP_FOURCC=6, CAP_PROP_FRAME_WIDTH=3, __version__="4.8.0")
        self.CAP_PROP_FRAME_HEIGHT, self.CAP_PROP_FPS, self.CAP_PROP_BUFFERSIZE, self.__file__ = 4, 5, 38, "/usr/lib/cv2.so"
        self.COLOR_BGR2RGB, self.COLOR_GRAY2RGB = 4, 8
        self.opens, self.gstreamer = opens, gstreamer
        self.VideoWriter = types.SimpleNamespace(fourcc=lambda *letters: "".join(letters))
        self.pictures, self.told, self.released = iter(pictures), [], 0

    def getBuildInformation(self):
        return f"  Video I/O:\n    GStreamer:                   {self.gstreamer}\n"

    def cvtColor(self, pixels, _code):
        return pixels[..., ::-1].copy()

    def VideoCapture(self, *arguments):
        self.told.append(arguments)
        return self

    def isOpened(self):
        return self.opens

    def set(self, *setting):
        self.told.append(setting)

    def get(self, _property):
        return 30.0

    def read(self):
        item = next(self.pictures, None)
        if isinstance(item, Exception):
            raise item
        return item is not None, item

    def release(self):
        self.released += 1


@pytest.fixture
def opencv(monkeypatch):
    def make(**changes):
        fake = FakeOpenCV(**changes)
        monkeypatch.setitem(sys.modules, "cv2", fake)
        return fake

    return make


def free_camera(devices, monkeypatch):
    (devices / "video2").touch()
    monkeypatch.setattr(v4l2.fcntl, "ioctl", lambda *_: b"")


def test_a_camera_is_opened_by_v4l2_with_one_buffer(devices, monkeypatch, opencv):
    free_camera(devices, monkeypatch)
    blue_first = np.zeros((4, 6, 3), np.uint8)
    blue_first[..., 0] = 200
    fake = opencv(pictures=[blue_first])
    source = open_source("/dev/video2?size=1280x720&fps=15&format=MJPG")
    assert fake.told == [(2, 200), (6, "MJPG"), (3, 1280), (4, 720), (5, 15.0), (38, 1)]
    assert (source.live, source.fps, source.name) == (True, 30.0, str(devices / "video2"))
    assert source.read()[0, 0].tolist() == [0, 0, 200]  # red, green, blue
    with pytest.raises(SourceLost, match="unplugged or hung"):
        source.read()
    source.close()
    source.close()
    assert fake.released == 1


def test_a_camera_by_a_name_that_stays(devices, monkeypatch, opencv):
    free_camera(devices, monkeypatch)
    (devices / "v4l" / "by-id").mkdir(parents=True)
    (devices / "v4l" / "by-id" / "usb-Maker_Eye-index0").symlink_to("../../video2")
    fake = opencv()
    source = open_source("/dev/v4l/by-id/usb-Maker_Eye-index0?fps=15")
    assert fake.told[0] == (2, 200)
    assert source.name.endswith("usb-Maker_Eye-index0")
    with pytest.raises(MissingError, match="camera not found"):
        open_source("/dev/v4l/by-id/usb-Another-index0")


def test_a_camera_that_is_pulled_out_while_it_is_read(devices, monkeypatch, opencv):
    free_camera(devices, monkeypatch)
    opencv(pictures=[FakeOpenCV.error("VIDIOC_DQBUF: No such device")])
    with pytest.raises(SourceLost, match="No such device") as raised:
        open_source("2").read()
    assert raised.value.exit_code == 4


def test_a_queue_of_another_kind_is_left_to_opencv(devices, monkeypatch, opencv):
    def ioctl(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    (devices / "video2").touch()
    monkeypatch.setattr(v4l2.fcntl, "ioctl", ioctl)
    opencv(pictures=[np.zeros((2, 2, 3), np.uint8)])
    assert open_source("2").read().shape == (2, 2, 3)
    opencv(opens=False)
    with pytest.raises(MissingError, match=r"does not start(.|\n)*second node that delivers metadata"):
        open_source("2")


def test_a_camera_that_does_not_start(devices, monkeypatch, opencv):
    free_camera(devices, monkeypatch)
    fake = opencv(opens=False)
    with pytest.raises(MissingError, match="does not start"):
        open_source("2")
    assert fake.released == 1


def test_the_pipeline_of_a_csi_camera():
    parts = csi_pipeline(1, (1920, 1080), 29.97, flip=2).split(" ! ")
    assert parts == [
        "nvarguscamerasrc sensor-id=1",
        "video/x-raw(memory:NVMM), width=1920, height=1080, format=NV12, framerate=2997/100",
        "nvvidconv flip-method=2",
        "video/x-raw, format=BGRx",
        "videoconvert",
        "video/x-raw, format=BGR",
        "appsink drop=true max-buffers=1 sync=false",
    ]
    assert "framerate=30/1" in csi_pipeline(0)


def test_a_csi_camera_needs_gstreamer(opencv):
    fake = opencv(gstreamer="NO")
    with pytest.raises(MissingError, match=r"OpenCV built with GStreamer(.|\n)*OpenCV 4.8.0(.|\n)*--system-site-packages"):
        open_source("csi://0")
    assert fake.told == []


def test_a_csi_camera_is_opened_by_its_pipeline(opencv):
    fake = opencv(pictures=[np.full((2, 2, 3), 9, np.uint8)])
    source = open_source("csi://1?size=640x480&fps=60")
    assert fake.told == [(csi_pipeline(1, (640, 480), 60.0), 1800)]
    assert source.read().shape == (2, 2, 3)
    with pytest.raises(SourceLost, match="CSI camera stopped delivering frames"):
        source.read()
    opencv(opens=False)
    with pytest.raises(MissingError, match=r"does not start(.|\n)*gst-launch-1.0"):
        open_source("csi://0")


def test_gstreamer_is_read_from_the_build_information(opencv):
    fake = opencv()
    fake.getBuildInformation = lambda: "    FFMPEG:  NO\n    GStreamer:                   YES (1.20.3)\n"
    assert load_with_gstreamer() is fake
    for lacks in ("    FFMPEG:  YES\n    GStreamer:                   NO\n    v4l/v4l2:  YES\n", "no word of it"):
        fake.getBuildInformation = lambda lacks=lacks: lacks
        with pytest.raises(MissingError):
            load_with_gstreamer()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://admin:s3cret@camera.lan:554/stream1", "rtsp://camera.lan:554/stream1"),
        ("rtsp://admin:p%40ss@10.0.0.7/a?token=abc#x", "rtsp://10.0.0.7/a"),
        ("http://me:you@[fe80::1]:8080/video", "http://[fe80::1]:8080/video"),
        ("https://camera.lan/video.mjpg", "https://camera.lan/video.mjpg"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(address, name):
    assert redact_address(address) == name


@pytest.mark.parametrize("address", ["rtsp://me:s3cret@", "rtsp://me:s3cret@host:99999/", "rtsp://me:s3cret@[::1/"])
def test_an_address_that_is_none_is_refused_without_showing_it(address):
    with pytest.raises(InputError, match="malformed address") as raised:
        open_source(address)
    assert "s3cret" not in str(raised.value)


def test_colours_are_turned_once():
    bgr = np.zeros((2, 3, 3), np.uint8)
    bgr[0, 0] = (10, 20, 30)
    rgb = to_rgb(bgr)
    assert rgb[0, 0].tolist() == [30, 20, 10]
    assert rgb.flags.c_contiguous
    np.testing.assert_array_equal(to_bgr(rgb), bgr)
    grey = to_rgb(np.full((2, 3), 7, np.uint8))
    assert (grey.shape, grey[1, 2].tolist()) == ((2, 3, 3), [7, 7, 7])
    assert to_rgb(np.full((2, 3, 1), 7, np.uint8)).shape == (2, 3, 3)


def test_a_line_is_no_picture():
    assert check_frame(np.zeros((10, 160, 3), np.uint8)).shape == (10, 160, 3)
    for shape in ((10, 161, 3), (4000, 1, 3)):
        with pytest.raises(BadFrame, match="too narrow"):
            check_frame(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 4), (4, 0, 3), (4, 4, 2), (4,)])
def test_what_is_no_picture_is_a_bad_frame(shape):
    with pytest.raises(BadFrame):
        to_rgb(np.zeros(shape, np.uint8))
    with pytest.raises(BadFrame):
        check_frame(np.zeros(shape, np.uint8))


def test_opencv_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingError, match=r"OpenCV is not installed(.|\n)*ufovit-edge\[camera\]"):
        open_source("csi://0")


def test_an_opencv_of_another_numpy(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingError, match=r"is incompatible with this numpy(.|\n)*numpy<2"):
        open_source("csi://0")


def test_a_synthetic_source_is_deterministic_and_moves():
    first, again, other = (read_all(open_source(f"synthetic://?size=160x120&frames=9&seed={s}")) for s in (5, 5, 6))
    assert len(first) == 9
    assert all(p.shape == (120, 160, 3) and p.dtype == np.uint8 for p in first)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == other[0]).all()
    assert all(not (a == b).all() for a, b in itertools.pairwise(first))
    first[0][:] = 0  # a frame is the caller's own
    assert read_all(Synthetic("?size=160x120&frames=1&seed=5"))[0].any()


def test_synthetic_needs_no_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    source = open_source("synthetic://")
    assert source.read().shape == (480, 640, 3)
    assert (source.fps, source.live) == (30.0, False)


def test_synthetic_faults():
    assert len(read_all(Synthetic("?frames=3"))) == 3
    looped = Synthetic("?frames=3", loop=True)
    assert len(read_all(looped, most=10)) == 10
    sizes = [p.shape[:2] for p in read_all(Synthetic("?size=40x20&frames=6&resize=2"))]
    assert sizes == [(20, 40)] * 2 + [(10, 20)] * 2 + [(20, 40)] * 2
    assert [p.size == 0 for p in read_all(Synthetic("?size=8x8&frames=6&empty=3"))] == [False, False, True] * 2
    lost = Synthetic("?lose=1")
    lost.read()
    with pytest.raises(SourceLost, match="as requested"):
        lost.read()


def test_a_synthetic_source_that_hangs_is_let_go_by_closing():
    source = Synthetic("?size=8x8&hang=1")
    source.read()
    raised = []

    def read():
        try:
            source.read()
        except SourceLost as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()
    source.close()
    thread.join(30)
    assert len(raised) == 1


def test_opening_a_folder_passes_on_how_it_is_played(tmp_path):
    from PIL import Image

    Image.new("RGB", (4, 3), (1, 2, 3)).save(tmp_path / "a.png")
    source = open_source(str(tmp_path), loop=True)
    assert [source.read()[0, 0].tolist() for _ in range(3)] == [[1, 2, 3]] * 3
