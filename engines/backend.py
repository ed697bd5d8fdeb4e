"""What a backend is: two functions. One backend per file; `engines.build.BACKENDS` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from engines.layers import LayerEvidence
    from engines.spec import BuildSpec

Advance = Callable[[float], None]
"""Called with the share done, 0 to 1."""


@dataclass(frozen=True)
class Built:
    """What a backend hands back.

    Attributes:
        data: bytes of the engine file.
        version: of the backend's library.
        log: what the library said, in order.
    """

    data: bytes
    version: str
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """One way to build engines.

    Attributes:
        build: (spec, its graph, progress) -> the engine. Leaves no file behind, whether it ends well or not.
        evidence: (bytes of the engine, its graph) -> unique node name -> what the engine itself says of that node. A node
            that is left out counts as not INT8.
    """

    build: Callable[[BuildSpec, onnx.ModelProto, Advance], Built]
    evidence: Callable[[bytes, onnx.ModelProto], dict[str, LayerEvidence]]
