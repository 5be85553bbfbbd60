"""Means over squares, and the filter that carries the edges of a photo into a rough matte."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Return the mean of (..., H, W) over squares of side 2·radius + 1, of what of them is inside the picture.

    By running sums, so that a large radius costs no more than a small one; they are kept in float64.
    """
    side = 2 * radius + 1
    sums = F.pad(x.double(), (radius + 1, radius, radius + 1, radius)).cumsum(-2).cumsum(-1)
    total = sums[..., side:, side:] - sums[..., :-side, side:] - sums[..., side:, :-side] + sums[..., :-side, :-side]
    rows, columns = (_counts(length, radius).to(x.device) for length in x.shape[-2:])
    return (total / (rows[:, None] * columns)).to(x.dtype)


def _counts(length: int, radius: int) -> Tensor:
    """Return how many places within ``radius`` of each place of a length there are."""
    at = torch.arange(length, dtype=torch.float64)
    return (at + radius).clamp(max=length - 1) - (at - radius).clamp(min=0) + 1


def guided_filter(guide: Tensor, x: Tensor, radius: int, strength: float) -> tuple[Tensor, Tensor]:
    """Return ``a`` and ``b`` such that a·guide + b is ``x`` smoothed, but with the edges of ``guide``.

    Both change slowly: they may be computed on small pictures, and enlarged for a large guide.

    Args:
        guide, x: (H, W) floats.
        radius: of the squares in which x is a linear function of the guide, in pixels.
        strength: edges of the guide whose variance is below this are smoothed.

    Source: He, Sun, Tang, Guided Image Filtering, https://doi.org/10.1109/TPAMI.2012.213, Eq. 5, 6 and 8.
    """
    means = box_mean(torch.stack((guide, x, guide * x, guide * guide)), radius)
    covariance = means[2] - means[0] * means[1]
    variance = means[3] - means[0] * means[0]
    a = covariance / (variance.clamp(min=0) + strength)
    a, b = box_mean(torch.stack((a, means[1] - a * means[0])), radius)
    return a, b
