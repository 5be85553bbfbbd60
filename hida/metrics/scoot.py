"""SCOOT: how similar the stroke texture of two sketches is.

Source: Fan et al., ICCV 2019 (arXiv:1908.08433).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hida.errors import HidaError
from hida.metrics.inputs import as_pair, luminance, per_pair

_LEVELS = 6
_GRID = 4
# (row, column) steps to the neighbour: 0°, 45°, 90°, 135° at distance 1.
_OFFSETS = ((0, 1), (-1, 1), (-1, 0), (-1, -1))
_SMALLEST = 2 * _GRID  # a block must be able to hold a pair in each direction


def scoot(prediction: Any, target: Any) -> Tensor | float:
    """Compute the structure co-occurrence texture score Q = 1/(1 + ‖t(prediction) − t(target)‖₂), in (0, 1].

    t is the 32-vector of contrast and energy of a 4×4 grid of blocks (:func:`texture`). A prediction of another size is
    first resized to the target's (bicubic, antialiased). Equal texture gives 1; it is symmetric for images of one size.

    Args:
        prediction: uint8 or float [0, 1]; (N, 1|3, H, W) tensor, or an H×W(×3) array. RGB is turned grey.
        target: the same kinds, at least 8×8.

    Returns:
        (N,) float64 tensor for batches, a float for a single pair.

    Raises:
        HidaError: for an input of another kind, or smaller than 8×8.
    """
    a, b, single = as_pair(prediction, target)
    grey_a, grey_b = luminance(a), luminance(b)
    if grey_a.shape[-2:] != grey_b.shape[-2:]:
        resized = F.interpolate(
            _round(grey_a)[:, None], grey_b.shape[-2:], mode="bicubic", align_corners=False, antialias=True
        )
        grey_a = resized[:, 0].clamp(0, 255)
    distance = torch.linalg.vector_norm(texture(_round(grey_a)) - texture(_round(grey_b)), dim=1)
    return per_pair(1 / (1 + distance), single)


def texture(grey: Tensor) -> Tensor:
    """Return contrast (16) and energy (16) of each image's blocks, by rows: (N, H, W) integers 0–255 → (N, 32).

    Levels are min(5, ⌊6v/255⌋). A block's matrix is the mean of its four directional co-occurrence counts, rounded half
    up and normalised to p; contrast is Σ(i−j)²p, energy Σp². A block of one level has contrast 0 and energy 1, so a
    constant image is defined. Where rounding leaves no count (blocks of a few pixels), both are 0.
    """
    count, height, width = grey.shape
    if min(height, width) < _SMALLEST:
        raise HidaError(f"SCOOT needs at least {_SMALLEST}×{_SMALLEST} pixels, not {height}×{width}; enlarge it.")
    levels = (grey.long() * _LEVELS // 255).clamp_(max=_LEVELS - 1)
    rows, columns = ([size * k // _GRID for k in range(_GRID + 1)] for size in (height, width))
    blocks = [
        _counts(levels[:, top:bottom, left:right])
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    if not count:
        return grey.new_zeros((0, 2 * _GRID**2))
    matrix = torch.floor(torch.stack(blocks, 1).double() / len(_OFFSETS) + 0.5)  # N, 16, 36
    p = matrix / matrix.sum(-1, keepdim=True).clamp(min=1)
    step = torch.arange(_LEVELS, device=grey.device, dtype=p.dtype)
    weights = (step[:, None] - step[None, :]).square().flatten()
    return torch.cat([(p * weights).sum(-1), p.square().sum(-1)], 1)


def _counts(block: Tensor) -> Tensor:
    """Return co-occurrence counts summed over the four directions: (N, h, w) levels → (N, 36)."""
    count, height, width = block.shape
    cells = _LEVELS**2
    image = torch.arange(count, device=block.device)[:, None, None] * cells
    total = torch.zeros(count * cells, dtype=torch.long, device=block.device)
    for down, right in _OFFSETS:
        top, left = max(0, -down), max(0, -right)
        bottom, end = height - max(0, down), width - max(0, right)
        here = block[:, top:bottom, left:end]
        there = block[:, top + down : bottom + down, left + right : end + right]
        # bincount would have to wait for the GPU to learn its size.
        pairs = (image + here * _LEVELS + there).flatten()
        total.scatter_add_(0, pairs, torch.ones_like(pairs))
    return total.view(count, cells)


def _round(grey: Tensor) -> Tensor:
    """Return whole grey values, halves up, as an 8-bit image would hold them."""
    return torch.floor(grey + 0.5)
