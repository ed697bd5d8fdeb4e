"""/dev/videoN or a bare number: a Video4Linux camera, after asking the driver why it would refuse."""

import contextlib
import errno
import fcntl
import os
import re
import struct
from pathlib import Path

from calib.errors import InputError, MissingError, UsageError
from edge.camera.opencv import CaptureDevice, known_fps, load_cv2
from edge.camera.sources.source_options import parse_fps, parse_parameters, parse_size

DEVICES = Path("/dev")
_ALLOWED = "a video capture device (many cameras have a second node that delivers metadata)"
_REQUEST_BUFFERS = 0xC0145608  # VIDIOC_REQBUFS, _IOWR('V', 8, 20 bytes): linux/videodev2.h
_NO_CAPTURE_BUFFERS = struct.pack("IIIIB3x", 0, 1, 1, 0, 0)  # count, type, memory (mmap), capabilities, flags


def open_v4l2(text: str) -> CaptureDevice:
    """The camera of `/dev/video0`, `0`, `/dev/v4l/by-id/NAME` or `/dev/video0?size=1280x720&fps=30&format=MJPG`.

    Size, rate and pixel format are requests: a camera uses the nearest that it supports.
    """
    device, _, query = text.partition("?")
    options = parse_parameters(query, ("size", "fps", "format"))
    size, fps, pixel_format = parse_size(options), parse_fps(options), options.get("format", "")
    if pixel_format and (len(pixel_format) != 4 or not pixel_format.isascii()):
        raise UsageError("invalid pixel format", where="--source", found=pixel_format, allowed="such as MJPG, YUYV")
    path = DEVICES / device.removeprefix("/dev/") if device.startswith("/dev/") else DEVICES / f"video{int(device)}"
    node = path.resolve()  # of a name such as v4l/by-id/..., which stays when cameras are renumbered
    check_available(node)
    number = re.fullmatch(r"video(\d+)", node.name)
    if number is None:
        raise UsageError("not a V4L2 camera", where=path, found=node, allowed="/dev/videoN, or a link to one")
    cv2 = load_cv2()
    capture = cv2.VideoCapture(int(number[1]), cv2.CAP_V4L2)
    if not capture.isOpened():
        capture.release()
        raise MissingError(
            "the camera does not start",
            where=path,
            allowed=_ALLOWED,
            next_command=f"v4l2-ctl --list-devices; v4l2-ctl --device {path} --all",
        )
    if pixel_format:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*pixel_format))
    if size is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # otherwise the driver delivers frames that waited in its queue
    lost = "the camera stopped delivering frames: unplugged or hung"
    fps = known_fps(capture.get(cv2.CAP_PROP_FPS))
    return CaptureDevice(str(path), capture, fps, lost=lost, next_command="connect it again; dmesg | tail")


def check_available(path: Path) -> None:
    """Ask the driver for the capture queue and return it at once.

    A busy camera can be opened; the driver refuses, with EBUSY, a second owner of its queue (VIDIOC_REQBUFS).
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        raise _unavailable_error(path, error) from error
    try:
        fcntl.ioctl(descriptor, _REQUEST_BUFFERS, _NO_CAPTURE_BUFFERS)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a device without this kind of queue; OpenCV supports others
            raise _unavailable_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _unavailable_error(path: Path, error: OSError) -> InputError | MissingError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        cameras = ", ".join(str(each) for each in sorted(DEVICES.glob("video[0-9]*"))) or "none"
        command = "connect one, or name another"
        return MissingError("camera not found", where=path, found=f"cameras here: {cameras}", next_command=command)
    if error.errno == errno.EBUSY:
        return MissingError("the camera is in use by another program", where=path, next_command=f"fuser -v {path}")
    if error.errno in (errno.EACCES, errno.EPERM):
        command = 'sudo usermod -aG video "$USER", then log in again'
        return MissingError("no permission to open the camera", where=path, found=error.strerror, next_command=command)
    return UsageError(
        "not a camera that delivers pictures",
        where=path,
        found=error.strerror,
        allowed=_ALLOWED,
        next_command="v4l2-ctl --list-devices",
    )
