"""Heads that score sketches by the features of a fixed network: a projected discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hida.models.conditions import style_at, style_weights
from hida.nn import Conv2d, InstanceNorm
from hida.ops.checks import OpError

CHANNELS = {0: 64, 1: 192, 2: 384, 4: 256}
"""AlexNet's stages that are looked at, and their channels"""
WIDTH, SLOPE = 64, 0.2


class FeatureHeads(nn.Module):
    """Score sketches by AlexNet's features of them, beside those of the photo: logits of a small network per stage.

    Source: Sauer et al., "Projected GANs converge faster", NeurIPS 2021 (without its random mixing of the stages).
    """

    def __init__(self, styles: int) -> None:
        super().__init__()
        self.styles = styles
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * channels + styles, WIDTH, 1),
                InstanceNorm(before=SLOPE),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                InstanceNorm(before=SLOPE, after=SLOPE),
                Conv2d(WIDTH, 1, 3, padding=1),
            )
            for channels in CHANNELS.values()
        )

    def forward(self, sketch: list[Tensor], photo: list[Tensor], style: Tensor | None) -> list[Tensor]:
        """Return the logits (N, 1, h, w) of every stage looked at.

        Args:
            sketch, photo: the network's stages, (N, C, h, w) each.
            style: (N,) numbers or (N, S) weights; not looked at where the heads are told no style.
        """
        if self.styles and style is None:
            raise OpError("these heads are told the style; give it as style.")
        found = []
        for head, stage in zip(self.heads, CHANNELS, strict=True):
            planes = [sketch[stage], photo[stage].to(sketch[stage].dtype)]
            if style is not None and self.styles:
                weights = style_weights(style, len(sketch[stage]), self.styles)
                planes.append(style_at(weights, sketch[stage].shape[2:]).to(planes[0].dtype))
            found.append(head(torch.cat(planes, 1)))
        return found
