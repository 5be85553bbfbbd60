"""What steers the decoder beside the photo: depth at every level's size, and style weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hida.ops.checks import OpError, require_tensor


def style_weights(style: Tensor, batch: int, styles: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (N, S) weights of a ``dtype`` from (N,) style numbers 0..S−1; weights pass as they are.

    Weights are (N, S), one mixture per image, or (N, S, H, W), one per pixel.

    Style numbers outside the range cannot be checked without a device synchronisation: they give a zero row,
    which is no style at all; callers that read user input check it first.

    Raises:
        OpError: for another shape or dtype.
    """
    require_tensor("style", style)
    if style.dim() in (2, 4) and tuple(style.shape[:2]) == (batch, styles) and style.is_floating_point():
        return style
    if style.dim() == 1 and style.shape[0] == batch and _holds_integers(style):
        numbers = torch.arange(styles, device=style.device)
        return (style[:, None] == numbers).to(dtype)
    raise OpError(
        f"style must be ({batch},) integers, ({batch}, {styles}) or ({batch}, {styles}, H, W) floating-point weights; "
        f"it is {tuple(style.shape)} of {style.dtype}."
    )


def _holds_integers(style: Tensor) -> bool:
    return not (style.is_floating_point() or style.is_complex() or style.dtype == torch.bool or style.is_quantized)


def style_at(weights: Tensor, size: torch.Size) -> Tensor:
    """Return the weights of :func:`style_weights` at a level's ``size``: the mean over what a pixel there covers."""
    if weights.dim() == 2:
        return weights[:, :, None, None].expand(-1, -1, *size)
    return functional.interpolate(weights, size=size, mode="area")


def depth_pyramid(depth: Tensor, levels: int, method: Literal["nearest", "gaussian"]) -> list[Tensor]:
    """Return ``depth`` (N, 1, H, W) at sizes H/2^levels … H/2, smallest first.

    ``"nearest"`` takes every k-th pixel, as the released code does; ``"gaussian"`` halves repeatedly with the
    binomial kernel [1 4 6 4 1]/16 of Burt and Adelson (1983).
    """
    if method == "nearest" and depth.device.type == "cuda" and not torch.compiler.is_compiling():
        return [every(2**k, depth) for k in range(levels, 0, -1)]  # the same pixels, without a kernel
    if method == "nearest":
        sizes = [(depth.shape[2] // 2**k, depth.shape[3] // 2**k) for k in range(levels, 0, -1)]
        return [functional.interpolate(depth, size=size, mode="nearest") for size in sizes]
    pyramid = []
    for _ in range(levels):
        # Reflection needs two pixels of margin, which the innermost levels of a 256-pixel image lack.
        depth = functional.pad(depth, (2, 2, 2, 2), mode="replicate")
        depth = _halved(_halved(depth, 2), 3)
        pyramid.append(depth)
    return pyramid[::-1]


def every(step: int, image: Tensor) -> Tensor:
    """Return every ``step``-th pixel of every ``step``-th row, a view."""
    return image[:, :, ::step, ::step]


def _halved(image: Tensor, axis: int) -> Tensor:
    """Smooth along one axis of a padded image by [1 4 6 4 1]/16 and keep every other pixel."""
    first, second, third, fourth, fifth = image.unfold(axis, 5, 2).unbind(-1)
    return (first + fifth + 4 * (second + fourth) + 6 * third) / 16
