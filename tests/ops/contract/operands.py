"""Arguments of the ops, for every back end."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("info_acon", "instance_norm_modulate", "with residual", "ida none", "ida activated", "ida input")
SWITCHED = ("info_acon", "ida none", "ida activated", "ida input")  # those that take logits
NHWC = torch.channels_last

# N, C_in, C_out, height, width, kernel, groups, deformable groups, stride, padding, dilation
GEOMETRIES = {
    "plain": (2, 2, 3, 5, 6, (3, 3), 1, 1, 1, 1, 1),
    "groups": (2, 4, 6, 5, 6, (3, 3), 2, 2, 1, 1, 1),
    "more deformable groups than groups": (2, 4, 2, 5, 6, (2, 2), 1, 4, 1, 0, 1),
    "groups that cross deformable groups": (2, 36, 12, 5, 6, (3, 3), 2, 3, 1, 1, 1),
    "groups that cross blocks": (2, 36, 12, 9, 11, (3, 3), 2, 3, 1, 1, 1),
    "depthwise": (2, 6, 6, 5, 4, (3, 3), 6, 2, 1, 1, 1),
    "depthwise, stride": (2, 4, 4, 5, 6, (3, 3), 4, 2, 2, 1, 1),
    "depthwise, many": (2, 18, 18, 9, 10, (3, 3), 18, 2, 1, 1, 1),
    "pairs": (2, 2, 2, 5, 6, (3, 2), 1, 1, (2, 1), (1, 2), (1, 2)),
    "pointwise": (2, 2, 3, 5, 6, (1, 1), 1, 2, 1, 0, 1),
    "dilated beyond the image": (2, 2, 2, 5, 6, (3, 3), 1, 1, 1, 4, 4),
    "one pixel": (2, 17, 5, 1, 1, (1, 1), 1, 1, 1, 0, 1),
    "2² map": (5, 40, 30, 2, 2, (3, 3), 1, 2, 1, 1, 1),
    "4² map": (2, 72, 70, 4, 4, (3, 3), 1, 2, 1, 1, 1),
    "one tile": (1, 16, 13, 8, 8, (3, 3), 1, 1, 1, 1, 1),
    "more than a tile": (2, 35, 26, 9, 11, (3, 3), 1, 1, 1, 1, 1),
    "tiles across images": (7, 20, 9, 3, 5, (3, 3), 1, 1, 1, 1, 1),
    "tall tiles": (3, 100, 70, 13, 14, (2, 2), 1, 1, 1, 1, 1),
    "several tiles of channels": (1, 144, 130, 6, 7, (1, 2), 1, 1, 1, 0, 1),
    "whole packs": (2, 32, 24, 5, 6, (3, 3), 1, 2, 1, 1, 1),
    "larger map": (2, 35, 26, 17, 19, (3, 3), 1, 1, 1, 1, 1),
    "batch 33, steps": (33, 6, 4, 7, 6, (3, 2), 2, 1, (2, 1), (1, 2), (1, 2)),
    "batch 37": (37, 3, 5, 2, 3, (2, 2), 1, 1, 1, 1, 1),
}
# Those that only a GPU computes in a moment.
LARGE_GEOMETRIES = {
    "HIDA's 2² layer": (4, 512, 512, 2, 2, (3, 3), 1, 2, 1, 1, 1),
    "HIDA's 4² layer": (4, 1024, 512, 4, 4, (3, 3), 1, 2, 1, 1, 1),
    "8² map": (3, 256, 128, 8, 8, (3, 3), 1, 2, 1, 1, 1),
    "large map": (2, 64, 64, 65, 67, (3, 3), 1, 1, 1, 1, 1),
    "large groups that cross": (2, 36, 12, 33, 29, (3, 3), 2, 3, 1, 1, 1),
    "large depthwise, batch 33": (33, 24, 24, 17, 12, (3, 3), 24, 2, 2, 2, 2),
    "large batch 37": (37, 5, 7, 11, 13, (3, 3), 1, 1, 1, 0, 1),
    "large kernel": (2, 32, 16, 24, 24, (7, 7), 1, 1, 1, 3, 1),
}


def randoms(*shapes, dtype=torch.float32, layout=torch.contiguous_format, device="cpu", seed=1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    return [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in made]


def adaptation(name, shape, logits=None, **kind) -> list[Tensor]:
    """Return the tensors of one of ``NAMES``; ``logits``: their shape, by default that of x."""
    slopes = (1, shape[1], 1, 1), (1, shape[1], 1, 1)
    if name == "info_acon":
        return randoms(shape, logits or shape, *slopes, **kind)
    if name in SWITCHED:
        return randoms(shape, logits or shape, shape, shape, *slopes, **kind)
    return randoms(*[shape] * (3 + (name == "with residual")), **kind)


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def deformation(case, dtype=torch.float32, masked=True, batch=None, size=None, spread=1.5, **kind):
    """Return [x, offset, weight, bias, mask or None] and (stride, padding, dilation) of a deform_conv2d.

    ``batch``, ``size``: another one; ``spread``: standard deviation of the offsets, in pixels.
    """
    n, c_in, c_out, h, w, kernel, groups, deformable, *steps = {**GEOMETRIES, **LARGE_GEOMETRIES}[case]
    n, (h, w) = n if batch is None else batch, size or (h, w)
    steps = tuple(pair(step) for step in steps)
    sides = zip((h, w), *steps, kernel, strict=True)
    out = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, s, p, d, k in sides]
    taps = kernel[0] * kernel[1]
    tensors = randoms(
        (n, c_in, h, w),
        (n, 2 * deformable * taps, *out),
        (c_out, c_in // groups, *kernel),
        (c_out,),
        (n, deformable * taps, *out),
        dtype=dtype,
        **kind,
    )
    tensors[1] *= spread if h > 1 else 0.2 * spread
    return [*tensors[:4], tensors[4] if masked else None], steps


def upstream_of(y) -> Tensor:
    """Return a gradient for ``y`` in its memory layout: neither constant nor of mean zero."""
    values = torch.arange(y.numel(), dtype=torch.float64, device=y.device).reshape(y.shape).cos() + 0.5
    return torch.empty_like(y).copy_(values)
