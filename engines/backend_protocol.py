"""What a backend is: two functions. One backend per file; `engines.backends.BACKENDS` lists them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calib.errors import MissingError

if TYPE_CHECKING:
    from engines.build_spec import BuildSpec
    from engines.layer_records import EngineEvidence, GraphFacts

Advance = Callable[[float], None]
"""Called with the share done, 0 to 1."""


@dataclass(frozen=True)
class Built:
    """What a backend hands back.

    Attributes:
        data: bytes of the engine file.
        version: of the backend's library.
        compute_capabilities: GPU generations that it runs on, "major.minor"; empty for a CPU.
        device: the GPU that it was built on, "" where it was built without one.
        timing_cache: what the builder measured, None where the backend keeps none.
        log: what the library said, in order.
    """

    data: bytes
    version: str
    compute_capabilities: tuple[str, ...] = ()
    device: str = ""
    timing_cache: bytes | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """One way to build engines.

    Attributes:
        build: (spec, bytes of its ONNX graph, progress) -> the engine. Leaves no file behind, whether it ends well or not.
        evidence: (bytes of the engine, bytes of its graph, facts of its graph) -> what the engine itself says.
    """

    build: Callable[[BuildSpec, bytes, Advance], Built]
    evidence: Callable[[bytes, bytes, GraphFacts], EngineEvidence]


def disk_full_error() -> MissingError:
    """The error of a backend whose temporary files do not fit on the disk."""
    return MissingError(
        "disk full, nothing was written",
        where=tempfile.gettempdir(),
        next_command="free space or set TMPDIR to another disk, then run the same command again",
    )
