"""Frame sources: cameras, streams, video files, folders, one file per kind."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.camera.sources.registry import open_source, redact_source

__all__ = ["open_source", "redact_source"]
__getattr__ = lazy_exports(__name__, __file__)
