"""info_acon against its formula written out pixel by pixel in Python floats."""

from __future__ import annotations

import math

import pytest
import torch

from hida.ops import OpError, info_acon

SHAPES = {"pixel and channel": (2, 3, 4, 5), "pixel": (2, 1, 4, 5), "channel": (2, 3, 1, 1), "shared": (1, 3, 1, 1)}
TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def arguments(logits_shape=(2, 3, 4, 5), dtype=torch.float64, x_shape=(2, 3, 4, 5)):
    generator = torch.Generator().manual_seed(1)
    shapes = (x_shape, logits_shape, (1, x_shape[1], 1, 1), (1, x_shape[1], 1, 1))
    return [(2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_hand(x, logits, p1, p2):
    x, logits, p1, p2 = (t.double() for t in (x, logits, p1, p2))
    logits = logits.expand(x.shape)
    result = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    value, slope = float(x[n, c, i, j]), float(p1[0, c, 0, 0]) - float(p2[0, c, 0, 0])
                    switch = sigmoid(sigmoid(float(logits[n, c, i, j])) * slope * value)
                    result[n, c, i, j] = slope * value * switch + float(p2[0, c, 0, 0]) * value
    return result


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_formula_in_every_shape_and_dtype(shape, dtype):
    inputs = arguments(shape, dtype)
    y = info_acon(*inputs)
    assert y.dtype == dtype
    # Half precisions may round once, at the end: half a unit in the last place of the exact result.
    torch.testing.assert_close(y.double(), by_hand(*inputs), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 10)


def test_slopes_are_subtracted_in_the_accumulation_dtype():
    # In bfloat16 p1 − p2 would round to 256; the exact difference is 255.5.
    x, logits = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 40.0)
    y = info_acon(x, logits, torch.full((1, 1, 1, 1), 256.0).bfloat16(), torch.full((1, 1, 1, 1), 0.5).bfloat16())
    assert y.item() == 256.0


def test_limits_are_the_two_slopes():
    p1, p2 = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 0.5)
    x = torch.tensor([1e4, -1e4]).reshape(1, 1, 1, 2)
    y = info_acon(x, torch.zeros(1, 1, 1, 1), p1, p2)
    torch.testing.assert_close(y.flatten(), torch.tensor([3e4, -5e3]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_first_and_second_derivatives(shape):
    x_shape = (2, 3, 2, 2)
    shape = tuple(x_shape[k] if size > 1 else 1 for k, size in enumerate(shape))
    inputs = [t.requires_grad_() for t in arguments(shape, x_shape=x_shape)]
    assert torch.autograd.gradcheck(info_acon, inputs)
    assert torch.autograd.gradgradcheck(info_acon, inputs)


def test_only_the_gradients_asked_for():
    x, logits, p1, p2 = arguments((2, 3, 4, 5))
    p1.requires_grad_()
    info_acon(x, logits, p1, p2).sum().backward()
    assert p1.grad is not None
    assert x.grad is None
    assert logits.grad is None


def test_layouts_and_slices_do_not_matter():
    x, logits, p1, p2 = arguments()
    expected = info_acon(x, logits, p1, p2)
    wide = torch.cat((logits, x, logits), 1)
    sliced = info_acon(wide[:, 3:6], wide[:, 6:], p1, p2)
    last = info_acon(x.to(memory_format=torch.channels_last), logits.to(memory_format=torch.channels_last), p1, p2)
    torch.testing.assert_close(sliced, expected, rtol=0, atol=0)
    # Another loop, in which other products and sums are one rounding.
    torch.testing.assert_close(last, expected, rtol=1e-14, atol=1e-14)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (1, 1, 1, 1), (2, 3, 0, 5)])
def test_empty_and_smallest_shapes(shape):
    x, logits, p1, p2 = arguments(shape, x_shape=shape)
    x.requires_grad_()
    y = info_acon(x, logits, p1, p2)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape


def test_not_a_number_stays_where_it_is():
    x, logits, p1, p2 = arguments()
    clean = info_acon(x, logits, p1, p2)
    x[0, 0, 0, 0] = float("nan")
    y = info_acon(x, logits, p1, p2)
    assert y.isnan().sum() == 1
    torch.testing.assert_close(y.flatten()[1:], clean.flatten()[1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.ones(3, 4, 5)),
        ("x", torch.ones(2, 3, 4, 5, dtype=torch.int32)),
        ("x", [[1.0]]),
        ("logits", torch.ones(2, 3, 4, 4)),
        ("logits", torch.ones(1, 1, 4, 5)),
        ("logits", torch.ones(2, 3, 4, 5, dtype=torch.int64)),
        ("logits", torch.ones(2, 3, 4, 5, device="meta")),
        ("p1", torch.ones(3)),
        ("p2", torch.ones(1, 4, 1, 1)),
        ("p2", torch.ones(1, 3, 1, 1, device="meta")),
    ],
)
def test_a_wrong_argument_is_named(name, value):
    given = dict(zip(("x", "logits", "p1", "p2"), arguments(dtype=torch.float32), strict=True))
    with pytest.raises(OpError, match=rf"^{name} (must|is on)"):
        info_acon(**{**given, name: value})


@pytest.mark.slow
def test_compiles_as_one_graph():
    inputs = arguments(dtype=torch.float32)
    compiled = torch.compile(info_acon, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), info_acon(*inputs))
