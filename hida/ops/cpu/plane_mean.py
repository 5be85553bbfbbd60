"""The mean of each plane: metaACON's global average pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hida.ops import dispatch, library
from hida.ops.cpu.layout import channels_last_on_cpu


def plane_mean(x: Tensor) -> Tensor:
    """Average (N, C, H, W) over H×W: (N, C, 1, 1), in the dtype of ``x``."""
    if channels_last_on_cpu(x) and dispatch.native(x):
        mean = torch.ops.hida.plane_sums(x) / (x.shape[2] * x.shape[3])
        return mean.to(x.dtype)[:, :, None, None]
    differentiated = x.requires_grad and torch.is_grad_enabled()
    if differentiated and x.device.type == "cuda" and not (torch.compiler.is_compiling() or library.transformed(x)):
        return Mean.apply(x)
    return x.mean((2, 3), keepdim=True)


class Mean(torch.autograd.Function):
    """torch's mean, whose gradient would be written out, as large as ``x``, only to be added to another."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape)


def _fake(x: Tensor) -> Tensor:
    return library.partial_sums(x)


def _setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    (x,) = inputs
    ctx.shape, ctx.dtype = x.shape, x.dtype


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    # Expanded and never written out: what it is added to has the right memory layout.
    return grad.to(ctx.dtype)[:, :, None, None].expand(ctx.shape)


if library.loaded:
    torch.library.register_fake("hida::plane_sums", _fake)
    torch.library.register_autograd("hida::plane_sums", _backward, setup_context=_setup)
