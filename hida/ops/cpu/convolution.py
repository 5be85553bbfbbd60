"""Ordinary convolutions in kernels of our own (CPU, float32): those of few pixels, which are bound by reading their
weights, and by minimal filtering (Winograd) those of many, which take 36 products there instead of 100 to 144."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hida.ops import dispatch, library
from hida.ops.cpu import conv_to_one
from hida.ops.cpu.layout import channels_last_on_cpu
from hida.ops.sizes import known

FEW = 256
"""pixels of the whole batch up to which the kernels for few pixels are the faster ones"""
LEAST = 16
"""input channels from which minimal filtering pays"""


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Compute ``torch.nn.functional.conv2d``, by a native kernel where one is faster (CPU, float32).

    That of many pixels rounds about five times as coarsely as a direct sum does (1.5e-6 of the result, 256 channels).

    Args:
        x: (N, C_in, H, W).
        weight: (C_out, C_in, kh, kw).
        bias: (C_out,) or None.
        stride, padding: (vertical, horizontal).

    Returns:
        (N, C_out, H_out, W_out).
    """
    if library.transformed(x, weight, bias):
        return functional.conv2d(x, weight, bias, stride, padding)
    if (stride, padding) == ((1, 1), (2, 2)) and conv_to_one.fits(x, weight, transposed=False):
        return conv_to_one.to_one(x, weight, bias, transposed=False)
    pixels = x.shape[0]
    for size, kernel, step, pad in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True):
        pixels = pixels * ((size + 2 * pad - kernel) // step + 1)
    three = (*weight.shape[2:], *stride, *padding) == (3, 3, 1, 1, 1, 1)
    filtered = three and weight.shape[1] >= LEAST and x.is_contiguous()
    # A graph for any size takes what is right for any.
    if (filtered or known(pixels <= FEW)) and _native(x, weight, bias):
        return torch.ops.hida.conv2d(x.contiguous(), weight.contiguous(), bias, stride, padding)
    return functional.conv2d(x, weight, bias, stride, padding)


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``torch.nn.functional.conv_transpose2d`` for 4×4 kernels, stride 2, padding 1: twice the size.

    Args:
        x: (N, C_in, H, W).
        weight: (C_in, C_out, 4, 4).
        bias: (C_out,) or None.

    Returns:
        (N, C_out, 2H, 2W), by native kernels on a CPU in float32.
    """
    if library.transformed(x, weight, bias):
        return functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    if conv_to_one.fits(x, weight, transposed=True):
        return conv_to_one.to_one(x, weight, bias, transposed=True)
    if (
        bias is not None
        and bias.requires_grad
        and torch.is_grad_enabled()
        and channels_last_on_cpu(x)
        and dispatch.native(x, weight, bias)
    ):
        if torch.is_autocast_enabled("cpu"):
            x, weight, bias = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, weight, bias))
        with torch.autocast("cpu", enabled=False):
            return _Doubling.apply(x, weight, bias)
    few = x.shape[0] * x.shape[2] * x.shape[3] <= FEW
    if (known(few) or x.is_contiguous()) and _native(x, weight, bias):
        return torch.ops.hida.conv_transpose2d(x.contiguous(), weight.contiguous(), bias)
    return functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)


class _Doubling(torch.autograd.Function):
    """torch's transposed convolution, but for the bias's gradient, which costs it as much as the weight's."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad = grad.contiguous(memory_format=torch.channels_last)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            grad, *ctx.saved_tensors, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, [needs_x, needs_weight, False]
        )
        if not needs_bias or library.transformed(grad):
            return dx, dweight, grad.sum((0, 2, 3)) if needs_bias else None
        return dx, dweight, torch.ops.hida.plane_sums(grad).sum(0).to(grad.dtype)


def _native(*tensors: Tensor | None) -> bool:
    given = [t for t in tensors if t is not None]
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in given)
    return plain and library.loaded and dispatch.selected() == "native" and not torch.is_autocast_enabled("cpu")


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    return x.new_empty((x.shape[0], weight.shape[0], *((s + 2 * p - k) // step + 1 for s, k, step, p in sizes)))


def _fake_transpose(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.shape = inputs  # stride and padding, where they may differ
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _gradients(ctx: Any, grad: Tensor, stride: list[int], padding: list[int], transposed: bool) -> list[Tensor | None]:
    x, weight = ctx.saved_tensors
    needed = [*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2]]
    bias_size = [weight.shape[1 if transposed else 0]] if ctx.biased else None
    return list(
        torch.ops.aten.convolution_backward(
            grad, x, weight, bias_size, stride, padding, [1, 1], transposed, [0, 0], 1, needed
        )
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    stride, padding = ctx.shape
    return (*_gradients(ctx, grad, list(stride), list(padding), False), None, None)


def _backward_transpose(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(_gradients(ctx, grad, [2, 2], [1, 1], True))


if library.loaded:
    torch.library.register_fake("hida::conv2d", _fake)
    torch.library.register_fake("hida::conv_transpose2d", _fake_transpose)
    torch.library.register_autograd("hida::conv2d", _backward, setup_context=_setup)
    torch.library.register_autograd("hida::conv_transpose2d", _backward_transpose, setup_context=_setup)
