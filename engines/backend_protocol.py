"""The interface of a backend: `build` and `evidence`. One backend per file; `engines.backends.BACKENDS` lists them."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from calib.errors import MissingError
from engines.build_spec import BuildSpec
from engines.layer_records import EngineEvidence, GraphFacts

Advance = Callable[[float], None]
"""Progress callback: called with the completed share, 0 to 1."""


@dataclass(frozen=True)
class BackendResult:
    """What a backend returns: the bytes of the engine file and the version of its library.

    Attributes:
        compute_capabilities: compute capabilities that the engine runs on, "major.minor"; empty for a CPU.
        device: name of the GPU that the engine was built on, "" for a build without a GPU.
        timing_cache: serialized timing cache after the build, None for a backend without one.
    """

    data: bytes
    version: str
    compute_capabilities: tuple[str, ...] = ()
    device: str = ""
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class Backend:
    """Two functions that build and inspect engines.

    Attributes:
        build: (spec, bytes of its ONNX graph, progress) -> the engine. Leaves no files, even when it fails.
        evidence: (bytes of the engine, bytes of its graph, facts of its graph) -> the precision of each layer in the engine.
    """

    build: Callable[[BuildSpec, bytes, Advance], BackendResult]
    evidence: Callable[[bytes, bytes, GraphFacts], EngineEvidence]


def disk_full_error() -> MissingError:
    """The error to raise when a backend's temporary files do not fit on the disk."""
    return MissingError(
        "disk full, nothing was written",
        where=tempfile.gettempdir(),
        next_command="free space or set TMPDIR to another disk, then run the same command again",
    )
