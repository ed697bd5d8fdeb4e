"""csi://N: a camera on the CSI connector of a Jetson, through NVIDIA's GStreamer source."""

from fractions import Fraction

from calib.errors import MissingError, UsageError
from edge.camera.opencv import CaptureDevice, load_with_gstreamer
from edge.camera.sources.source_options import parse_count, parse_fps, parse_parameters, parse_size

SIZE, FPS = (1280, 720), 30.0
MAX_SENSORS = 16
FLIPS = 8  # flip-method of nvvidconv: 0 none, 2 upside down


def csi_pipeline(sensor: int, size: tuple[int, int] = SIZE, fps: float = FPS, flip: int = 0) -> str:
    """The GStreamer pipeline from sensor to OpenCV.

    The ISP's NV12 stays in NVIDIA's memory until nvvidconv copies it out as BGRx; appsink keeps one frame and drops older
    ones, so that a slow reader gets the newest.
    """
    rate = Fraction(fps).limit_denominator(1001)
    return " ! ".join(
        [
            f"nvarguscamerasrc sensor-id={sensor}",
            f"video/x-raw(memory:NVMM), width={size[0]}, height={size[1]}, format=NV12, "
            f"framerate={rate.numerator}/{rate.denominator}",
            f"nvvidconv flip-method={flip}",
            "video/x-raw, format=BGRx",
            "videoconvert",
            "video/x-raw, format=BGR",
            "appsink drop=true max-buffers=1 sync=false",
        ]
    )


def open_csi(rest: str) -> CaptureDevice:
    """The camera of `csi://N?size=1280x720&fps=30&flip=0`; `rest` is what follows `csi://`."""
    number, _, query = rest.partition("?")
    options = parse_parameters(query, ("size", "fps", "flip"))
    size, fps, flip = parse_size(options) or SIZE, parse_fps(options) or FPS, parse_count(options, "flip")
    if not (number.isascii() and number.isdecimal()) or int(number) >= MAX_SENSORS or flip >= FLIPS:
        allowed = f"csi://0 to csi://{MAX_SENSORS - 1}, flip 0 to {FLIPS - 1}"
        raise UsageError("invalid CSI camera", where="--source", found=f"csi://{rest}", allowed=allowed)
    cv2 = load_with_gstreamer(f"csi://{number}")
    capture = cv2.VideoCapture(csi_pipeline(int(number), size, fps, flip), cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        capture.release()
        raise MissingError(
            "the CSI camera does not start",
            where=f"csi://{number}",
            allowed="a connected sensor that no other program uses and that supports this size and rate",
            next_command=f"gst-launch-1.0 nvarguscamerasrc sensor-id={number} num-buffers=1 ! fakesink",
        )
    lost = "the CSI camera stopped delivering frames"
    return CaptureDevice(f"csi://{number}", capture, fps, lost=lost, next_command="sudo systemctl restart nvargus-daemon")
