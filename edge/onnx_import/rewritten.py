"""What a rewriter reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rewritten:
    """A place that a rewriter recognised.

    Attributes:
        kind: what it computes, as in `edge.onnx_import.rewriters.REWRITERS`.
        node: name of the node that it ends in, in the graph as it was.
        into: name of the node that gives the result now; empty where the place is kept as it is.
        reason: why it is kept as it is, one sentence without a trailing dot; empty where it is rewritten.
    """

    kind: str
    node: str
    into: str
    reason: str = ""
