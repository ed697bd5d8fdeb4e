"""The request of `ufovit camera`: everything that is cheap to check is checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calib.errors import UsageError
from edge.camera.loop import Limits
from edge.camera.reconnect import Reconnect
from edge.camera.sinks.recorder import check_target

LIVE_RECONNECT_S = 60.0


@dataclass(frozen=True)
class Page:
    """Where the page is served, and the token that viewers need; None: chosen by the dashboard."""

    host: str
    port: int
    token: str | None = None


@dataclass(frozen=True)
class CameraRequest:
    """One run. Raises UsageError for options that are out of range or conflict.

    Attributes:
        build: folder of the build.
        source: see `edge.camera.sources.registry`.
        runner, threads, public_key: see `edge.runtime.open_build.open_runner`.
        limits: when the run ends, and its maximum rate.
        top_k: answers shown.
        every_frame: every frame of a file, as fast as the network takes them, instead of the newest at the file's own rate.
        loop: start files over at their end.
        reconnect_s: how long to try to open a lost source again; None: 60 s for a live one, not at all for others.
        record: a video to write.
        audit: compare every Nth result with FP32; `audit_folder`: where disagreements are saved.
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
                raise UsageError("a count must be 1 or more", where=option, found=value, allowed="1 or more")
        if self.threads < 0:
            allowed = "0 for every core, or more"
            raise UsageError("the number of threads is negative", where="--threads", found=self.threads, allowed=allowed)
        self.reconnect(live=False)
        if self.record is not None:
            check_target(self.record)

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
        default_s = LIVE_RECONNECT_S if live else 0.0
        return Reconnect(default_s if self.reconnect_s is None else self.reconnect_s)
