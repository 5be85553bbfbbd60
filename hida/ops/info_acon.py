"""InfoACON / metaACON activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hida.ops import checks, dispatch, library, sizes
from hida.ops.layout import laid_out_for_kernels


def info_acon(x: Tensor, logits: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Smoothly switch between the linear maps ``p1·x`` and ``p2·x`` (ACON-C with a learned, local switch).

    ::

        θ = σ(logits)
        y = (p1 − p2)·x·σ(θ·(p1 − p2)·x) + p2·x

    Args:
        x: (N, C, H, W), any floating dtype.
        logits: (N, C, H, W), (N, 1, H, W) for one switch per pixel, (N, C, 1, 1) for metaACON, or (1, C, 1, 1).
        p1, p2: (1, C, 1, 1), the slopes for large positive and large negative ``(p1 − p2)·x``.

    Returns:
        (N, C, H, W) in the dtype of ``x``; computed in float32 (float64 for float64 input).

    Raises:
        OpError: if a shape, dtype or device does not fit.

    Source: HIDA (ICCV 2023), Eq. 2–3; Ma et al., "Activate or Not", CVPR 2021, Eq. 7.
    """
    require_info_acon(x, logits, p1, p2)
    if dispatch.native(x, logits, p1, p2):
        return torch.ops.hida.info_acon(x, logits, p1, p2)
    return info_acon_reference(x, logits, p1, p2)


def info_acon_reference(x: Tensor, logits: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Compute :func:`info_acon` with plain PyTorch."""
    dtype = checks.accumulation_dtype(x, logits, p1, p2)
    value = x.to(dtype)
    base = p2.to(dtype)
    linear = (p1.to(dtype) - base) * value
    switch = torch.sigmoid(logits.to(dtype))
    return (linear * torch.sigmoid(switch * linear) + base * value).to(x.dtype)


def require_info_acon(x: Tensor, logits: Tensor, p1: Tensor, p2: Tensor, name: str = "x") -> None:
    """Check the arguments of :func:`info_acon`, whose caller calls the first one ``name``."""
    checks.require_image(name, x)
    n, c, h, w = x.shape
    checks.require_shape("logits", logits, (n, c, h, w), (n, 1, h, w), (n, c, 1, 1), (1, c, 1, 1))
    checks.require_shape("p1", p1, (1, c, 1, 1))
    checks.require_shape("p2", p2, (1, c, 1, 1))
    checks.require_device(name, x, logits=logits, p1=p1, p2=p2)


def _fake(x: Tensor, logits: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, logits: Tensor, p1: Tensor, p2: Tensor, wanted: int) -> tuple[Tensor, ...]:
    whole = fake_logits_gradient(x, logits, x, p1, p2)
    slope = library.partial_sums(x, logits, p1, p2)
    made = (torch.empty_like(x), whole, slope, torch.empty_like(slope))
    return tuple(t if wanted >> i & 1 else x.new_empty(0) for i, t in enumerate(made))


def fake_logits_gradient(x: Tensor, logits: Tensor, *others: Tensor) -> Tensor:
    """Return an empty tensor like the gradient of the logits that a backward operator returns."""
    n, c, h, w = x.shape
    sums = library.partial_sums(x, logits, *others)
    if sizes.same(logits.shape, x.shape):
        return library.gradient_like(logits, x)
    return sums.new_empty((n, c, h, w)) if sizes.same(logits.shape, (n, 1, h, w)) else sums


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors, needed = ctx.saved_tensors, ctx.needs_input_grad
    if torch.is_grad_enabled() or library.transformed(grad):
        return tuple(library.differentiable_gradients(info_acon_reference, tensors, needed, grad))
    grad = laid_out_for_kernels(grad, tensors[0])
    gradients = torch.ops.hida.info_acon_backward(grad, *tensors, library.wanted(needed))
    return tuple(library.sum_to(g, t) if need else None for g, t, need in zip(gradients, tensors, needed, strict=True))


if library.loaded:
    torch.library.register_fake("hida::info_acon", _fake)
    torch.library.register_fake("hida::info_acon_backward", _fake_backward)
    torch.library.register_autograd("hida::info_acon", _backward, setup_context=_setup)
