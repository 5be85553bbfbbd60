"""The ops as their contract has them, for float64: the oracle of every back end, which knows nothing of hida."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

EPS = 1e-5
logistic = torch.sigmoid


@contextlib.contextmanager
def chips_own() -> Iterator[None]:
    """Let the logistic function err as 1/(1 + 2^x) of a GPU's own instructions may (PTX ISA: ex2.approx, rcp.approx).

    2^x is wrong by 2⁻²² of itself, 1/x by 2⁻²³: together by 2⁻²²·(1 − σ) + 2⁻²³ of σ at most, here by a random share.
    """
    global logistic
    generators = {}

    def wrong(z: Tensor) -> Tensor:
        generator = generators.setdefault(z.device, torch.Generator(z.device).manual_seed(1))
        share = 2 * torch.rand(z.shape, dtype=z.dtype, device=z.device, generator=generator) - 1
        exact = torch.sigmoid(z)
        return exact * (1 + share * (2**-22 * (1 - exact) + 2**-23))

    logistic = wrong
    try:
        yield
    finally:
        logistic = torch.sigmoid


def info_acon(x, logits, p1, p2) -> Tensor:
    return (p1 - p2) * x * logistic(logistic(logits) * (p1 - p2) * x) + p2 * x


def instance_norm_modulate(x, gamma, beta, residual=None, eps=EPS) -> Tensor:
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    y = (1 + gamma) * (x - mean) / torch.sqrt(variance + eps) + beta
    return y if residual is None else y + residual


def ida(h, logits, gamma, beta, p1, p2, residual="activated", eps=EPS) -> Tensor:
    f = info_acon(h, logits, p1, p2)
    return instance_norm_modulate(f, gamma, beta, {"activated": f, "input": h, "none": None}[residual], eps)


def deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask=None) -> Tensor:
    """Each tap's samples are products with two matrices of weights, one for the rows and one for the columns."""
    n, c, height, width = x.shape
    c_out, per_group, kh, kw = weight.shape
    h_out, w_out = offset.shape[2:]
    taps, groups = kh * kw, c // per_group
    deformable = offset.shape[1] // (2 * taps)
    points = offset.reshape(n, deformable, taps, 2, h_out, w_out)
    planes = x.reshape(n, deformable, c // deformable, height, width)
    rows = torch.arange(h_out, device=x.device)[:, None] * stride[0] - padding[0]
    columns = torch.arange(w_out, device=x.device) * stride[1] - padding[1]
    y = x.new_zeros(n, groups, c_out // groups, h_out, w_out)
    for tap in range(taps):
        i, j = divmod(tap, kw)
        vertical = bilinear_weights(points[:, :, tap, 0] + rows + i * dilation[0], height)
        horizontal = bilinear_weights(points[:, :, tap, 1] + columns + j * dilation[1], width)
        sampled = torch.einsum("ngrsh,ngrsw,ngchw->ngcrs", vertical, horizontal, planes)
        if mask is not None:
            sampled = sampled * mask.reshape(n, deformable, 1, taps, h_out, w_out)[:, :, :, tap]
        sampled = sampled.reshape(n, groups, per_group, h_out, w_out)
        kernel = weight.reshape(groups, c_out // groups, per_group, taps)[..., tap]
        y = y + torch.einsum("ngcrs,gkc->ngkrs", sampled, kernel)
    y = y.reshape(n, c_out, h_out, w_out)
    return y if bias is None else y + bias[:, None, None]


def bilinear_weights(position, size) -> Tensor:
    """Return what each of ``size`` pixels contributes at a position; nothing if that is not finite.

    The slope at a pixel itself is that of the cell behind it.
    """
    position = torch.where(position.isfinite(), position, -2.0)
    ahead = position[..., None] - torch.arange(size, device=position.device)
    before, behind = (ahead >= -1) & (ahead < 0), (ahead >= 0) & (ahead < 1)
    return torch.where(before, 1 + ahead, torch.where(behind, 1 - ahead, 0.0))
