"""All rewriters, in the order in which they are applied.

A rewriter recognises one operator that exporters write in pieces, replaces it in the model, in place, and reports every
place. It keeps the value of every output, to rounding, and the names of all tensors and nodes that remain. Models are of
opset 20; a part of them that a rewriter does not recognise, such as custom operators and subgraphs, is left as it is.
"""

from collections.abc import Callable, Mapping

import onnx

from edge.onnx_import.find_group_norm import find_group_norms
from edge.onnx_import.fuse_attention_scale import fuse_attention_scales
from edge.onnx_import.fuse_batch_norm import fuse_batch_norms
from edge.onnx_import.fuse_einsum import fuse_einsums
from edge.onnx_import.fuse_gelu import fuse_gelus
from edge.onnx_import.fuse_hard_swish import fuse_hard_swishes
from edge.onnx_import.fuse_l2_norm import fuse_l2_norms
from edge.onnx_import.fuse_layer_norm import fuse_layer_norms
from edge.onnx_import.fuse_mish import fuse_mishes
from edge.onnx_import.fuse_rms_norm import fuse_rms_norms
from edge.onnx_import.rewritten import Rewritten
from edge.onnx_import.split_joint_linear import split_joint_linears

Rewriter = Callable[[onnx.ModelProto], list[Rewritten]]

REWRITERS: Mapping[str, Rewriter] = {
    "batch_norm": fuse_batch_norms,
    "layer_norm": fuse_layer_norms,
    "rms_norm": fuse_rms_norms,
    "gelu": fuse_gelus,
    "l2_norm": fuse_l2_norms,
    "hard_swish": fuse_hard_swishes,
    "mish": fuse_mishes,
    "einsum": fuse_einsums,
    "joint_linear": split_joint_linears,
    "attention_scale": fuse_attention_scales,
    "group_norm": find_group_norms,
}
"""Kind -> rewriter. Einsum comes before the attention whose product it writes, and a joint layer is divided before a scale
is multiplied into the part that computes queries."""
