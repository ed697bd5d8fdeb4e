"""The request of `ufovit camera`: everything that is cheap to check is checked before anything is opened.

Each field of `CameraOptions` and `Limits` is an option of the command, its line in the docstring the help text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from calib.errors import UsageError
from edge.camera.web.bind_address import parse_address
from edge.option_bounds import FPS, FRAMES, RECONNECT_S, RUN_S, THREADS, TOP, check_bounds

if TYPE_CHECKING:
    from edge.camera.reconnect import Reconnect


@dataclass(frozen=True)
class Limits:
    """When the loop ends, and its maximum rate; None: no limit. Raises UsageError for a value out of bounds.

    Attributes:
        duration_s: End after so many seconds, 0.001 to 31,536,000
        frames: End after so many frames through the network, 1 to 1,000,000,000
        max_fps: Most frames per second through the network, 0.001 to 1,000
    """

    duration_s: float | None = None
    frames: int | None = None
    max_fps: float | None = None

    def __post_init__(self) -> None:
        check_bounds("--duration", self.duration_s, RUN_S)
        check_bounds("--frames", self.frames, FRAMES)
        check_bounds("--max-fps", self.max_fps, FPS)


NO_LIMITS = Limits()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """How a camera's pictures go through a build, and where the answers go.

    Attributes:
        runner: auto, ort, openvino, trt
        serve: Serve the page at [HOST:]PORT; 127.0.0.1 without HOST
        token: What viewers of the page must give; a command line is visible to every user of the machine. Default: that of the
            environment variable UFOVIT_TOKEN, else drawn for another HOST than loopback
        token_file: File whose first line is the token, and that only you can read
        record: Write a video with the answers on it: .mp4, .mkv, .avi
        every_frame: Of a file: each frame, as fast as the network takes them
        loop: Of a file: start over at its end
        reconnect_s: Seconds to wait for a lost source, 0 to 31,536,000. Default: 60 for cameras and streams, 0 for files
        audit: Answer every Nth result again in FP32 on the CPU, 1 to 1,000,000,000
        audit_dir: Where frames that disagree go. Default: audit
        top_k: Classes shown per result, 1 to 1,000
        threads: Threads of a runner on the CPU, 0 to 1,024; 0: every core
        public_key: PEM file of the public key that must have signed the build
    """

    runner: str = "auto"
    serve: str | None = None
    token: str | None = None
    token_file: Path | None = None
    record: Path | None = None
    limits: Annotated[Limits, Parameter(name="*")] = NO_LIMITS
    every_frame: bool = False
    loop: bool = False
    reconnect_s: Annotated[float | None, Parameter(name="--reconnect-for")] = None
    audit: int | None = None
    audit_dir: Path | None = None
    top_k: Annotated[int, Parameter(name="--top")] = 3
    threads: int = 0
    public_key: Annotated[Path | None, Parameter(name="--require-signature")] = None


@dataclass(frozen=True)
class CameraRequest(CameraOptions):
    """One run: the options, checked, the folder of the build, and a source, see `edge.camera.sources.registry`."""

    build: Path
    source: str

    def __post_init__(self) -> None:
        from edge.camera.sinks.recorder import check_target

        if self.audit_dir is not None and self.audit is None:
            raise UsageError(
                "--audit-dir is about --audit", where="--audit-dir", found=self.audit_dir, allowed="with --audit N"
            )
        for option, value in (("--token-file", self.token_file), ("--token", self.token)):
            if value is not None and self.serve is None:
                raise UsageError(f"{option} is about the page", where=option, allowed="with --serve [HOST:]PORT")
        check_bounds("--top", self.top_k, TOP)
        check_bounds("--audit", self.audit, FRAMES)
        check_bounds("--threads", self.threads, THREADS)
        check_bounds("--reconnect-for", self.reconnect_s, RECONNECT_S)
        if self.record is not None:
            check_target(self.record)
        _ = self.page_address  # refuses an address that it does not understand

    @property
    def page_address(self) -> tuple[str, int] | None:
        """(host, port) of the page; None for no page. Raises InputError for an address that is not understood."""
        return None if self.serve is None else parse_address(self.serve)

    def check_source(self, *, live: bool) -> None:
        """Raise UsageError for options that a live source does not support."""
        options = {"--every-frame": self.every_frame, "--loop": self.loop}
        unsupported = [option for option, given in options.items() if given and live]
        if unsupported:
            raise UsageError(
                "a live source sets its own pace and has no end",
                where=" ".join(unsupported),
                allowed="with a video file, folder or synthetic://",
            )

    def reconnect(self, *, live: bool) -> Reconnect:
        """The policy for a lost source."""
        from edge.camera.reconnect import Reconnect

        default_s = 60.0 if live else 0.0
        return Reconnect(default_s if self.reconnect_s is None else self.reconnect_s)
