"""The network in torch: attention, blocks, sizes, checkpoints."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.model.checkpoint import load_checkpoint, save_checkpoint
    from edge.model.export import export_onnx
    from edge.model.metadata import CheckpointInfo, read_info
    from edge.model.network_file import NetworkFile, find_network_file, read_network_file
    from edge.model.sizes import SIZES, UfoVitConfig, config
    from edge.model.ufo_vit import UfoVit

__all__ = [
    "SIZES",
    "CheckpointInfo",
    "NetworkFile",
    "UfoVit",
    "UfoVitConfig",
    "config",
    "export_onnx",
    "find_network_file",
    "load_checkpoint",
    "read_info",
    "read_network_file",
    "save_checkpoint",
]
__getattr__ = lazy_exports(__name__, __file__)
