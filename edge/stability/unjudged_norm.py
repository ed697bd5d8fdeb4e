"""A norm that no verdict covers. numpy and onnx are not needed to read it from a certificate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UnjudgedNorm:
    """An L2 norm that no verdict covers: the node that reduces, and why it is not judged."""

    name: str
    reason: str
