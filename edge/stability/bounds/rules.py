"""Operator -> the rule that bounds its outputs. What has no rule has no bound."""

from collections.abc import Callable, Mapping

from edge.stability.bounds import convolution, elementwise, products, rearrange, recurrent, reductions
from edge.stability.bounds.activations import ACTIVATIONS
from edge.stability.bounds.operator import Operator
from edge.stability.bounds.value import Value

RULES: Mapping[str, Callable[[Operator], Value | list[Value]]] = {
    **dict.fromkeys(ACTIVATIONS, elementwise.function),
    **dict.fromkeys(("Add", "Sub"), elementwise.added),
    "Mul": elementwise.multiplied,
    "Div": elementwise.divided,
    "Neg": elementwise.opposite,
    **dict.fromkeys(("Max", "Min"), elementwise.extremes),
    **dict.fromkeys(("Sum", "Mean"), elementwise.mean_of),
    "Where": elementwise.chosen,
    "Clip": elementwise.clipped,
    "Pow": elementwise.powered,
    "PRelu": elementwise.sloped,
    **dict.fromkeys(("Sin", "Cos"), elementwise.waves),
    "Reciprocal": elementwise.reciprocal,
    "MatMul": products.matmul,
    "Gemm": products.gemm,
    "Einsum": products.einsum,
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Expand", "Slice", "Gather"),
        rearrange.rearranged,
    ),
    "Split": rearrange.split,
    "Concat": rearrange.concat,
    "Pad": rearrange.padded,
    **dict.fromkeys(("Tile", "DepthToSpace", "SpaceToDepth", "TopK", "GatherElements", "GatherND"), rearrange.any_place),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), reductions.layer_norm),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), reductions.channel_norm),
    "BatchNormalization": reductions.batch_norm,
    "LpNormalization": reductions.lp_norm,
    **dict.fromkeys(("Softmax", "LogSoftmax"), reductions.softmax),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMax", "ReduceMin"), reductions.reduced_sum
    ),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Resize", "GridSample"), reductions.pooled
    ),
    **dict.fromkeys(("LSTM", "GRU"), recurrent.recurrent),
    "DequantizeLinear": reductions.dequantized,
    "Cast": reductions.cast,
}
