"""Convolutions of few pixels, and of many by minimal filtering, against torch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hida import ops
from hida.nn import Conv2d, Upsample
from hida.ops import library
from hida.ops.cpu.convolution import conv2d, conv_transpose2d

native = pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")
FORWARD = [  # N, C_in, H, W, C_out, kernel, stride, padding
    (1, 24, 8, 8, 50, 3, 1, 1),
    (1, 40, 16, 16, 24, 4, 2, 1),
    (3, 7, 4, 4, 5, 3, 1, 1),
    (1, 9, 2, 2, 33, 4, 2, 1),
    (2, 3, 5, 7, 11, 3, 2, 0),
    (1, 1, 1, 1, 1, 1, 1, 0),
    (1, 20, 16, 16, 61, 3, 1, 1),
    (3, 5, 9, 7, 50, 3, 1, 1),
    # by minimal filtering
    (1, 16, 32, 32, 40, 3, 1, 1),
    (2, 37, 21, 34, 13, 3, 1, 1),
    (3, 17, 1, 150, 5, 3, 1, 1),
    (1, 300, 12, 11, 25, 3, 1, 1),
    (5, 64, 65, 31, 3, 3, 1, 1),
]
DOUBLED = [  # N, C_in, H, W, C_out
    (1, 40, 4, 4, 70),
    (1, 33, 8, 8, 130),
    (3, 5, 3, 5, 2),
    (2, 6, 1, 1, 7),
    (1, 30, 16, 16, 35),
    (3, 5, 9, 7, 18),
    (1, 12, 32, 16, 1),
    (2, 5, 19, 48, 1),
    # by minimal filtering
    (1, 24, 32, 32, 9),
    (2, 7, 19, 23, 5),
    (3, 33, 1, 100, 4),
    (1, 130, 17, 16, 1),
]


def _close(found, exact):
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@native
@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.parametrize("biased", [True, False])
def test_convolutions_agree_with_double_precision(case, biased):
    n, c_in, h, w, c_out, kernel, stride, padding = case
    torch.manual_seed(0)
    x, weight = torch.randn(n, c_in, h, w), torch.randn(c_out, c_in, kernel, kernel)
    bias = torch.randn(c_out) if biased else None
    with ops.backend("native"):
        found = conv2d(x, weight, bias, (stride, stride), (padding, padding))
    exact = functional.conv2d(x.double(), weight.double(), bias.double() if biased else None, stride, padding)
    _close(found / c_in, exact / c_in)


@native
@pytest.mark.parametrize("case", DOUBLED)
@pytest.mark.parametrize("biased", [True, False])
def test_doubling_agrees_with_double_precision(case, biased):
    n, c_in, h, w, c_out = case
    torch.manual_seed(0)
    x, weight = torch.randn(n, c_in, h, w), torch.randn(c_in, c_out, 4, 4)
    bias = torch.randn(c_out) if biased else None
    with ops.backend("native"):
        found = conv_transpose2d(x, weight, bias)
    exact = functional.conv_transpose2d(x.double(), weight.double(), bias.double() if biased else None, 2, 1)
    _close(found / c_in, exact / c_in)


@native
def test_gradients_are_those_of_torch():
    torch.manual_seed(0)
    cases = (
        (Conv2d(6, 10, 3, padding=1), 4),
        (Upsample(6, 10), 4),
        (Conv2d(6, 10, 3, padding=1), 20),
        (Upsample(6, 10), 20),
    )
    for module, side in cases:
        x, found = torch.randn(2, 6, side, side), []
        for name in ("native", "reference"):
            given = x.clone().requires_grad_()
            with ops.backend(name):
                y = module(given)
            found.append(torch.autograd.grad(y.square().sum(), (given, module.weight, module.bias)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@native
def test_layouts_and_many_pixels_go_through_too():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 4, 4).to(memory_format=torch.channels_last)
    layer = Conv2d(6, 8, 3, padding=1).to(memory_format=torch.channels_last)
    large = torch.randn(1, 6, 32, 32)
    with ops.backend("native"):
        small_y, large_y = layer(x), layer(large)
    torch.testing.assert_close(small_y, functional.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(large_y, functional.conv2d(large, layer.weight, layer.bias, padding=1))


@native
def test_operators_are_registered_well():
    x, weight, bias = torch.randn(1, 4, 4, 4), torch.randn(6, 4, 3, 3), torch.randn(6)
    torch.library.opcheck(torch.ops.hida.conv2d, (x, weight, bias, [1, 1], [1, 1]))
    torch.library.opcheck(torch.ops.hida.conv_transpose2d, (x, torch.randn(4, 6, 4, 4), bias))
    wide = torch.randn(1, 4, 20, 20)
    torch.library.opcheck(torch.ops.hida.conv2d, (wide, weight, bias, [1, 1], [1, 1]))
    torch.library.opcheck(torch.ops.hida.conv_transpose2d, (wide, torch.randn(4, 6, 4, 4), bias))


@native
def test_minimal_filtering_rounds_as_it_says():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 40, 40) + 3, torch.randn(48, 256, 3, 3)
    with ops.backend("native"):
        found = conv2d(x, weight, None, (1, 1), (1, 1)).double()
    exact = functional.conv2d(x.double(), weight.double(), None, 1, 1)
    assert float((found - exact).norm() / exact.norm()) < 4e-6
    x, weight = torch.randn(1, 256, 40, 40), torch.randn(256, 12, 4, 4)
    with ops.backend("native"):
        found = conv_transpose2d(x, weight, None).double()
    exact = functional.conv_transpose2d(x.double(), weight.double(), None, 2, 1)
    assert float((found - exact).norm() / exact.norm()) < 4e-6


@native
def test_what_is_not_finite_stays_near():
    """A NaN reaches the tiles that see it, and no others: no lane or block leaks into another."""
    x, weight = torch.randn(1, 16, 40, 40), torch.randn(8, 16, 3, 3)
    x[0, 3, 20, 21] = float("nan")
    with ops.backend("native"):
        seen = conv2d(x, weight, None, (1, 1), (1, 1)).isnan().any(1)[0]
    assert seen[19:22, 20:23].all()
    assert seen.sum() <= 64


@native
@pytest.mark.parametrize("side", [4, 20, 32])
def test_no_input_channels_leave_the_bias(side):
    bias = torch.randn(3)
    y = torch.ops.hida.conv_transpose2d(torch.randn(2, 0, side, side), torch.randn(0, 3, 4, 4), bias)
    assert torch.equal(y, bias.view(1, 3, 1, 1).expand(2, 3, 2 * side, 2 * side))


@native
def test_misuse_names_the_argument():
    x = torch.randn(1, 4, 4, 4)
    with pytest.raises(RuntimeError, match="weight must have shape"):
        torch.ops.hida.conv2d(x, torch.randn(6, 3, 3, 3), None, [1, 1], [1, 1])
    with pytest.raises(RuntimeError, match="bias must have shape"):
        torch.ops.hida.conv_transpose2d(x, torch.randn(4, 6, 4, 4), torch.randn(5))
    with pytest.raises(RuntimeError, match="at most 256"):
        torch.ops.hida.conv2d(torch.randn(1, 4, 32, 32), torch.randn(6, 4, 3, 3), None, [1, 1], [0, 0])
    with pytest.raises(RuntimeError, match="float32"):
        torch.ops.hida.conv_transpose2d(x.double(), torch.randn(4, 6, 4, 4), None)
