"""Modulated deformable convolution (DCNv1 and DCNv2)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec

import torch
from torch import Tensor

from hida.ops import checks, dispatch, library

Size2 = int | tuple[int, int]
Arguments = ParamSpec("Arguments")


def _also_called_input(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Let the first argument be named ``input``, too, as torchvision names it."""

    @functools.wraps(function)
    def named(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        if "input" in kwargs and "x" not in kwargs:
            kwargs["x"] = kwargs.pop("input")
        return function(*args, **kwargs)

    return named


@_also_called_input
def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 = 0,
    dilation: Size2 = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve ``x`` at sampling points that ``offset`` moves and ``mask`` weighs.

    For tap k of kernel position (i, j), deformable group g and output pixel (r, c) the input is read at::

        row = r·stride − padding + i·dilation + offset[n, 2·(g·K + k),     r, c]
        col = c·stride − padding + j·dilation + offset[n, 2·(g·K + k) + 1, r, c]

    bilinearly, with zeros outside the image, times ``mask[n, g·K + k, r, c]``. The number of groups of the
    convolution is C_in / weight.shape[1], that of deformable groups offset.shape[1] / (2·K): signature,
    layout and results are those of ``torchvision.ops.deform_conv2d``. A sampling point that is NaN or
    infinite reads zero.

    Args:
        x: (N, C_in, H, W), any floating dtype; ``input`` is the same argument.
        offset: (N, 2·G·kh·kw, H_out, W_out), in input pixels, (row, column) interleaved.
        weight: (C_out, C_in / groups, kh, kw).
        bias: (C_out,) or None.
        stride, padding, dilation: an int or (vertical, horizontal).
        mask: (N, G·kh·kw, H_out, W_out) or None for ones.

    Returns:
        (N, C_out, H_out, W_out) in the dtype of ``x``.

    Raises:
        OpError: if a shape, dtype, device or parameter does not fit.
        RuntimeError: on a second derivative through the native kernels, which have none.

    Source: Zhu et al., "Deformable ConvNets v2", CVPR 2019, Eq. 1.
    """
    geometry = require_deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)
    if dispatch.native(x, offset, weight, bias, mask):
        return torch.ops.hida.deform_conv2d(x, offset, weight, bias, *geometry, mask)
    return deform_conv2d_reference(x, offset, weight, bias, *geometry, mask)


def deform_conv2d_reference(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    """Compute :func:`deform_conv2d` with plain PyTorch: gather the columns, then one matrix product per group."""
    dtype = checks.accumulation_dtype(x, offset, weight, bias, mask)
    n, c_in, _, _ = x.shape
    c_out, c_group, kh, kw = weight.shape
    h_out, w_out = offset.shape[2:]
    groups, taps = c_in // c_group, kh * kw
    deformable = offset.shape[1] // (2 * taps)
    rows, columns = _sampling_points(offset.to(dtype), (kh, kw), stride, padding, dilation)
    sampled = _bilinear(x.to(dtype), rows, columns)  # N, C_in, K, H_out, W_out
    if mask is not None:
        weights = mask.to(dtype).reshape(n, deformable, 1, taps, h_out, w_out)
        sampled = sampled.reshape(n, deformable, c_in // deformable, taps, h_out, w_out) * weights
    matrix = weight.to(dtype).reshape(groups, c_out // groups, c_group * taps)
    result = matrix @ sampled.reshape(n, groups, c_group * taps, h_out * w_out)
    result = result.reshape(n, c_out, h_out, w_out)
    if bias is not None:
        result = result + bias.to(dtype).reshape(1, -1, 1, 1)
    return result.to(x.dtype)


def _sampling_points(
    offset: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the rows and columns to sample, each (N, G, K, H_out, W_out)."""
    n, channels, h_out, w_out = offset.shape
    kh, kw = kernel

    def count(length: int) -> Tensor:
        return torch.arange(length, device=offset.device, dtype=offset.dtype)

    rows = count(h_out)[:, None] * stride[0] - padding[0]
    columns = count(w_out)[None, :] * stride[1] - padding[1]
    tap_rows = (count(kh) * dilation[0]).repeat_interleave(kw)[:, None, None]
    tap_columns = (count(kw) * dilation[1]).repeat(kh)[:, None, None]
    moved = offset.reshape(n, channels // (2 * kh * kw), kh * kw, 2, h_out, w_out)
    return moved[:, :, :, 0] + (rows + tap_rows), moved[:, :, :, 1] + (columns + tap_columns)


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sample ``x`` (N, C, H, W) at points (N, G, K, H_out, W_out): (N, C, K, H_out, W_out), zero outside."""
    n, c, height, width = x.shape
    groups, taps, h_out, w_out = rows.shape[1:]
    # Anything this far out contributes nothing, and stays representable as an index.
    rows = torch.nan_to_num(rows, nan=-2.0, posinf=-2.0, neginf=-2.0).clamp(-2, height + 1)
    columns = torch.nan_to_num(columns, nan=-2.0, posinf=-2.0, neginf=-2.0).clamp(-2, width + 1)
    top, left = rows.floor(), columns.floor()
    # Fractions and not distances: at a point on the grid |·| has no slope, but the sampled value has one.
    vertical, horizontal = rows - top, columns - left
    pixels = x.reshape(n, groups, c // groups, height * width)
    result = x.new_zeros(())
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            share = (vertical if down else 1 - vertical) * (horizontal if right else 1 - horizontal)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            index, inside, share = (t.reshape(n, groups, 1, taps * h_out * w_out) for t in (index, inside, share))
            # Masked as values: a share of zero would not keep out a pixel that is NaN.
            values = pixels.gather(3, index.expand(-1, -1, pixels.shape[2], -1))
            result = result + torch.where(inside, values, 0) * share
    return result.reshape(n, c, taps, h_out, w_out)


def require_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size2,
    padding: Size2,
    dilation: Size2,
    mask: Tensor | None,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Check the arguments of :func:`deform_conv2d`; return stride, padding and dilation as pairs."""
    checks.require_image("x", x)
    checks.require_image("weight", weight)
    steps = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    n, c_in, *size = x.shape
    c_out, c_group, *kernel = weight.shape
    # One comparison for each dimension: a minimum of symbols would tie the size of an exported graph to the channels.
    if any(length == 0 for length in (c_in, *size)):
        raise checks.OpError(f"x must have no empty dimension behind the first; its shape is {tuple(x.shape)}.")
    if min(c_group, *kernel) == 0:
        raise checks.OpError(
            f"weight must have no empty dimension behind the first; its shape is {tuple(weight.shape)}."
        )
    if c_in % c_group or c_out % (c_in // c_group):
        raise checks.OpError(
            f"weight of shape {tuple(weight.shape)} does not divide x's {c_in} channels into groups: "
            "weight.shape[1] must divide them, and their quotient must divide weight.shape[0]."
        )
    out = [
        (length + 2 * pad - gap * (side - 1) - 1) // step + 1
        for length, side, step, pad, gap in zip(size, kernel, *steps, strict=True)
    ]
    if any(length < 1 for length in out):
        raise checks.OpError(f"x of {size[0]}×{size[1]} pixels is smaller than the kernel's extent; enlarge it or pad.")
    taps = kernel[0] * kernel[1]
    checks.require_image("offset", offset)
    groups = offset.shape[1] // (2 * taps)
    if offset.shape[1] % (2 * taps) or groups == 0 or c_in % groups:
        raise checks.OpError(
            f"offset must have 2·G·{kernel[0]}·{kernel[1]} channels with G dividing x's {c_in} channels; "
            f"it has {offset.shape[1]}."
        )
    checks.require_shape("offset", offset, (n, 2 * groups * taps, *out))
    if mask is not None:
        checks.require_shape("mask", mask, (n, groups * taps, *out))
    if bias is not None:
        checks.require_shape("bias", bias, (c_out,))
    checks.require_device("x", x, offset=offset, weight=weight, bias=bias, mask=mask)
    return steps


def _pair(name: str, value: Size2, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) == 2 and all(isinstance(item, int) and not isinstance(item, bool) and item >= least for item in pair):
        return pair
    try:  # integers of other kinds, as NumPy's, and arrays of them
        given: Any = value
        several = getattr(given, "ndim", 0) > 0
        items = list(given if several else pair)
        numbers = [] if any(isinstance(item, bool) for item in items) else [operator.index(item) for item in items]
    except TypeError:
        numbers = []
    if len(numbers) != 2 or min(numbers) < least:
        raise checks.OpError(f"{name} must be an int ≥ {least} or a pair of them; it is {value!r}.")
    return numbers[0], numbers[1]


def _fake(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    mask: Tensor | None,
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *offset.shape[2:]))


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    mask: Tensor | None,
    wanted: int,
) -> tuple[Tensor, ...]:
    wide = checks.accumulation_dtype(x, offset, weight, mask)
    made = (
        torch.empty_like(x),
        torch.empty_like(offset),
        weight.new_empty(weight.shape, dtype=wide),
        None if mask is None else torch.empty_like(mask),
    )
    return tuple(x.new_empty(0) if t is None or not wanted >> i & 1 else t for i, t in enumerate(made))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, weight, bias, ctx.stride, ctx.padding, ctx.dilation, mask = inputs
    ctx.save_for_backward(x, offset, weight, mask)
    ctx.bias_dtypes = None if bias is None else (checks.accumulation_dtype(x, offset, weight, bias, mask), bias.dtype)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, offset, weight, mask = ctx.saved_tensors
    needs_x, needs_offset, needs_weight, needs_bias, _, _, _, needs_mask = ctx.needs_input_grad
    needed = needs_x, needs_offset, needs_weight, needs_mask
    given: Sequence[Tensor | None] = (None,) * 4
    if library.transformed(grad):

        def function(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
            return deform_conv2d_reference(x, offset, weight, None, ctx.stride, ctx.padding, ctx.dilation, mask)

        operands = ctx.saved_tensors if mask is not None else ctx.saved_tensors[:3]
        given = [*library.differentiable_gradients(function, operands, needed[: len(operands)], grad), None][:4]
    elif any(needed):
        given = torch.ops.hida.deform_conv2d_backward(
            grad, x, offset, weight, ctx.stride, ctx.padding, ctx.dilation, mask, library.wanted(needed)
        )
    dx, doffset, dweight, dmask = (g if need else None for g, need in zip(given, needed, strict=True))
    dbias = None
    if needs_bias:
        computed, given_as = ctx.bias_dtypes
        dbias = grad.sum((0, 2, 3), dtype=computed).to(given_as)
    if dweight is not None:
        dweight = dweight.to(weight.dtype)
    return dx, doffset, dweight, dbias, None, None, None, dmask


def _no_second_derivative(ctx: Any, *_: Tensor) -> NoReturn:
    raise RuntimeError(
        "hida.ops.deform_conv2d has no second derivative in its native kernels; "
        'differentiate twice under hida.ops.backend("reference").'
    )


if library.loaded:
    torch.library.register_fake("hida::deform_conv2d", _fake)
    torch.library.register_fake("hida::deform_conv2d_backward", _fake_backward)
    torch.library.register_autograd("hida::deform_conv2d", _backward, setup_context=_setup)
    torch.library.register_autograd("hida::deform_conv2d_backward", _no_second_derivative)
