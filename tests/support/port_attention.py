"""A small transformer whose attention is that of the public port of UFO-ViT, and its export as people make it."""

import io
import warnings

import onnx
import torch
from torch import Tensor, nn


class PortAttention(nn.Module):
    """Projections of queries, keys, values and output; one gain; norms over the last axis, without an eps."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(dim, dim) for _ in range(4))
        self.gamma = nn.Parameter(torch.rand(1, heads, 1, 1) + 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        batch, count, dim = tokens.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, count, self.heads, dim // self.heads).transpose(1, 2)

        query, key, value = split(self.fc_q(tokens)), split(self.fc_k(tokens)), split(self.fc_v(tokens))
        product = key.transpose(2, 3) @ value
        out = self._norm(query) @ self._norm(product)
        return self.fc_o(out.transpose(1, 2).reshape(batch, count, dim))

    def _norm(self, a: Tensor) -> Tensor:
        return a * self.gamma / torch.norm(a, p=2, dim=-1, keepdim=True)


class PortNetwork(nn.Module):
    """Patches of 8 px, two blocks of attention and feed-forward, the mean of the tokens, logits."""

    def __init__(self, dim: int = 32, heads: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 8, 8)
        self.attention = nn.ModuleList(PortAttention(dim, heads) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.head = nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, classes)."""
        tokens = self.patch(image).flatten(2).transpose(1, 2)
        for i in range(2):
            tokens = tokens + self.attention[i](self.norms[2 * i](tokens))
            tokens = tokens + self.mlp[i](self.norms[2 * i + 1](tokens))
        return self.head(self.norms[4](tokens).mean(1))


def export_port(size: int = 32, opset: int = 14, seed: int = 0) -> onnx.ModelProto:
    """The TorchScript export with a free batch."""
    torch.manual_seed(seed)
    network, file = PortNetwork().eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
        )
    return onnx.load_model_from_string(file.getvalue())
