"""The timing cache: TensorRT's kernel timings, in one file shared by the builds for a target.

A build reads the cache and adds to it, so that a later build times only new kernels. A pinned cache is not changed, and a build
that would time a kernel fails, so that builds are reproducible.
"""

from dataclasses import dataclass
from pathlib import Path

from calib.errors import ArtifactError, BackendError
from calib.files import read_regular, sha256_bytes, sha256_file, write_bytes
from engines.build_spec import BuilderOptions

_LARGEST_BYTES = 1 << 30


@dataclass(frozen=True)
class TimingCache:
    """A timing cache file. If pinned, it must exist, and a build may neither time other kernels nor write it."""

    path: Path
    pinned: bool = False

    def read(self) -> bytes:
        """Read the cache, b"" if there is no file yet. Raises ArtifactError for an unreadable or missing pinned file."""
        if self.pinned and not self.path.exists():
            raise ArtifactError(
                "no timing cache to pin",
                where=self.path,
                next_command="build once without --pin-timing-cache, then pin the cache of that build",
            )
        return read_regular(self.path, largest=_LARGEST_BYTES) if self.path.exists() else b""

    def write(self, measured: bytes | None) -> None:
        """Write the cache of a build atomically. Does nothing for None or if the cache is pinned."""
        if measured is not None and not self.pinned:
            write_bytes(self.path, measured)

    def pinned_sha256(self) -> str | None:
        """SHA-256 of a pinned cache, on which the engine depends; None if not pinned, because every build changes the cache."""
        return sha256_file(self.path) if self.pinned and self.path.is_file() else None


def check_pin(options: BuilderOptions, measured: bytes | None, *, enforced: bool) -> None:
    """Raise BackendError for an engine for which a kernel was timed despite the pinned cache.

    `measured` is the timing cache after the build. With `enforced` this release of TensorRT itself fails on a cache miss, and
    nothing is checked here.
    """
    if not options.pin_timing_cache or enforced or measured == options.timing_cache:
        return
    raise BackendError(
        "the build timed kernels that are not in the pinned timing cache, so it is not reproducible",
        found=f"timing cache sha256 {sha256_bytes(measured or b'')[:16]}...",
        next_command="build without --pin-timing-cache, then pin the cache of that build",
    )
