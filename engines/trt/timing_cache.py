"""The timing cache: what TensorRT measured when it chose kernels, in one file that the builds for a target share.

A build starts from it and adds to it, so that a second build measures only what is new. Pinned, it stays as it is, and a build
that would measure anything else fails: builds repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calib.errors import BackendError, InputError
from calib.files import sha256_bytes, sha256_file, write_bytes
from engines.build_spec import BuilderOptions


@dataclass(frozen=True)
class TimingCache:
    """A timing cache on the disk.

    Attributes:
        path: its file, which need not exist unless it is pinned.
        pinned: whether a build may neither measure anything else nor write it.
    """

    path: Path
    pinned: bool = False

    def read(self) -> bytes:
        """What earlier builds measured, b"" for nothing yet. Raises InputError for a file that cannot be used."""
        if self.path.is_dir():
            raise InputError("a timing cache is a file", where=self.path)
        if self.pinned and not self.path.is_file():
            raise InputError(
                "there is no timing cache to pin",
                where=self.path,
                next_command="build once without --pin-timing-cache, then pin what it left",
            )
        try:
            return self.path.read_bytes() if self.path.is_file() else b""
        except OSError as error:
            raise InputError("timing cache cannot be read", where=self.path, found=error.strerror) from error

    def write(self, measured: bytes | None) -> None:
        """Store what a build measured, atomically; None, and anything for a pinned cache, leaves the file as it is."""
        if measured is not None and not self.pinned:
            write_bytes(self.path, measured)

    def pinned_sha256(self) -> str | None:
        """Digest of a pinned cache, which decides about the engine; None for any other, since every build adds to it."""
        return sha256_file(self.path) if self.pinned and self.path.is_file() else None


def check_pin(options: BuilderOptions, measured: bytes | None, *, enforced: bool) -> None:
    """Refuse an engine for which a kernel was timed despite the pin.

    Args:
        options: of the build.
        measured: the timing cache after it.
        enforced: whether this release of TensorRT itself refuses to measure; then its word counts.

    Raises BackendError.
    """
    if not options.pin_timing_cache or enforced or measured == options.timing_cache:
        return
    raise BackendError(
        "the build measured kernels anew, so that it does not repeat the one that left the pinned timing cache",
        found=f"timing cache sha256 {sha256_bytes(measured or b'')[:16]}...",
        next_command="build without --pin-timing-cache and pin what that leaves",
    )
