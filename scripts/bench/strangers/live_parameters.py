"""Random parameters of an untrained network that act as trained ones do: no identities, no zeros."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SMALL = 0.02
"""A constant parameter up to this size is a LayerScale (or a zero that it starts from)."""


@torch.no_grad()
def enliven(network: nn.Module, batches: list[Tensor], seed: int) -> None:
    """Replace constant parameters by random ones, and the running statistics of BatchNorm by those of `batches` (B, 3, H, W).

    Constant parameters: 1 (gains) becomes U(0.5, 1.5); 0 becomes N(0, 0.02), of vectors N(0, 0.1); other constants up to SMALL
    (LayerScale) become U(0.1, 0.4). Scalars and larger constants stay. Weights of linear layers and convolutions below half the
    standard deviation that keeps the variance of their input, 1 / sqrt(fan in), get that one: with the 0.01 or 0.02 that many
    networks start training with, attention is uniform and the answer hardly depends on the image.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            _draw(parameter, generator)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _scale_up(module.weight)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches:
        network(batch)
    network.eval()


def _scale_up(weight: Tensor) -> None:
    deviation, wanted = float(weight.std()), weight[0].numel() ** -0.5
    if 0.0 < deviation < wanted / 2:
        weight *= wanted / deviation


def _draw(parameter: Tensor, generator: torch.Generator) -> None:
    value = float(parameter.flatten()[0])
    if value == 1.0:
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif value == 0.0:
        parameter.normal_(0.0, 0.1 if parameter.ndim == 1 else 0.02, generator=generator)
    elif abs(value) <= SMALL:
        parameter.uniform_(0.1, 0.4, generator=generator)
