"""Linear attention with two XNorms (UFO-ViT, arXiv 2109.14382).

Softmax attention costs O(N^2) in the number of tokens N. UFO attention replaces the softmax by two L2 norms, so that the
product can be taken in the other order and costs O(N):

    A(x) = XN_q(Q) . XN_kv(K^T V)          XN(a) = gamma * a / max(||a||_2, eps)

    Q, K, V          (B, H, N, D)   queries, keys, values: batch, heads, tokens, channels of a head
    XN_q(Q)          norm over D:   every query becomes a vector of length |gamma_q|
    K^T V            (B, H, D, D)   summed over the N tokens, so its values grow with the resolution
    XN_kv(K^T V)     norm over the first D (the contraction axis): every column gets length |gamma_kv|
    A(x)             (B, H, N, D)

Every output is gamma_q * gamma_kv * cos(q_i, k_j), hence |A(x)| <= |gamma_q * gamma_kv| whatever the input
(Cauchy-Schwarz). There is no softmax and no 1/sqrt(D).
"""

from torch import Tensor, nn

from edge.model.sizes import KvAxis
from edge.model.xnorm import XNorm


class UfoAttention(nn.Module):
    """UFO attention of `queries` over `tokens`: self-attention when both are the same tensor.

    Args:
        dim: channels C; must be divisible by `heads`.
        heads: number of heads H, so that D = C / H.
        kv_axis: axis of K^T V that is normalised. With "last" (weights of some ports) the bound on the output grows
            from |gamma_q * gamma_kv| by a factor of sqrt(D).
    """

    def __init__(self, dim: int, heads: int, kv_axis: KvAxis = "contraction") -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.xnorm_q = XNorm(heads, dim=-1)
        self.xnorm_kv = XNorm(heads, dim=-2 if kv_axis == "contraction" else -1)
        self.proj = nn.Linear(dim, dim)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, H, N, D)."""
        batch, tokens, channels = x.shape
        return x.reshape(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Queries (B, M, C), tokens (B, N, C) -> (B, M, C)."""
        q = self.xnorm_q(self.split_heads(self.q(queries)))  # (B, H, M, D)
        k = self.split_heads(self.k(tokens))  # (B, H, N, D)
        v = self.split_heads(self.v(tokens))  # (B, H, N, D)
        kv = self.xnorm_kv(k.transpose(-2, -1) @ v)  # (B, H, D, D)
        out = (q @ kv).transpose(1, 2).flatten(2)  # (B, M, C)
        projected: Tensor = self.proj(out)
        return projected
