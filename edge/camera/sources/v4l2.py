"""/dev/videoN or a bare number: a camera of Video4Linux, after asking the driver why it would not do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
from pathlib import Path

from calib.errors import InputError, MissingError
from edge.camera.opencv import load
from edge.camera.sources.capture_device import CaptureDevice, known_fps
from edge.camera.sources.source_options import fps_of, parse_parameters, size_of

DEVICES = Path("/dev")
_ALLOWED = "a video capture device (a camera often has a second node that gives metadata)"
_REQUEST_BUFFERS = 0xC0145608  # VIDIOC_REQBUFS, _IOWR('V', 8, 20 bytes): linux/videodev2.h
_NONE_OF_CAPTURE_BY_MMAP = struct.pack("IIIIB3x", 0, 1, 1, 0, 0)  # count, type, memory, capabilities, flags


def open_v4l2(text: str) -> CaptureDevice:
    """The camera of `/dev/video0`, `0`, `/dev/v4l/by-id/NAME` or `/dev/video0?size=1280x720&fps=30&format=MJPG`.

    Size, rate and pixel format are wishes: a camera takes the nearest that it has. Raises MissingError for a camera that is not
    there, in use or forbidden, InputError for what is none.
    """
    device, _, query = text.partition("?")
    wishes = parse_parameters(query, ("size", "fps", "format"))
    size, fps, pixel_format = size_of(wishes), fps_of(wishes), wishes.get("format", "")
    if pixel_format and (len(pixel_format) != 4 or not pixel_format.isascii()):
        raise InputError("pixel format is not understood", where="--source", found=pixel_format, allowed="such as MJPG, YUYV")
    path = DEVICES / device.removeprefix("/dev/") if device.startswith("/dev/") else DEVICES / f"video{int(device)}"
    node = path.resolve()  # of a name such as v4l/by-id/..., which survives that cameras are numbered anew
    check_free(node)
    number = re.fullmatch(r"video(\d+)", node.name)
    if number is None:
        raise InputError("no camera of V4L2", where=path, found=node, allowed="/dev/videoN, or a link to one")
    cv2 = load()
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
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # else the driver hands out pictures that waited in its queue
    lost = "the camera gives no picture any more: unplugged or hung"
    return CaptureDevice(
        str(path), capture, known_fps(capture.get(cv2.CAP_PROP_FPS)), lost=lost, mend="connect it again; dmesg | tail"
    )


def check_free(path: Path) -> None:
    """Ask the driver for the capture queue and give it back at once. Raises as `open_v4l2` does.

    A busy camera can be opened; what the driver refuses with EBUSY is a second owner of its queue (VIDIOC_REQBUFS).
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        fcntl.ioctl(descriptor, _REQUEST_BUFFERS, _NONE_OF_CAPTURE_BY_MMAP)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of queues that are none of these; OpenCV knows more kinds
            raise _refusal(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _refusal(path: Path, error: OSError) -> InputError | MissingError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return MissingError(
            "no such camera", where=path, found=f"cameras here: {_cameras()}", next_command="connect one, or name another"
        )
    if error.errno == errno.EBUSY:
        return MissingError("the camera is in use by another program", where=path, next_command=f"fuser -v {path}")
    if error.errno in (errno.EACCES, errno.EPERM):
        mend = 'sudo usermod -aG video "$USER", then log in again'
        return MissingError("the camera may not be opened", where=path, found=error.strerror, next_command=mend)
    return InputError(
        "no camera that gives pictures",
        where=path,
        found=error.strerror,
        allowed=_ALLOWED,
        next_command="v4l2-ctl --list-devices",
    )


def _cameras() -> str:
    return ", ".join(str(path) for path in sorted(DEVICES.glob("video[0-9]*"))) or "none"
