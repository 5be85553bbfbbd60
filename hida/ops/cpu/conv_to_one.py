"""Convolutions 4×4 to one channel, of NHWC tensors on a CPU: heads, and a discriminator's last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hida.ops import dispatch, library
from hida.ops.cpu.layout import channels_last_on_cpu
from hida.ops.sizes import known

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(x: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Say whether :func:`to_one` takes these: weight (C, 1, 4, 4) transposed, else (1, C, 4, 4)."""
    one = weight.shape[1 if transposed else 0] == 1 and tuple(weight.shape[2:]) == (4, 4)
    plain = x.dtype in DTYPES and weight.dtype == torch.float32
    return one and plain and channels_last_on_cpu(x) and not known(x.numel() == 0) and dispatch.native(x)


def to_one(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """Convolve (N, C, H, W) to one channel: stride 1 and padding 2, or transposed, stride 2 and padding 1.

    The result, (N, 1, H + 1, W + 1) or (N, 1, 2H, 2W), is in the dtype of ``x``, or of an autocast region; it is
    computed in float32 from float32 weights, which are not rounded.
    """
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    return torch.ops.hida.to_one(x, weight.reshape(-1, 16).contiguous(), bias, transposed)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    n, _, h, w = x.shape
    return x.new_empty((n, 1, 2 * h, 2 * w) if transposed else (n, 1, h + 1, w + 1))


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, transposed: bool, wanted: int) -> tuple[Tensor, Tensor]:
    parts = x.shape[0] * ((x.shape[2] + 7) // 8)
    dx = torch.empty_like(x) if wanted & 1 else x.new_empty(0)
    return dx, x.new_empty((parts, x.shape[1], 16) if wanted & 2 else (0,), dtype=torch.float32 if wanted & 2 else None)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.transposed = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    dbias = grad.float().sum((0, 2, 3)) if ctx.biased and needs_bias else None
    if torch.is_grad_enabled() or library.transformed(grad):
        dx, dweight = library.differentiable_gradients(
            lambda x, weight: _reference(x, weight, ctx.transposed), (x, weight), (needs_x, needs_weight), grad
        )
        return dx, dweight, dbias, None
    dx, parts = torch.ops.hida.to_one_backward(grad, x, weight, ctx.transposed, needs_x + 2 * needs_weight)
    return dx if needs_x else None, parts.sum(0) if needs_weight else None, dbias, None


def _reference(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    x, channels = x.to(weight.dtype), x.shape[1]
    if transposed:
        return functional.conv_transpose2d(x, weight.view(channels, 1, 4, 4), stride=2, padding=1)
    return functional.conv2d(x, weight.view(1, channels, 4, 4), padding=2)


if library.loaded:
    torch.library.register_fake("hida::to_one", _fake)
    torch.library.register_fake("hida::to_one_backward", _fake_backward)
    torch.library.register_autograd("hida::to_one", _backward, setup_context=_setup)
