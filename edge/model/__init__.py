"""The network in torch: attention, blocks, sizes, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calib.lazy_exports import by_name, lazy_exports

if TYPE_CHECKING:
    from edge.model.checkpoint import load_checkpoint, save_checkpoint
    from edge.model.export import export_onnx
    from edge.model.metadata import CheckpointInfo, read_info
    from edge.model.sizes import SIZES, UfoVitConfig, config
    from edge.model.ufo_vit import UfoVit

_PUBLIC = by_name(
    {
        "edge.model.checkpoint": ("load_checkpoint", "save_checkpoint"),
        "edge.model.export": ("export_onnx",),
        "edge.model.metadata": ("CheckpointInfo", "read_info"),
        "edge.model.sizes": ("SIZES", "UfoVitConfig", "config"),
        "edge.model.ufo_vit": ("UfoVit",),
    }
)

__all__ = [
    "SIZES",
    "CheckpointInfo",
    "UfoVit",
    "UfoVitConfig",
    "config",
    "export_onnx",
    "load_checkpoint",
    "read_info",
    "save_checkpoint",
]
__getattr__ = lazy_exports(__name__, _PUBLIC)
