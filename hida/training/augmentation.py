"""Differentiable augmentation of what a patch discriminator sees: few pairs are then many."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHIFT, HOLE = 1 / 8, 1 / 4
"""largest shift and side of the hole, as shares of the picture"""
BRIGHTNESS, CONTRAST = 0.25, 0.25
"""largest changes of the sketch's tone, black being −1 and white 1"""


class Augmentation(NamedTuple):
    """A change of all pictures beside each other, drawn anew for each iteration.

    Real and drawn sketches, and what is shown beside them, are changed alike: the discriminator of patches never sees a
    picture as it is, and the generator's gradient goes through the change. Shifted by whole pixels, the edge repeated;
    a square hole; on sketches alone, another brightness and contrast.

    Source: Zhao et al., "Differentiable augmentation for data-efficient GAN training", NeurIPS 2020.
    """

    rows: Tensor
    columns: Tensor
    visible: Tensor
    brightness: Tensor
    contrast: Tensor

    @classmethod
    def draw(cls, n: int, size: tuple[int, int], device: torch.device) -> Augmentation:
        """Draw one from torch's random numbers on the device, for ``n`` pictures of a ``size``.

        The shift is that of the whole batch, which costs two copies instead of a gather; everything else is drawn for
        each picture.
        """
        lines = []
        for length in size:
            most = int(length * SHIFT)
            start = torch.randint(-most, most + 1, (1,), device=device)
            lines.append((torch.arange(length, device=device) + start).clamp(0, length - 1))
        outside = []
        for length, axis in zip(size, (2, 3), strict=True):
            middle = torch.rand(n, 1, device=device) * length
            far = (torch.arange(length, device=device) - middle).abs() > length * HOLE / 2
            outside.append(far[:, None, :, None] if axis == 2 else far[:, None, None, :])
        tone = torch.rand(2, n, 1, 1, 1, device=device) * 2 - 1
        return cls(lines[0], lines[1], outside[0] | outside[1], BRIGHTNESS * tone[0], 1 + CONTRAST * tone[1])

    def moved(self, image: Tensor) -> Tensor:
        """Return pictures (N, C, H, W), shifted and with their holes, which are 0."""
        image = image.index_select(2, self.rows).index_select(3, self.columns)
        return image * self.visible.to(image.dtype)

    def toned(self, sketch: Tensor) -> Tensor:
        """Return sketches (N, 1, H, W) changed in brightness and contrast as well."""
        mean = sketch.mean((1, 2, 3), keepdim=True)
        changed = (sketch - mean) * self.contrast.to(sketch.dtype) + mean + self.brightness.to(sketch.dtype)
        return self.moved(changed)
