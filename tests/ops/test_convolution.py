"""Convolutions of few pixels, and of many by minimal filtering, against torch's, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional
from tracing import IMAGES, compiles_once, exports

from hida import ops
from hida.nn import Conv2d, Upsample
from hida.ops import library
from hida.ops.cpu.convolution import conv2d, conv_transpose2d

pytestmark = pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")
# N, C_in, H, W, C_out, kernel, stride, padding
FORWARD = [
    *[(1, 24, 8, 8, 50, 3, 1, 1), (1, 40, 16, 16, 24, 4, 2, 1), (3, 7, 4, 4, 5, 3, 1, 1), (1, 9, 2, 2, 33, 4, 2, 1)],
    *[(2, 3, 5, 7, 11, 3, 2, 0), (1, 1, 1, 1, 1, 1, 1, 0), (1, 20, 16, 16, 61, 3, 1, 1), (3, 5, 9, 7, 50, 3, 1, 1)],
    # by minimal filtering
    *[(1, 16, 32, 32, 40, 3, 1, 1), (2, 37, 21, 34, 13, 3, 1, 1), (3, 17, 1, 150, 5, 3, 1, 1)],
    *[(1, 300, 12, 11, 25, 3, 1, 1), (5, 64, 65, 31, 3, 3, 1, 1)],
]
# N, C_in, H, W, C_out
DOUBLED = [
    *[(1, 40, 4, 4, 70), (1, 33, 8, 8, 130), (3, 5, 3, 5, 2), (2, 6, 1, 1, 7), (1, 30, 16, 16, 35), (3, 5, 9, 7, 18)],
    *[(1, 12, 32, 16, 1), (2, 5, 19, 48, 1)],
    # by minimal filtering
    *[(1, 24, 32, 32, 9), (2, 7, 19, 23, 5), (3, 33, 1, 100, 4), (1, 130, 17, 16, 1)],
]


def results(x, weight, bias, steps):
    """Return what is tested and torch's in float64; ``steps``: stride and padding, or none for a doubling."""
    with ops.backend("native"):
        found = conv2d(x, weight, bias, *((s, s) for s in steps)) if steps else conv_transpose2d(x, weight, bias)
    call = functional.conv2d if steps else functional.conv_transpose2d
    given = (t if t is None else t.double() for t in (x, weight, bias))
    return found.double(), call(*given, *(steps or (2, 1)))


@pytest.mark.parametrize("case", [*FORWARD, *DOUBLED], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_they_agree_with_double_precision(case, biased):
    n, c_in, h, w, c_out, *kernel = case
    torch.manual_seed(0)
    shape = (c_out, c_in, kernel[0], kernel[0]) if kernel else (c_in, c_out, 4, 4)
    x, weight, bias = torch.randn(n, c_in, h, w), torch.randn(shape), torch.randn(c_out) if biased else None
    found, exact = results(x, weight, bias, kernel[1:])
    torch.testing.assert_close(found / c_in, exact / c_in, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_torch():
    torch.manual_seed(0)
    for module, side in itertools.product((Conv2d(6, 10, 3, padding=1), Upsample(6, 10)), (4, 20)):
        x, found = torch.randn(2, 6, side, side), []
        for name in ("native", "reference"):
            given = x.clone().requires_grad_()
            with ops.backend(name):
                y = module(given)
            found.append(torch.autograd.grad(y.square().sum(), (given, module.weight, module.bias)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_another_layout_goes_through_too():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 4, 4).to(memory_format=torch.channels_last)
    layer = Conv2d(6, 8, 3, padding=1).to(memory_format=torch.channels_last)
    with ops.backend("native"):
        y = layer(x)
    torch.testing.assert_close(y, functional.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-5, atol=1e-5)


def test_operators_are_registered_well():
    kernel, doubling, bias = (torch.randn(s).requires_grad_() for s in ((6, 4, 3, 3), (4, 6, 4, 4), (6,)))
    for x in (torch.randn(1, 4, 4, 4).requires_grad_(), torch.randn(1, 4, 20, 20).requires_grad_()):
        torch.library.opcheck(torch.ops.hida.conv2d, (x, kernel, bias, [1, 1], [1, 1]))
        torch.library.opcheck(torch.ops.hida.conv_transpose2d, (x, doubling, bias))


@pytest.mark.parametrize(("mean", "shape", "steps"), [(3, (48, 256, 3, 3), (1, 1)), (0, (256, 12, 4, 4), ())])
def test_minimal_filtering_rounds_as_it_says(mean, shape, steps):
    torch.manual_seed(0)
    found, exact = results(torch.randn(1, 256, 40, 40) + mean, torch.randn(shape), None, steps)
    assert float((found - exact).norm() / exact.norm()) < 4e-6


def test_what_is_not_finite_stays_near():
    """A NaN reaches the tiles that see it, and no others: no lane or block leaks into another."""
    x, weight = torch.randn(1, 16, 40, 40), torch.randn(8, 16, 3, 3)
    x[0, 3, 20, 21] = float("nan")
    with ops.backend("native"):
        seen = conv2d(x, weight, None, (1, 1), (1, 1)).isnan().any(1)[0]
    assert seen[19:22, 20:23].all()
    assert seen.sum() <= 64


@pytest.mark.parametrize("side", [4, 20, 32])
def test_no_input_channels_leave_the_bias(side):
    bias = torch.randn(3)
    y = torch.ops.hida.conv_transpose2d(torch.randn(2, 0, side, side), torch.randn(0, 3, 4, 4), bias)
    assert torch.equal(y, bias.view(1, 3, 1, 1).expand(2, 3, 2 * side, 2 * side))


def test_misuse_names_the_argument():
    e, x = torch.ops.hida, torch.randn(1, 4, 4, 4)
    with pytest.raises(RuntimeError, match="weight must have shape"):
        e.conv2d(x, torch.randn(6, 3, 3, 3), None, [1, 1], [1, 1])
    with pytest.raises(RuntimeError, match="bias must have shape"):
        e.conv_transpose2d(x, torch.randn(4, 6, 4, 4), torch.randn(5))
    with pytest.raises(RuntimeError, match="at most 256"):
        e.conv2d(torch.randn(1, 4, 32, 32), torch.randn(6, 4, 3, 3), None, [1, 1], [0, 0])
    with pytest.raises(RuntimeError, match="float32"):
        e.conv_transpose2d(x.double(), torch.randn(4, 6, 4, 4), None)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(6, 20, 3, padding=1),
        Conv2d(20, 5, 3, padding=1),
        Conv2d(6, 1, 4, padding=2),
        Upsample(6, 5),
        Upsample(6, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_an_export_is_bound_to_no_number_of_pixels(layer, layout, strict):
    def made(n, h, w):
        return (torch.randn(n, layer.in_channels, h, w).to(memory_format=layout),)

    # 64 and fewer, and more than 256 pixels in the batch, whichever was traced.
    for sizes in ([(5, 7, 9), (1, 1, 1), (2, 17, 3), (8, 40, 33)], [(2, 3, 4), (7, 20, 30)]):
        with ops.backend("native"):
            exports(layer.to(memory_format=layout), made, (IMAGES,), sizes, strict)


@pytest.mark.slow
def test_a_convolution_is_compiled_once_for_few_pixels_and_many():
    for layer in (Conv2d(6, 20, 4, stride=2, padding=1), Upsample(6, 5)):
        with ops.backend("native"):
            compiles_once(
                layer, lambda *size: (torch.randn(size[0], 6, *size[1:]),), [(2, 4, 8), (3, 40, 30), (5, 8, 9)]
            )
