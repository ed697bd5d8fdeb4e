"""rtsp:// and http://: a stream of the network. Passwords in its address are shown to nobody."""

from __future__ import annotations

from urllib.parse import urlsplit

from calib.errors import InputError, MissingError
from edge.camera.opencv import load
from edge.camera.sources.capture_device import CaptureDevice, known_fps


class Stream(CaptureDevice):
    """A stream that FFmpeg reads, RTSP over TCP. A pause of more than `timeout_s` seconds is a loss.

    Raises InputError for an address that is none, MissingError where nobody answers in time or FFmpeg is not in OpenCV.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        name = shown(address)
        cv2 = load()
        if cv2.CAP_FFMPEG not in cv2.videoio_registry.getStreamBackends():
            raise MissingError(
                "this OpenCV has no FFmpeg, which reads streams",
                where=name,
                found=f"OpenCV {cv2.__version__}",
                next_command="pip install opencv-python-headless",
            )
        limit = max(1, round(1000 * timeout_s))
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
        if not capture.isOpened():
            capture.release()
            raise MissingError(
                f"the stream does not open: no video from there within {timeout_s:g} s",
                where=name,
                allowed="an address that answers, with the right user and password, and a format that FFmpeg knows",
                next_command="open the same address in another player",
            )
        fps = known_fps(capture.get(cv2.CAP_PROP_FPS))
        lost = f"the stream gives no picture any more: closed by its other end, or silent for {timeout_s:g} s"
        super().__init__(name, capture, fps, lost=lost, mend="look whether its camera is on and reachable")


def shown(address: str) -> str:
    """An address for people and logs: without user, password, query and fragment. Raises InputError for one that is none."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host:  # the address itself is not shown: nobody knows what of it is a password
        raise InputError("address of the stream is not understood", where="--source", allowed="rtsp://HOST[:PORT]/PATH")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{bracketed}{'' if port is None else f':{port}'}{parts.path}"
