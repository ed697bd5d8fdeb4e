"""Images: reading, labels, preprocessing, the golden pair."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.images.golden_pair import GoldenPair, check_build_golden
    from edge.images.graph_input import GraphImages, open_graph_images
    from edge.images.labelled_images import ImageSet, open_images, open_unlabelled
    from edge.images.preprocess import Preprocess, read_preprocess

__all__ = [
    "GoldenPair",
    "GraphImages",
    "ImageSet",
    "Preprocess",
    "check_build_golden",
    "open_graph_images",
    "open_images",
    "open_unlabelled",
    "read_preprocess",
]
__getattr__ = lazy_exports(__name__, __file__)
