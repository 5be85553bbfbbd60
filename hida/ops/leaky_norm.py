"""Instance normalisation between two leaky ReLUs: what is between two convolutions of a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hida.ops import checks, dispatch, library
from hida.ops.layout import channels_last
from hida.ops.sizes import known


def leaky_norm(x: Tensor, before: float = 1.0, after: float = 1.0, eps: float = 1e-5) -> Tensor:
    """Normalise each (n, c) plane of the leaky ReLU of ``x``, and take the leaky ReLU of that.

    ::

        l(x, slope) = x where x > 0, else slope·x
        f = l(x, before);   y = l((f − μ)/√(var + eps), after),   μ and (biased) var of f per (n, c) over H×W

    The native kernels take NHWC tensors (``channels_last``), see :func:`fits`; everything else is PyTorch's.

    Args:
        x: (N, C, H, W), any floating dtype.
        before, after: the slopes; 1 is no activation.
        eps: added to the variance.

    Returns:
        (N, C, H, W) in the dtype of ``x``; the native kernel computes in float32 (float64 for float64 input).
    """
    if fits(x) and dispatch.native(x):
        return torch.ops.hida.leaky_norm(x, before, after, eps)[0]
    return leaky_norm_reference(x, before, after, eps)


def fits(x: Tensor) -> bool:
    """Say whether there are native kernels for ``x``: on a GPU, for eight channels at a time and images below 2 GiB."""
    if x.device.type not in ("cpu", "cuda") or not channels_last(x):
        return False
    if x.device.type == "cpu":
        return True
    _, c, h, w = x.shape
    too_large = (h * w + 1) * c * x.element_size() >= 1 << 31
    return x.dtype != torch.float64 and c % 8 == 0 and not known(too_large)


def leaky_norm_reference(x: Tensor, before: float, after: float, eps: float) -> Tensor:
    """Compute :func:`leaky_norm` with plain PyTorch."""
    if before != 1:
        x = functional.leaky_relu(x, before)
    x = _instance_norm(x, eps)
    return functional.leaky_relu(x, after) if after != 1 else x


def _instance_norm(x: Tensor, eps: float) -> Tensor:
    # PyTorch's refuses planes of one pixel, a condition that a traced graph would keep; and for one image and an
    # upstream gradient in channels_last its gradient is wrong on a CPU (2.13, 2.14).
    if not (torch.compiler.is_compiling() or x.shape[2] * x.shape[3] == 1 or _lone_and_differentiated(x)):
        return functional.instance_norm(x, eps=eps)
    value = x.to(checks.accumulation_dtype(x))
    centred = value - value.mean((2, 3), keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + eps)).to(x.dtype)


def _lone_and_differentiated(x: Tensor) -> bool:
    return x.shape[0] == 1 and x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled()


def _fake(x: Tensor, before: float, after: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = library.partial_sums(x)
    return library.gradient_like(x, x), mean, torch.empty_like(mean)


def _fake_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, before: float, after: float) -> Tensor:
    return library.gradient_like(x, x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, ctx.before, ctx.after, ctx.eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # for these two zeros would be written
    ctx.save_for_backward(x, mean, rstd)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    x, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled() or library.transformed(grad):
        found = library.differentiable_gradients(
            lambda x: leaky_norm_reference(x, ctx.before, ctx.after, ctx.eps), (x,), (True,), grad
        )
        return found[0], None, None, None
    return torch.ops.hida.leaky_norm_backward(grad, x, mean, rstd, ctx.before, ctx.after), None, None, None


if library.loaded:
    torch.library.register_fake("hida::leaky_norm", _fake)
    torch.library.register_fake("hida::leaky_norm_backward", _fake_backward)
    torch.library.register_autograd("hida::leaky_norm", _backward, setup_context=_setup)
