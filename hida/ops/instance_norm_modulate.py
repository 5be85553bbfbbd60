"""Instance normalisation with a per-pixel affine map (SPADE modulation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hida.ops import checks, dispatch, library
from hida.ops.layout import laid_out_for_kernels


def instance_norm_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise each (n, c) plane, then scale by ``1 + γ``, shift by ``β`` and add a residual.

    ::

        y = (1 + γ)·(x − μ)/√(var + eps) + β (+ residual)

    ``μ`` and ``var`` are taken over H×W; ``var`` is biased. A plane of one element has variance 0,
    so that ``y = β (+ residual)`` there.

    Args:
        x: (N, C, H, W), any floating dtype.
        gamma, beta: (N, C, H, W); slices of a larger tensor are fine.
        residual: (N, C, H, W) or None.
        eps: added to the variance, > 0.

    Returns:
        (N, C, H, W) in the dtype of ``x``; computed in float32 (float64 for float64 input).

    Raises:
        OpError: if a shape, dtype or device does not fit, or ``eps`` is not a positive number.

    Source: HIDA (ICCV 2023), Eq. 4; Park et al., "Semantic Image Synthesis with SPADE", CVPR 2019, Eq. 1.
    """
    eps = require_instance_norm_modulate(x, gamma, beta, residual, eps)
    if dispatch.native(x, gamma, beta, residual):
        return torch.ops.hida.instance_norm_modulate(x, gamma, beta, residual, eps)[0]
    return instance_norm_modulate_reference(x, gamma, beta, residual, eps)


def instance_norm_modulate_reference(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Compute :func:`instance_norm_modulate` with plain PyTorch."""
    dtype = checks.accumulation_dtype(x, gamma, beta, residual)
    value = x.to(dtype)
    centred = value - value.mean((2, 3), keepdim=True)
    scale = torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + eps)
    result = (1 + gamma.to(dtype)) * (centred * scale) + beta.to(dtype)
    if residual is not None:
        result = result + residual.to(dtype)
    return result.to(x.dtype)


def require_instance_norm_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float, name: str = "x"
) -> float:
    """Check the arguments of :func:`instance_norm_modulate`, whose caller calls the first ``name``; return ``eps``."""
    checks.require_image(name, x)
    checks.require_shape("gamma", gamma, checks.shape(x))
    checks.require_shape("beta", beta, checks.shape(x))
    if residual is not None:
        checks.require_shape("residual", residual, checks.shape(x))
    checks.require_device(name, x, gamma=gamma, beta=beta, residual=residual)
    return checks.require_eps(eps)


def _fake(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = library.partial_sums(x, gamma, beta, residual)
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _fake_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, wanted: int
) -> tuple[Tensor, ...]:
    made = (torch.empty_like(x), library.gradient_like(gamma, x))
    return tuple(t if wanted >> i & 1 else x.new_empty(0) for i, t in enumerate(made))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gamma, beta, residual, ctx.eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # for these two zeros would be written
    ctx.save_for_backward(x, gamma, mean, rstd)
    ctx.dtypes = beta.dtype, None if residual is None else residual.dtype


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    x, gamma, mean, rstd = ctx.saved_tensors
    needs_x, needs_gamma, needs_beta, needs_residual, _ = ctx.needs_input_grad
    if torch.is_grad_enabled() or library.transformed(grad):

        def function(x: Tensor, gamma: Tensor) -> Tensor:  # neither β nor the residual shapes these gradients
            return instance_norm_modulate_reference(x, gamma, torch.zeros_like(gamma), None, ctx.eps)

        dx, dgamma = library.differentiable_gradients(function, (x, gamma), (needs_x, needs_gamma), grad)
    else:
        needed = needs_x, needs_gamma
        grad = laid_out_for_kernels(grad, x)
        made = torch.ops.hida.instance_norm_modulate_backward(grad, x, gamma, mean, rstd, library.wanted(needed))
        dx, dgamma = (g if need else None for g, need in zip(made, needed, strict=True))
    to_beta, to_residual = ctx.dtypes
    return (
        dx,
        dgamma,
        grad.to(to_beta) if needs_beta else None,
        grad.to(to_residual) if needs_residual else None,
        None,
    )


if library.loaded:
    torch.library.register_fake("hida::instance_norm_modulate", _fake)
    torch.library.register_fake("hida::instance_norm_modulate_backward", _fake_backward)
    torch.library.register_autograd("hida::instance_norm_modulate", _backward, setup_context=_setup)
