"""Ordinary convolutions that are bound by reading their weights, as HIDA's innermost levels are on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hida.ops import dispatch, library

FEW = 256
"""pixels of the whole batch up to which the kernels for few pixels are the faster ones"""


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Compute ``torch.nn.functional.conv2d``, by the native kernel where output pixels are few (CPU, float32).

    x: (N, C_in, H, W); weight: (C_out, C_in, kh, kw) → (N, C_out, H_out, W_out).
    """
    pixels = x.shape[0]
    for size, kernel, step, pad in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True):
        pixels = pixels * ((size + 2 * pad - kernel) // step + 1)
    three = tuple(weight.shape[2:]) == (3, 3) and tuple(stride) == (1, 1) and tuple(padding) == (1, 1)
    if (pixels <= FEW or three) and _native(x, weight, bias):
        return torch.ops.hida.conv2d(x.contiguous(), weight.contiguous(), bias, stride, padding)
    return functional.conv2d(x, weight, bias, stride, padding)


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``torch.nn.functional.conv_transpose2d`` for 4×4 kernels, stride 2, padding 1: twice the size.

    x: (N, C_in, H, W); weight: (C_in, C_out, 4, 4) → (N, C_out, 2H, 2W). The native kernel (CPU, float32) runs
    where pixels are few, or one output channel is wanted from rows of a multiple of 16 pixels.
    """
    n, _, height, width = x.shape
    few = n * height * width <= FEW or (weight.shape[1] == 1 and width % 16 == 0)
    if few and _native(x, weight, bias):
        return torch.ops.hida.conv_transpose2d(x.contiguous(), weight.contiguous(), bias)
    return functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)


def _native(*tensors: Tensor | None) -> bool:
    given = [t for t in tensors if t is not None]
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in given)
    return plain and library.loaded and dispatch.selected() == "native" and not torch.is_autocast_enabled("cpu")


def _fake(x, weight, bias, stride, padding) -> Tensor:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    return x.new_empty((x.shape[0], weight.shape[0], *((s + 2 * p - k) // step + 1 for s, k, step, p in sizes)))


def _fake_transpose(x, weight, bias) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3]))


def _setup(ctx, inputs, output) -> None:
    x, weight, bias, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _setup_transpose(ctx, inputs, output) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _gradients(ctx, grad: Tensor, stride: list[int], padding: list[int], transposed: bool) -> list[Tensor | None]:
    x, weight = ctx.saved_tensors
    needed = [*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2]]
    bias_size = [weight.shape[1 if transposed else 0]] if ctx.biased else None
    return list(
        torch.ops.aten.convolution_backward(
            grad, x, weight, bias_size, stride, padding, [1, 1], transposed, [0, 0], 1, needed
        )
    )


def _backward(ctx, grad: Tensor):
    return (*_gradients(ctx, grad, list(ctx.stride), list(ctx.padding), False), None, None)


def _backward_transpose(ctx, grad: Tensor):
    return tuple(_gradients(ctx, grad, [2, 2], [1, 1], True))


if library.loaded:
    torch.library.register_fake("hida::conv2d", _fake)
    torch.library.register_fake("hida::conv_transpose2d", _fake_transpose)
    torch.library.register_autograd("hida::conv2d", _backward, setup_context=_setup)
    torch.library.register_autograd("hida::conv_transpose2d", _backward_transpose, setup_context=_setup_transpose)
