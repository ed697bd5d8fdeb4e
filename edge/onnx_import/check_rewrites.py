"""Apply the rewriters, each checked on real images against the graph before it."""

from collections.abc import Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from edge.onnx_import.import_record import ImportRecord
from edge.onnx_import.imported import Imported


def rewrite(model: onnx.ModelProto, batches: Sequence[NDArray[Any]], original: Imported) -> ImportRecord:
    """Rewrite `model` in place.

    Args:
        model: `original.model`, or a copy of it.
        batches: preprocessed images (B, ...) as the image input takes them.
    """
    raise NotImplementedError(model, batches, original)
