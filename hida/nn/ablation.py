"""The decoder's adaptation with InfoACON, DySPADE or both left out: what the paper's ablations compare with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hida.nn.convolution import Conv2d
from hida.nn.meta_acon import MetaACON
from hida.nn.norm import InstanceNorm
from hida.ops import info_acon, instance_norm_modulate
from hida.ops.ida import Residual

Activation = Literal["info_acon", "meta_acon", "relu"]


def activation(kind: Activation, channels: int, slope: float = 0.0) -> nn.Module:
    """Return the activation that stands before a convolution: metaACON, or a (leaky) ReLU for "relu"."""
    if kind == "relu":
        return nn.LeakyReLU(slope) if slope else nn.ReLU()
    return MetaACON(channels)


class DySPADE(nn.Module):
    """Normalise (N, C, H, W) and modulate it by γ and β of a condition map (N, K, H, W), without InfoACON.

    ``condition`` → conv 3×3 → activation → one conv 3×3 to 2C channels. Source: HIDA (ICCV 2023), Eq. 4;
    Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", CVPR 2019.
    """

    def __init__(self, channels: int, condition_channels: int, residual: Residual, kind: Activation) -> None:
        super().__init__()
        self.residual = residual
        self.embed = Conv2d(condition_channels, channels, 3, padding=1)
        self.activation = activation(kind, channels)
        self.modulation = Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.modulation(self.activation(self.embed(condition))).chunk(2, 1)
        return instance_norm_modulate(h, gamma, beta, h if self.residual == "input" else None)


class InfoACON(nn.Module):
    """Activate (N, C, H, W) by a switch a pixel from a condition map, then a plain instance norm, without DySPADE.

    Source: HIDA (ICCV 2023), Eq. 2–3.
    """

    def __init__(self, channels: int, condition_channels: int) -> None:
        super().__init__()
        self.embed = Conv2d(condition_channels, channels, 3, padding=1)
        self.activation = MetaACON(channels)
        self.modulation = Conv2d(channels, channels, 3, padding=1)
        self.norm = InstanceNorm()
        self.p1 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        logits = self.modulation(self.activation(self.embed(condition)))
        return self.norm(info_acon(h, logits, self.p1, self.p2))
