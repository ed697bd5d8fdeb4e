"""What `ufovit camera` is asked for: all that is cheap to check, checked before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from calib.errors import InputError
from edge.camera.loop import Limits
from edge.camera.sinks.recorder import check_target

CAMERA_RECONNECTS_S = 60.0


@dataclass(frozen=True)
class Page:
    """Where the page is served, and the token that viewers need; None: the dashboard's own choice."""

    host: str
    port: int
    token: str | None = None


@dataclass(frozen=True)
class CameraRequest:
    """One run. Raises InputError for options that do not fit together or are out of range.

    Attributes:
        build: folder of the build.
        source: see `edge.camera.sources.source`.
        runner, threads, public_key: see `edge.runtime.open_build.open_runner`.
        limits: when the run ends, and the highest rate of results.
        top_k: answers shown.
        every_frame: each frame of a file, as fast as the network takes them, instead of the newest at the file's own rate.
        loop: start files over at their end.
        reconnect_s: how long a lost source is tried again; None: 60 s for a live one, not at all for others.
        record: a video to write.
        audit: compare every Nth result with FP32; `audit_folder`: where disagreements go.
        page: where to serve the page.
    """

    build: Path
    source: str
    runner: str = "auto"
    threads: int = 0
    public_key: Path | None = None
    limits: Limits = Limits()  # noqa: RUF009  # frozen
    top_k: int = 3
    every_frame: bool = False
    loop: bool = False
    reconnect_s: float | None = None
    record: Path | None = None
    audit: int | None = None
    audit_folder: Path = Path("audit")
    page: Page | None = None

    def __post_init__(self) -> None:
        for option, value in (("--top", self.top_k), ("--audit", self.audit)):
            if value is not None and value < 1:
                raise InputError("a count has to be 1 or more", where=option, found=value, allowed="1 or more")
        if self.threads < 0:
            raise InputError("no number of threads", where="--threads", found=self.threads, allowed="0 for every core, or more")
        reconnect = self.reconnect_s
        if reconnect is not None and not (math.isfinite(reconnect) and reconnect >= 0):
            raise InputError("no time", where="--reconnect-for", found=reconnect, allowed="seconds, 0 or more")
        if self.record is not None:
            check_target(self.record)

    def check_source(self, *, live: bool) -> None:
        """Raise InputError for options that the kind of source has no use for."""
        asked = {"--every-frame": self.every_frame, "--loop": self.loop}
        idle = [option for option, given in asked.items() if given and live]
        if idle:
            raise InputError(
                "a camera keeps its own time and has no end",
                where=" ".join(idle),
                allowed="with a video file, folder or synthetic://",
            )

    def reconnect_for_s(self, *, live: bool) -> float:
        """Seconds."""
        if self.reconnect_s is not None:
            return self.reconnect_s
        return CAMERA_RECONNECTS_S if live else 0.0
