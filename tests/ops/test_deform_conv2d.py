"""deform_conv2d against a naive loop in Python floats, and against torchvision where it is installed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from hida.ops import OpError, deform_conv2d

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}

# channels in, out, groups, deformable groups, kernel, stride, padding, dilation
GEOMETRIES = {
    "plain": (2, 3, 1, 1, (3, 3), 1, 1, 1),
    "groups": (4, 6, 2, 2, (3, 3), 1, 1, 1),
    "more deformable groups than groups": (4, 2, 1, 4, (2, 2), 1, 0, 1),
    "depthwise": (4, 4, 4, 2, (3, 3), 2, 1, 1),
    "pairs": (2, 2, 1, 1, (3, 2), (2, 1), (1, 2), (1, 2)),
    "pointwise": (2, 3, 1, 2, (1, 1), 1, 0, 1),
    "dilated beyond the image": (2, 2, 1, 1, (3, 3), 1, 4, 4),
}


def pair(value):
    return (value, value) if isinstance(value, int) else value


def arguments(geometry="plain", dtype=torch.float64, batch=2, size=(5, 6), spread=1.5):
    """Random x, offset, weight, bias and mask, and the keywords of the geometry."""
    c_in, c_out, groups, deformable, kernel, stride, padding, dilation = GEOMETRIES[geometry]
    generator = torch.Generator().manual_seed(4)
    out = [
        (length + 2 * pad - gap * (side - 1) - 1) // step + 1
        for length, pad, gap, side, step in zip(size, pair(padding), pair(dilation), kernel, pair(stride), strict=True)
    ]
    taps = kernel[0] * kernel[1]
    shapes = {
        "x": (batch, c_in, *size),
        "offset": (batch, 2 * deformable * taps, *out),
        "weight": (c_out, c_in // groups, *kernel),
        "bias": (c_out,),
        "mask": (batch, deformable * taps, *out),
    }
    given = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }
    given["offset"] *= spread
    return {**given, "stride": stride, "padding": padding, "dilation": dilation}


def read(plane, row, column):
    """Bilinear value at a point of a plane that is zero outside."""
    if not (math.isfinite(row) and math.isfinite(column)):
        return 0.0
    height, width = len(plane), len(plane[0])
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                total += plane[i][j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def by_hand(x, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None):
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    x, offset, weight = x.tolist(), offset.double(), weight.double()
    c_out, c_group, kh, kw = weight.shape
    n, channels, h_out, w_out = offset.shape
    c_in = len(x[0])
    per_group, per_deformable = c_out // (c_in // c_group), c_in // (channels // (2 * kh * kw))
    result = torch.zeros(n, c_out, h_out, w_out, dtype=torch.float64)
    for b in range(n):
        for r in range(h_out):
            for c in range(w_out):
                columns = torch.zeros(c_in, kh, kw, dtype=torch.float64)
                for channel in range(c_in):
                    for i in range(kh):
                        for j in range(kw):
                            k = channel // per_deformable * kh * kw + i * kw + j
                            row = r * stride[0] - padding[0] + i * dilation[0] + float(offset[b, 2 * k, r, c])
                            column = c * stride[1] - padding[1] + j * dilation[1] + float(offset[b, 2 * k + 1, r, c])
                            weighed = 1.0 if mask is None else float(mask[b, k, r, c])
                            columns[channel, i, j] = weighed * read(x[b][channel], row, column)
                for o in range(c_out):
                    first = o // per_group * c_group
                    result[b, o, r, c] = (weight[o] * columns[first : first + c_group]).sum()
    return result if bias is None else result + bias.double()[None, :, None, None]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_naive_loop_in_every_geometry(geometry):
    given = arguments(geometry)
    torch.testing.assert_close(deform_conv2d(**given), by_hand(**given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(dtype):
    given = arguments("groups", dtype, batch=1)
    y = deform_conv2d(**given)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), by_hand(**given), rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_results_and_gradients_of_torchvision(geometry):
    oracle = pytest.importorskip("torchvision").ops.deform_conv2d
    given = arguments(geometry)
    given["offset"][:, ::3] = given["offset"][:, ::3].round()  # points on the grid, where floor has its step
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    ours = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    y, expected = deform_conv2d(**{**given, **ours}), _torchvision(oracle, {**given, **theirs})
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y.backward(upstream)
    expected.backward(upstream)
    for name in tensors:
        torch.testing.assert_close(
            ours[name].grad, theirs[name].grad, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def _torchvision(oracle, given):
    given = dict(given)
    return oracle(given.pop("x"), given.pop("offset"), given.pop("weight"), **given)


def test_without_offsets_it_is_an_ordinary_convolution():
    given = arguments("plain")
    mask = torch.full_like(given["mask"], 0.5)
    y = deform_conv2d(given["x"], torch.zeros_like(given["offset"]), given["weight"], given["bias"], 1, 1, 1, mask)
    torch.testing.assert_close(y, functional.conv2d(given["x"], given["weight"] / 2, given["bias"], padding=1))


def test_a_whole_offset_shifts_the_image():
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    offset = torch.tensor([1.0, -2.0], dtype=torch.float64).reshape(1, 2, 1, 1).expand(1, 2, 6, 7)
    y = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1, dtype=torch.float64))
    expected = torch.zeros_like(x)
    expected[:, :, :-1, 2:] = x[:, :, 1:, :-2]
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_the_slope_at_a_point_on_the_grid_is_that_of_the_cell_behind_it():
    # The sampled value is continuous there but bent; floor picks the cell to the right, as torchvision does.
    x = torch.tensor([1.0, 4.0, 9.0, 16.0]).double().reshape(1, 1, 2, 2)
    offset = torch.zeros(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    deform_conv2d(x, offset, torch.ones(1, 1, 1, 1, dtype=torch.float64)).sum().backward()
    down, right = offset.grad[0]
    torch.testing.assert_close(down, torch.tensor([[8.0, 12.0], [-9.0, -16.0]]).double())
    torch.testing.assert_close(right, torch.tensor([[3.0, -4.0], [7.0, -16.0]]).double())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("geometry", ["groups", "pairs"])
def test_derivatives(geometry, masked):
    given = arguments(geometry, batch=1, size=(2, 3))
    # Finite differences need points away from the grid, where the slope jumps.
    given["offset"] = given["offset"].floor() + 0.25 + 0.5 * torch.rand_like(given["offset"])
    names = ("x", "offset", "weight", "bias", *(("mask",) if masked else ()))
    given["mask"] = given["mask"] if masked else None
    inputs = [given[name].requires_grad_() for name in names]
    fixed = {name: given[name] for name in ("stride", "padding", "dilation")}
    assert torch.autograd.gradcheck(
        lambda *values: deform_conv2d(**dict(zip(names, values, strict=True)), **fixed), inputs
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_wild_offsets_read_zero(value, dtype):
    given = arguments("plain", dtype, batch=1)
    wild = torch.tensor(value).to(dtype)  # float16 makes infinities of the largest
    given["offset"][:, 3, 2, 2] = wild
    given["offset"][:, 10] = wild
    expected = by_hand(**given)
    given = {name: v.requires_grad_() if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    y = deform_conv2d(**given)
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=2e-2)
    y.sum().backward()
    assert all(v.grad.isfinite().all() for v in given.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize(
    ("point", "share"), [(-1.0, 0.0), (-0.75, 0.25), (3.0, 1.0), (3.75, 0.25), (4.0, 0.0), (5.0, 0.0)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_border_fades_to_zero_over_one_pixel(point, share, axis):
    x = torch.ones(1, 1, 4, 4)
    offset = torch.zeros(1, 2, 4, 4)
    offset[0, axis] = point - torch.arange(4.0).reshape((4, 1) if axis == 0 else (1, 4))
    y = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(y, torch.full_like(y, share))


def test_a_pixel_that_is_not_read_does_no_harm():
    x = torch.ones(1, 1, 4, 4)
    x[0, 0, 0, 0] = float("nan")  # the corner that points outside would be clamped to
    offset = torch.full((1, 2, 4, 4), -9.0)
    assert (deform_conv2d(x, offset, torch.ones(1, 1, 1, 1)) == 0).all()


def test_layouts_and_slices_do_not_matter():
    given = arguments("groups")
    expected = deform_conv2d(**given)
    joint = torch.cat((given["offset"], given["mask"]), 1)
    split = joint.split((given["offset"].shape[1], given["mask"].shape[1]), 1)
    torch.testing.assert_close(deform_conv2d(**{**given, "offset": split[0], "mask": split[1]}), expected)
    last = {
        n: v.to(memory_format=torch.channels_last) for n, v in given.items() if n in ("x", "offset", "weight", "mask")
    }
    torch.testing.assert_close(deform_conv2d(**{**given, **last}), expected)


def test_an_empty_batch():
    given = arguments("groups", batch=0)
    given["weight"].requires_grad_()
    y = deform_conv2d(**given)
    assert y.shape == (0, 6, 5, 6)
    y.sum().backward()
    assert (given["weight"].grad == 0).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.ones(2, 5, 6)),
        ("x", torch.ones(2, 2, 5, 6, dtype=torch.int8)),
        ("x", torch.ones(2, 2, 0, 6)),
        ("weight", torch.ones(3, 2, 3)),
        ("weight", torch.ones(3, 3, 3, 3)),
        ("weight", torch.ones(3, 0, 3, 3)),
        ("weight", torch.ones(3, 1, 3, 3)),
        ("weight", torch.ones(3, 2, 3, 3, device="meta")),
        ("offset", torch.ones(2, 17, 5, 6)),
        ("offset", torch.ones(2, 18, 5, 5)),
        ("offset", torch.ones(2, 0, 5, 6)),
        ("offset", torch.ones(2, 54, 5, 6)),
        ("mask", torch.ones(2, 18, 5, 6)),
        ("mask", torch.ones(2, 9, 5, 6, device="meta")),
        ("bias", torch.ones(2)),
        ("stride", 0),
        ("stride", 1.5),
        ("stride", (1, 2, 3)),
        ("padding", -1),
        ("dilation", (1, 0)),
        ("dilation", None),
    ],
)
def test_a_wrong_argument_is_named(name, value):
    given = arguments("plain", torch.float32)
    with pytest.raises(OpError, match=rf"^{name} "):
        deform_conv2d(**{**given, name: value})


def test_an_image_smaller_than_the_kernel_is_refused():
    given = arguments("plain", torch.float32)
    with pytest.raises(OpError, match="smaller than the kernel"):
        deform_conv2d(given["x"][:, :, :2], given["offset"], given["weight"])


@pytest.mark.slow
def test_compiles_as_one_graph():
    given = arguments("groups", torch.float32)
    compiled = torch.compile(deform_conv2d, fullgraph=True)
    torch.testing.assert_close(compiled(**given), deform_conv2d(**given), rtol=1e-4, atol=1e-4)
