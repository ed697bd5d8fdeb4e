"""The network in torch: attention, blocks, sizes, checkpoints."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.model.checkpoint import load_checkpoint, save_checkpoint
    from edge.model.export import export_onnx
    from edge.model.metadata import CheckpointInfo, read_info
    from edge.model.sizes import SIZES, UfoVitConfig, config
    from edge.model.ufo_vit import UfoVit

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
__getattr__ = lazy_exports(__name__, __file__)
