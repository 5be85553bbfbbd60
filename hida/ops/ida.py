"""The decoder block's whole adaptation in one pass: InfoACON, instance norm, DySPADE modulation, residual."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hida.ops import checks, dispatch, library
from hida.ops.info_acon import fake_logits_gradient, info_acon_reference, require_info_acon
from hida.ops.instance_norm_modulate import instance_norm_modulate_reference, require_instance_norm_modulate
from hida.ops.layout import laid_out_for_kernels

Residual = Literal["activated", "input", "none"]
_NUMBERS: dict[Residual, int] = {"none": 0, "activated": 1, "input": 2}  # as the operator takes them


def ida(
    h: Tensor,
    logits: Tensor,
    gamma: Tensor,
    beta: Tensor,
    p1: Tensor,
    p2: Tensor,
    residual: Residual = "activated",
    eps: float = 1e-5,
) -> Tensor:
    """Activate, normalise and modulate a decoder's feature map (informative dynamic adaptation).

    ::

        f = info_acon(h, logits, p1, p2)
        k = (1 + γ)·(f − μ)/√(var + eps) + β + r,   μ and var of f per (n, c) over H×W
        r = f ("activated", the released code), h ("input", the paper's Eq. 4) or 0 ("none")

    Args:
        h: (N, C, H, W), any floating dtype.
        logits: (N, C, H, W), or one of the smaller shapes that :func:`hida.ops.info_acon` takes.
        gamma, beta: (N, C, H, W); with ``logits`` they may be channel slices of one 3C-channel tensor.
        p1, p2: (1, C, 1, 1).
        residual: ``"activated"``, ``"input"`` or ``"none"``.
        eps: added to the variance, > 0.

    Returns:
        (N, C, H, W) in the dtype of ``h``; computed in float32 (float64 for float64 input) without
        rounding ``f`` in between.

    Raises:
        OpError: if a shape, dtype or device does not fit, or ``residual`` is unknown, or ``eps`` not a positive number.

    Source: HIDA (ICCV 2023), Eq. 1–4.
    """
    require_info_acon(h, logits, p1, p2, "h")
    eps = require_instance_norm_modulate(h, gamma, beta, None, eps, "h")
    if residual not in get_args(Residual):
        raise checks.OpError(f"residual must be one of {', '.join(get_args(Residual))}; it is {residual!r}.")
    if dispatch.native(h, logits, gamma, beta, p1, p2):
        return torch.ops.hida.ida(h, logits, gamma, beta, p1, p2, _NUMBERS[residual], eps)[0]
    return ida_reference(h, logits, gamma, beta, p1, p2, residual, eps)


def ida_reference(
    h: Tensor,
    logits: Tensor,
    gamma: Tensor,
    beta: Tensor,
    p1: Tensor,
    p2: Tensor,
    residual: Residual = "activated",
    eps: float = 1e-5,
) -> Tensor:
    """Compute :func:`ida` with plain PyTorch."""
    dtype = checks.accumulation_dtype(h, logits, gamma, beta, p1, p2)
    value = h.to(dtype)
    activated = info_acon_reference(value, logits, p1, p2)
    added = {"activated": activated, "input": value, "none": None}[residual]
    return instance_norm_modulate_reference(activated, gamma, beta, added, eps).to(h.dtype)


def _fake(
    h: Tensor, logits: Tensor, gamma: Tensor, beta: Tensor, p1: Tensor, p2: Tensor, residual: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = library.partial_sums(h, logits, gamma, beta, p1, p2)
    return torch.empty_like(h), mean, torch.empty_like(mean)


def _fake_backward(
    grad: Tensor,
    h: Tensor,
    logits: Tensor,
    gamma: Tensor,
    p1: Tensor,
    p2: Tensor,
    mean: Tensor,
    rstd: Tensor,
    residual: int,
    wanted: int,
) -> tuple[Tensor, ...]:
    whole = fake_logits_gradient(h, logits, mean)
    made = (torch.empty_like(h), whole, library.gradient_like(gamma, h), torch.empty_like(mean), torch.empty_like(mean))
    return tuple(t if wanted >> i & 1 else h.new_empty(0) for i, t in enumerate(made))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    h, logits, gamma, beta, p1, p2, ctx.residual, ctx.eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # for these two zeros would be written
    ctx.save_for_backward(h, logits, gamma, p1, p2, mean, rstd)  # β is not needed: its gradient is the upstream one
    ctx.beta_dtype = beta.dtype


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    h, logits, gamma, p1, p2, mean, rstd = ctx.saved_tensors
    needs_h, needs_logits, needs_gamma, needs_beta, needs_p1, needs_p2, _, _ = ctx.needs_input_grad
    needed = needs_h, needs_logits, needs_gamma, needs_p1, needs_p2
    if torch.is_grad_enabled() or library.transformed(grad):
        name = next(name for name, number in _NUMBERS.items() if number == ctx.residual)

        def function(h: Tensor, logits: Tensor, gamma: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
            return ida_reference(h, logits, gamma, torch.zeros_like(gamma), p1, p2, name, ctx.eps)

        found = library.differentiable_gradients(function, (h, logits, gamma, p1, p2), needed, grad)
    else:
        grad = laid_out_for_kernels(grad, h)
        made = torch.ops.hida.ida_backward(
            grad, h, logits, gamma, p1, p2, mean, rstd, ctx.residual, library.wanted(needed)
        )
        operands = h, logits, gamma, p1, p2
        found = [library.sum_to(g, t) if need else None for g, t, need in zip(made, operands, needed, strict=True)]
    dh, dlogits, dgamma, dp1, dp2 = found
    return dh, dlogits, dgamma, grad.to(ctx.beta_dtype) if needs_beta else None, dp1, dp2, None, None


if library.loaded:
    torch.library.register_fake("hida::ida", _fake)
    torch.library.register_fake("hida::ida_backward", _fake_backward)
    torch.library.register_autograd("hida::ida", _backward, setup_context=_setup)
