"""Informative dynamic adaptation: InfoACON and DySPADE steered by depth, style and photo."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hida.nn.convolution import Conv2d
from hida.nn.meta_acon import MetaACON
from hida.ops import ida
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
