"""Informative dynamic adaptation: InfoACON and DySPADE, controlled by depth, style and photo.

:class:`DynamicAdaptation` is the paper's, computed by one fused op; :class:`DySPADE` and :class:`InfoACON` are each
alone, for its ablations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hida.nn.activation import Activation, MetaACON, activation
from hida.nn.convolution import Conv2d
from hida.nn.norm import InstanceNorm
from hida.ops import ida, info_acon, instance_norm_modulate
from hida.ops.ida import Residual


class DynamicAdaptation(nn.Module):
    """Activate, normalise and modulate a decoder feature map as a condition map says.

    ``condition`` (N, K, H, W) → conv 3×3 → metaACON → one conv 3×3 to 3C channels: the logits of InfoACON's
    switch, γ and β of DySPADE, which :func:`hida.ops.ida` takes as slices without a copy.
    Source: HIDA (ICCV 2023), Sec. 3.2–3.3, Eq. 1–4.
    """

    def __init__(self, channels: int, condition_channels: int, residual: Residual) -> None:
        super().__init__()
        self.residual = residual
        self.embed = Conv2d(condition_channels, channels, 3, padding=1)
        self.activation = MetaACON(channels)
        self.modulation = Conv2d(channels, 3 * channels, 3, padding=1)
        self.p1 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        hidden = self.activation(self.embed(condition))
        logits, gamma, beta = self.modulation(hidden).chunk(3, 1)
        return ida(h, logits, gamma, beta, self.p1, self.p2, self.residual)


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
    """Activate (N, C, H, W) by a switch per pixel from a condition map, then a plain instance norm, without DySPADE.

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
