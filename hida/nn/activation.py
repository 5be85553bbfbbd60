"""Activations before a convolution: metaACON, whose switch is one per channel, and (leaky) ReLU."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hida.ops import info_acon
from hida.ops.cpu.plane_mean import plane_mean

Activation = Literal["info_acon", "meta_acon", "relu"]


def activation(kind: Activation, channels: int, slope: float = 0.0) -> nn.Module:
    """Return the activation before a convolution: metaACON, or a (leaky) ReLU for "relu"."""
    if kind == "relu":
        return nn.LeakyReLU(slope) if slope else nn.ReLU()
    return MetaACON(channels)


class MetaACON(nn.Module):
    """Activate (N, C, H, W) with a channel-wise switch θ = σ(W₂·W₁·GAP(x)).

    The hidden width is max(16, C/16); neither a norm nor a nonlinearity is between the two 1×1
    convolutions. Source: Ma et al., "Activate or Not", CVPR 2021, Sec. 4.2; HIDA (ICCV 2023), Sec. 3.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(16, channels // 16)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.p1 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = plane_mean(x)
        logits = self.products(mean) if x.device.type == "cuda" else self.expand(self.squeeze(mean))
        return info_acon(x, logits, self.p1, self.p2)

    def products(self, mean: Tensor) -> Tensor:
        """Compute both convolutions of (N, C, 1, 1) as products of matrices: a GPU needs fewer kernels for them."""
        values = mean.flatten(1)
        for layer in (self.squeeze, self.expand):
            values = functional.linear(values, layer.weight.flatten(1), layer.bias)
        return values[:, :, None, None]
