"""XNorm, the norm of UFO-ViT (arXiv 2109.14382): XN(a) = gamma * a / max(||a||_2, eps)."""

import torch
from torch import Tensor, nn

XNORM_EPS = 2.0**-14
"""Lower clamp on the norm: the smallest normal number of FP16, so that it is neither zero nor subnormal in FP16 and BF16.

A clamp, unlike an added eps, leaves XN(s*a) = XN(a) exact for every s > 0 for which the clamp is inactive.
"""


def l2_normalize(a: Tensor, dim: int) -> Tensor:
    """Normalize along `dim`: a / max(||a||_2, XNORM_EPS). Shape and dtype of `a` are kept; a zero vector stays zero."""
    norm: Tensor = torch.linalg.vector_norm(a, ord=2, dim=dim, keepdim=True)
    return a / norm.clamp_min(XNORM_EPS)


class XNorm(nn.Module):
    """gamma * a / max(||a||_2, XNORM_EPS) with one learnable gamma per head.

    Input and output (B, H, *, *); `gamma` has shape (1, H, 1, 1) and starts at 1. It is None once `edge.model.export` has
    folded it into the output projection.
    """

    gamma: nn.Parameter | None

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.gamma = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, a: Tensor) -> Tensor:
        """(B, H, *, *) -> the same shape."""
        unit = l2_normalize(a, self.dim)
        return unit if self.gamma is None else self.gamma * unit
