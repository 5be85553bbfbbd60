"""The oracle itself, against loops over single numbers."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from checking import function
from operands import NAMES, SWITCHED, adaptation, deformation


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_hand(name, tensors, eps):
    """The formulas of Eq. 2-4, one plane and pixel after the other."""
    x, logits, p1, p2 = (tensors[0], tensors[1], *tensors[-2:]) if name in SWITCHED else (tensors[0], None, None, None)
    gamma, beta = tensors[2:4] if name.startswith("ida") else (tensors[1:3] if name != "info_acon" else (None, None))
    result = torch.empty_like(x)
    for n, c in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        f = [float(value) for value in x[n, c].flatten()]
        if logits is not None:
            one, two = float(p1[0, c, 0, 0]), float(p2[0, c, 0, 0])
            switches = logits.expand(x.shape)[n, c].flatten().tolist()
            f = [
                (one - two) * v * sigmoid(sigmoid(s) * (one - two) * v) + two * v
                for v, s in zip(f, switches, strict=True)
            ]
        if gamma is not None:
            mean = math.fsum(f) / len(f)
            spread = math.sqrt(math.fsum((v - mean) ** 2 for v in f) / len(f) + eps)
            added = {"with residual": tensors[-1], "ida input": x}.get(name)
            added = (
                f if name == "ida activated" else [0.0] * len(f) if added is None else added[n, c].flatten().tolist()
            )
            scales, shifts = gamma[n, c].flatten().tolist(), beta[n, c].flatten().tolist()
            f = [(1 + g) * (v - mean) / spread + b + r for v, g, b, r in zip(f, scales, shifts, added, strict=True)]
        result[n, c] = torch.tensor(f, dtype=x.dtype).reshape(x.shape[2:])
    return result


@pytest.mark.parametrize("logits", [None, (2, 1, 4, 5), (2, 3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_the_formulas_pixel_by_pixel(name, logits):
    tensors = adaptation(name, (2, 3, 4, 5), logits, dtype=torch.float64)
    for eps in (1e-5, 0.3):
        options = {} if name == "info_acon" else {"eps": eps}
        y = function(oracle, name, **options)(*tensors)
        torch.testing.assert_close(y, by_hand(name, tensors, eps), rtol=1e-13, atol=1e-13)


def sampled(plane, row, column):
    """The bilinear value at a point of a plane that is zero outside."""
    height, width = plane.shape
    return sum(
        (1 - abs(row - a)) * (1 - abs(column - b)) * float(plane[a, b])
        for a in (math.floor(row), math.floor(row) + 1)
        for b in (math.floor(column), math.floor(column) + 1)
        if 0 <= a < height and 0 <= b < width
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "case", ["groups", "more deformable groups than groups", "pairs", "depthwise, stride", "one pixel"]
)
def test_deform_conv2d_point_by_point(case, masked):
    (x, offset, weight, bias, mask), (stride, padding, dilation) = deformation(case, torch.float64, masked, batch=1)
    c_out, per_group, kh, kw = weight.shape
    c_in, taps = x.shape[1], kh * kw
    per_deformable, per_output = c_in // (offset.shape[1] // (2 * taps)), c_out // (c_in // per_group)
    y = bias[:, None, None] + torch.zeros(c_out, *offset.shape[2:], dtype=torch.float64)
    sizes = (c_in, taps, *offset.shape[2:])
    for channel, tap, r, c in torch.cartesian_prod(*map(torch.arange, sizes)).tolist():
        k = channel // per_deformable * taps + tap
        row = r * stride[0] - padding[0] + tap // kw * dilation[0] + float(offset[0, 2 * k, r, c])
        column = c * stride[1] - padding[1] + tap % kw * dilation[1] + float(offset[0, 2 * k + 1, r, c])
        value = sampled(x[0, channel], row, column) * (float(mask[0, k, r, c]) if masked else 1)
        first = channel // per_group * per_output
        kernel = weight[first : first + per_output, channel % per_group, tap // kw, tap % kw]
        y[first : first + per_output, r, c] += kernel * value
    found = oracle.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)
    torch.testing.assert_close(found[0], y, rtol=1e-12, atol=1e-12)


def test_deform_conv2d_reads_nothing_at_points_that_are_not_finite():
    for value in (math.nan, math.inf, -math.inf):
        (x, offset, weight, bias, mask), steps = deformation("plain", torch.float64)
        mask[:, 1], offset[:, 2] = 0, value  # of the second tap: its row
        found = oracle.deform_conv2d(x, offset, weight, bias, *steps, torch.ones_like(mask))
        offset[:, 2] = 0
        mask[:] = 1
        mask[:, 1] = 0
        assert torch.equal(found, oracle.deform_conv2d(x, offset, weight, bias, *steps, mask))
