"""Arguments of the native ops, for the tests of every back end."""

from __future__ import annotations

import torch
from torch import Tensor

# ‖Δ‖/‖reference in float64‖ of an adaptation op: what rounding of the result costs.
ADAPTATION_LIMITS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def randoms(*shapes, dtype=torch.float32, layout=torch.contiguous_format, seed=1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return [t.to(memory_format=layout) for t in made]


def adaptation(name, shape, logits=None, **kind) -> list[Tensor]:
    """Return the tensors of "info_acon", "instance_norm_modulate", the same "with residual", or "ida ...".

    ``logits``: their shape, by default that of x.
    """
    slopes = (1, shape[1], 1, 1), (1, shape[1], 1, 1)
    if name == "info_acon":
        return randoms(shape, logits or shape, *slopes, **kind)
    if name.startswith("ida"):
        return randoms(shape, logits or shape, shape, shape, *slopes, **kind)
    return randoms(*[shape] * (3 + (name == "with residual")), **kind)


def upstream_of(y) -> Tensor:
    """Return a gradient for ``y`` that is not constant."""
    return torch.linspace(-1, 2, y.numel(), dtype=torch.float64).reshape(y.shape).cos().to(y.dtype)


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def deformation(geometry, dtype=torch.float32, masked=True, batch=None, spread=2.0, seed=2):
    """Return (x, offset, weight, bias, mask or None) and (stride, padding, dilation) of a deform_conv2d.

    ``geometry``: batch, C_in, C_out, height, width, kernel, groups, deformable groups, stride, padding, dilation.
    ``spread``: standard deviation of the offsets.
    """
    n, c_in, c_out, h, w, kernel, groups, deformable, *steps = geometry
    n = n if batch is None else batch
    steps = tuple(pair(step) for step in steps)
    out = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, s, p, d, k in zip((h, w), *steps, kernel, strict=True)]
    taps = kernel[0] * kernel[1]
    tensors = randoms(
        (n, c_in, h, w),
        (n, 2 * deformable * taps, *out),
        (c_out, c_in // groups, *kernel),
        (c_out,),
        (n, deformable * taps, *out),
        dtype=dtype,
        seed=seed,
    )
    tensors[1] *= spread
    if not masked:
        tensors[4] = None
    return tensors, steps


def relative_error(found, expected) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))
