"""The conditional patch discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hida.config import DiscriminatorConfig
from hida.ops.checks import OpError


class Discriminator(nn.Module):
    """Judge a sketch beside its depth map: (N, 1, H, W) twice → (N, 1, H', W') logits, one a patch.

    256×256 gives 35×35: kernel 4 with padding 2 everywhere, as in the released code. 2,763,713 parameters at
    width 64. Source: HIDA (ICCV 2023), Eq. 8; Isola et al., "pix2pix", CVPR 2017.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.base_width
        # The norm stands before its convolution, behind the previous activation, as in the released class.
        layers: list[nn.Module] = [nn.Conv2d(2, width, 4, stride=2, padding=2), nn.LeakyReLU(0.2)]
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            layers += [
                nn.InstanceNorm2d(factor * width),
                nn.Conv2d(factor * width, 2 * factor * width, 4, stride=stride, padding=2),
                nn.LeakyReLU(0.2),
            ]
        layers += [nn.InstanceNorm2d(8 * width), nn.LeakyReLU(0.2), nn.Conv2d(8 * width, 1, 4, padding=2)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, depth: Tensor, sketch: Tensor) -> Tensor:
        if depth.dim() != 4 or depth.shape[1] != 1 or depth.shape != sketch.shape:
            raise OpError(
                f"depth and sketch must both have shape (N, 1, H, W); "
                f"theirs are {tuple(depth.shape)} and {tuple(sketch.shape)}."
            )
        return self.layers(torch.cat((depth.to(sketch.dtype), sketch), 1))
