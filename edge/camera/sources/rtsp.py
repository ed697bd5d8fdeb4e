"""rtsp:// and http://: a network stream. Passwords in its address are never shown."""

from urllib.parse import urlsplit

from calib.errors import MissingError, UsageError
from edge.camera.opencv import CaptureDevice, known_fps, load_cv2


class NetworkStream(CaptureDevice):
    """A stream read by FFmpeg, RTSP over TCP. A pause of more than `timeout_s` seconds is a loss."""

    def __init__(self, address: str, timeout_s: float) -> None:
        name = redact_address(address)
        cv2 = load_cv2()
        if cv2.CAP_FFMPEG not in cv2.videoio_registry.getStreamBackends():
            raise MissingError(
                "this OpenCV lacks FFmpeg, which reads streams",
                where=name,
                found=f"OpenCV {cv2.__version__}",
                next_command="pip install opencv-python-headless",
            )
        limit_ms = max(1, round(1000 * timeout_s))
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
        if not capture.isOpened():
            capture.release()
            raise MissingError(
                f"the stream cannot be opened: no video within {timeout_s:g} s",
                where=name,
                allowed="a reachable address, with valid user and password, and a format that FFmpeg supports",
                next_command="open the same address in another player",
            )
        fps = known_fps(capture.get(cv2.CAP_PROP_FPS))
        lost = f"the stream stopped delivering frames: closed by its peer, or silent for {timeout_s:g} s"
        super().__init__(name, capture, fps, lost=lost, next_command="check that its camera is on and reachable")


def redact_address(address: str) -> str:
    """An address for messages and logs: without user, password, query and fragment. Raises UsageError for a malformed one."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if not host:  # the address itself is not shown: any part of it may be a password
        raise UsageError("malformed address of the stream", where="--source", allowed="rtsp://HOST[:PORT]/PATH")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{bracketed}{'' if port is None else f':{port}'}{parts.path}"
