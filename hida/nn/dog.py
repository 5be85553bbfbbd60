"""Deformable outlining (DOG): upsampling whose sampling points follow the outlines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hida.nn.doubling import Doubling
from hida.ops import deform_conv2d
from hida.ops.layout import channels_last


class DOG(nn.Module):
    """Double the size bilinearly, then convolve with a modulated deformable 3×3 kernel.

    (N, C_in, H, W) → (N, C_out, 2H, 2W). Two deformable groups; one 3×3 convolution of the upsampled map gives
    36 offset channels and 18 mask logits. It starts at zero: an ordinary convolution with every tap weighed ½.
    Source: HIDA (ICCV 2023), Sec. 3.3; Zhu et al., "Deformable ConvNets v2", CVPR 2019.
    """

    groups = 2
    taps = 9

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.doubling = Doubling()
        reference = nn.Conv2d(in_channels, out_channels, 3)
        self.weight, self.bias = reference.weight, reference.bias
        self.offset_mask = nn.Conv2d(in_channels, 3 * self.groups * self.taps, 3, padding=1)
        for parameter in self.offset_mask.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        device = "cpu" if x.is_meta else x.device.type  # there is no autocast for meta tensors
        given, x = x.dtype, self.doubling(x)
        # Sampling coordinates need more bits than a half-precision autocast region would give them.
        with torch.autocast(device, enabled=False):
            predicted = self.offset_mask(x.to(self.offset_mask.weight.dtype))
        offset, mask = predicted.split((2 * self.groups * self.taps, self.groups * self.taps), 1)
        if device == "cuda":  # doubled in float32: what follows would mix that with half precision
            x = x.to(given)
        h = deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask.sigmoid())
        # What follows keeps the layout that it gets.
        return h.contiguous(memory_format=torch.channels_last) if channels_last(x) else h
