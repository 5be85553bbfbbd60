"""The CUDA deform_conv2d, emulated, against the definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from operands import deformation, relative_error, upstream_of

from hida.ops.deform_conv2d import deform_conv2d_reference

NAMES = ("x", "offset", "weight", "mask")
LIMITS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}

# batch, C_in, C_out, height, width, kernel, groups, deformable groups, stride, padding, dilation
CASES = {
    "2² map of 40 channels": (5, 40, 30, 2, 2, (3, 3), 1, 2, 1, 1, 1),
    "4² map": (2, 72, 70, 4, 4, (3, 3), 1, 2, 1, 1, 1),
    "more than a tile": (2, 35, 26, 9, 11, (3, 3), 1, 1, 1, 1, 1),
    "tiles across images": (7, 20, 9, 3, 5, (3, 3), 1, 1, 1, 1, 1),
    "several tiles of channels": (1, 144, 130, 6, 7, (1, 2), 1, 1, 1, 0, 1),
    "groups across deformable groups": (2, 36, 12, 5, 6, (3, 3), 2, 3, 1, 1, 1),
    "depthwise": (2, 6, 6, 5, 4, (3, 3), 6, 2, 1, 1, 1),
    "batch 33, steps": (33, 6, 4, 7, 6, (3, 2), 2, 1, (2, 1), (1, 2), (1, 2)),
    "batch 37": (37, 3, 5, 2, 3, (2, 2), 1, 1, 1, 1, 1),
    "tall tiles": (3, 100, 70, 13, 14, (2, 2), 1, 1, 1, 1, 1),
    "whole units": (2, 32, 24, 5, 6, (3, 3), 1, 2, 1, 1, 1),
    "one pixel": (2, 17, 5, 1, 1, (1, 1), 1, 1, 1, 0, 1),
}
SMALL = ("4² map", "groups across deformable groups")


pytestmark = pytest.mark.usefixtures("emulated")


@pytest.fixture(params=["tiny", "large"])
def path(request, monkeypatch):
    monkeypatch.setenv("HIDA_DEFORM_PATH", request.param)
    return request.param


def arguments(case, dtype=torch.float32, masked=True, batch=None):
    geometry = CASES[case]
    return deformation(geometry, dtype, masked, batch, spread=0.3 if geometry[3] == 1 else 1.5, seed=3)


def found(tensors, steps, wanted=15, upstream=None):
    """The emulated operators' y and gradients of x, offset, weight and mask."""
    x, offset, weight, bias, mask = tensors
    y = torch.ops.hida_emulation.deform_conv2d(x, offset, weight, bias, *steps, mask)
    upstream = upstream_of(y) if upstream is None else upstream
    gradients = torch.ops.hida_emulation.deform_conv2d_backward(upstream, x, offset, weight, *steps, mask, wanted)
    return [y, *gradients]


def expected(tensors, steps, upstream=None):
    x, offset, weight, bias, mask = (None if t is None else t.double().requires_grad_() for t in tensors)
    y = deform_conv2d_reference(x, offset, weight, bias, *steps, mask)
    upstream = upstream_of(y.to(tensors[0].dtype)) if upstream is None else upstream
    given = [t for t in (x, offset, weight, mask) if t is not None]
    return [y.detach(), *torch.autograd.grad(y, given, upstream.double())]


def assert_near(results, references, limit):
    for name, a, b in zip(("y", *NAMES), results, references, strict=False):
        assert a.shape == b.shape, name
        error = relative_error(a, b)
        assert error <= limit, f"{name}: relative error {error:.2e}"


def assert_same(results, others):
    for name, a, b in zip(("y", *NAMES), results, others, strict=True):
        assert torch.equal(a, b), name


def by_definition(x, offset, weight, bias, stride, padding, dilation, mask):
    """Eq. 1 of the paper, one sampling point after the other."""
    c_out, per_group, kh, kw = weight.shape
    n, c_in, height, width = x.shape
    groups, taps = c_in // per_group, kh * kw
    deformable = offset.shape[1] // (2 * taps)
    y = torch.zeros(n, c_out, *offset.shape[2:], dtype=torch.float64) + bias.double()[:, None, None]
    for i, g, tap, r, c in torch.cartesian_prod(
        *(torch.arange(k) for k in (n, deformable, taps, *offset.shape[2:]))
    ).tolist():
        k = g * taps + tap
        row = r * stride[0] - padding[0] + tap // kw * dilation[0] + float(offset[i, 2 * k, r, c])
        column = c * stride[1] - padding[1] + tap % kw * dilation[1] + float(offset[i, 2 * k + 1, r, c])
        channels = range(g * c_in // deformable, (g + 1) * c_in // deformable)
        value = torch.zeros(c_in, dtype=torch.float64)
        for a in (math.floor(row), math.floor(row) + 1):
            for b in (math.floor(column), math.floor(column) + 1):
                if 0 <= a < height and 0 <= b < width:
                    value += (1 - abs(row - a)) * (1 - abs(column - b)) * x[i, :, a, b].double()
        for ch in channels:
            group = ch // per_group
            outputs = slice(group * c_out // groups, (group + 1) * c_out // groups)
            y[i, outputs, r, c] += (
                weight[outputs, ch % per_group, tap // kw, tap % kw].double() * value[ch] * float(mask[i, k, r, c])
            )
    return y


@pytest.mark.parametrize("case", ["groups across deformable groups", "one pixel"])
def test_the_definition(case, path):
    tensors, steps = arguments(case, batch=1)
    x, offset, weight, bias, mask = tensors
    assert_near(found(tensors, steps)[:1], [by_definition(x, offset, weight, bias, *steps, mask)], 1e-6)


@pytest.mark.parametrize("case", SMALL)
def test_torchvision_agrees(case, path):
    torchvision = pytest.importorskip("torchvision")
    tensors, steps = arguments(case, torch.float64)
    x, offset, weight, bias, mask = given = [t.requires_grad_() for t in tensors]
    y = torchvision.ops.deform_conv2d(x, offset, weight, bias, *steps, mask)
    gradients = torch.autograd.grad(y, (x, offset, weight, mask), upstream_of(y.detach()))
    assert_near(found([t.detach() for t in given], steps), [y.detach(), *gradients], 1e-13)


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_in_every_geometry(case, path):
    tensors, steps = arguments(case, masked=case != "tiles across images")
    assert_near(found(tensors, steps), expected(tensors, steps), LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", [*SMALL, "tall tiles"])
def test_dtypes(case, dtype, path):
    tensors, steps = arguments(case, dtype)
    results = found(tensors, steps)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [t.dtype for t in results] == [dtype, dtype, dtype, wide, dtype]
    assert_near(results, expected(tensors, steps), LIMITS[dtype])


@pytest.mark.parametrize("case", ["4² map", "tall tiles"])
def test_tf32_is_for_those_who_ask(case, path, monkeypatch):
    tensors, steps = arguments(case)
    plain = found(tensors, steps)
    monkeypatch.setenv("HIDA_TF32", "1")
    rounded = found(tensors, steps)
    assert not torch.equal(plain[0], rounded[0])
    assert_near(rounded, expected(tensors, steps), 1e-3)


@pytest.mark.parametrize(
    ("dtypes", "limit"),
    [
        # x, offset, weight, bias, mask
        (("bfloat16", "float32", "float32", "float32", "float16"), 6e-3),
        (("float16", "float16", "bfloat16", "float32", "float32"), 6e-3),
        (("float32", "bfloat16", "float16", "bfloat16", "float32"), 6e-3),
        (("bfloat16", "float64", "float32", "float16", "float32"), 6e-3),
    ],
)
def test_mixed_dtypes(dtypes, limit, path):
    tensors, steps = arguments("4² map")
    tensors = [t.to(getattr(torch, d)) for t, d in zip(tensors, dtypes, strict=True)]
    results = found(tensors, steps)
    wide = torch.float64 if "float64" in dtypes else torch.float32
    assert [t.dtype for t in results] == [tensors[0].dtype, tensors[0].dtype, tensors[1].dtype, wide, tensors[4].dtype]
    assert_near(results, expected(tensors, steps), limit)
    # In the computing type nothing but rounding of what came in and what goes out is lost.
    if wide == torch.float64:
        assert_near(results[3:4], expected(tensors, steps)[3:4], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["4² map", "whole units"])
def test_layouts_and_slices(case, dtype, path):
    (x, offset, weight, bias, mask), steps = arguments(case, dtype)
    n, c, h, w = x.shape
    upstream = upstream_of(torch.empty(n, weight.shape[0], h, w, dtype=dtype))
    plain = found((x, offset, weight, bias, mask), steps, upstream=upstream)
    joint = torch.cat((offset, mask), 1).to(memory_format=torch.channels_last)
    parts = joint.split((offset.shape[1], mask.shape[1]), 1)
    last = {"memory_format": torch.channels_last}
    rows = torch.zeros(n, c, h, 2 * w + 1, dtype=dtype)[..., 1::2]
    part = torch.zeros(n, h, w, c + 24, dtype=dtype).permute(0, 3, 1, 2)
    shifted = torch.zeros(x.numel() + 1, dtype=dtype)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    for other in (x.contiguous(**last), rows, part[:, 5 : 5 + c], part[:, 8 : 8 + c], shifted):
        grad = torch.zeros(n, h, w, weight.shape[0] + 16, dtype=dtype).permute(0, 3, 1, 2)[:, 8:-8].copy_(upstream)
        given = (other.copy_(x), parts[0], weight.contiguous(**last), bias, parts[1])
        assert_same(found(given, steps, upstream=grad), plain)
        assert_same(found(given, steps, upstream=upstream.contiguous(**last)), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sampling_points_at_the_edges_and_beyond(dtype, path):
    tensors, steps = arguments("4² map", dtype)
    special = torch.tensor(
        [0.0, 1, -1, -2, -1.0001, 4, 3, 3.999, 5, math.nan, math.inf, -math.inf, 1e30, -1e30, 65504, 2e9]
    )
    count = tensors[1].numel()
    tensors[1] = special.repeat(count // len(special) + 1)[:count].reshape(tensors[1].shape).to(dtype)
    results = found(tensors, steps)
    assert all(t.isfinite().all() for t in results)
    assert_near(results, expected(tensors, steps), LIMITS[dtype])


def test_numbers_that_are_not_finite_stay_where_they_belong(path):
    tensors, steps = arguments("4² map")
    tensors[0][0, 3, 1, 2] = math.nan
    tensors[0][1, 70, 0, 0] = math.inf
    tensors[4][1, 2, 3, 3] = math.nan
    upstream = upstream_of(torch.empty(2, 70, 4, 4))
    upstream[0, 5, 2, 2] = math.inf
    results, references = found(tensors, steps, upstream=upstream), expected(tensors, steps, upstream)
    for name, a, b in zip(("y", "x"), results[:2], references[:2], strict=True):
        assert torch.equal(a.isfinite(), b.isfinite()), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_many_points_in_one_cell(dtype, monkeypatch):
    monkeypatch.setenv("HIDA_DEFORM_PATH", "large")
    tensors, steps = arguments("more than a tile", dtype)
    places = torch.arange(9.0)
    tensors[1][:, 0::2] = 2.25 + 1 - places[None, None, :, None]
    tensors[1][:, 1::2] = 3.5 + 1 - torch.arange(11.0)
    assert_near(found(tensors, steps), expected(tensors, steps), LIMITS[dtype])


@pytest.mark.parametrize("masked", [True, False])
def test_only_the_gradients_asked_for(masked, path):
    tensors, steps = arguments("groups across deformable groups", masked=masked)
    full = found(tensors, steps)
    for wanted in range(16):
        results = found(tensors, steps, wanted)
        for i, (a, b) in enumerate(zip(results[1:], full[1:], strict=True)):
            assert torch.equal(a, b if wanted >> i & 1 else b.new_empty(0))


@pytest.mark.parametrize("case", [*SMALL, "batch 37"])
def test_the_same_bits_in_any_order_of_threads_and_blocks(case, path, emulated):
    tensors, steps = arguments(case)
    results = []
    for order in (0, 1, 2, 2):
        emulated.chip("hopper", order)
        results.append(found(tensors, steps))
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("chip", ["small", "turing", "hopper"])
def test_however_many_blocks_share_a_sum(chip, path, emulated):
    emulated.chip(chip)
    for case in ("4² map", "more than a tile"):
        tensors, steps = arguments(case)
        assert_near(found(tensors, steps), expected(tensors, steps), LIMITS[torch.float32])
        assert emulated.launches().shared <= 48 << 10


@pytest.mark.parametrize("case", ["more than a tile", "groups across deformable groups", "several tiles of channels"])
def test_however_little_workspace(case, monkeypatch):
    monkeypatch.setenv("HIDA_DEFORM_PATH", "large")
    tensors, steps = arguments(case, batch=3)
    for bytes_ in (1, 400_000):
        monkeypatch.setenv("HIDA_DEFORM_WORKSPACE", str(bytes_))
        assert_near(found(tensors, steps), expected(tensors, steps), LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", [0, 2], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("batch", "channels", "side"), [(16, 64, 128), (16, 128, 64), (64, 64, 128), (16, 64, 256)])
def test_workspace_is_less_than_a_twentieth_of_the_columns(batch, channels, side, last, dtype, emulated):
    emulated.chip("H100")
    columns = 9 * batch * channels * side**2 * (4 if dtype == 0 else 2)
    for bytes_, images in emulated.deform_plan(batch, channels, channels, side, dtype, last).values():
        assert bytes_ < columns / 20
        assert 1 <= images <= batch


def test_an_empty_batch(path):
    tensors, steps = arguments("4² map", batch=0)
    y, dx, doffset, dweight, dmask = found(tensors, steps)
    assert y.shape == (0, 70, 4, 4)
    assert dx.shape == tensors[0].shape
    assert doffset.shape == tensors[1].shape
    assert dmask.shape == tensors[4].shape
    assert torch.equal(dweight, torch.zeros_like(tensors[2]))


def test_wrong_arguments_are_refused():
    (x, offset, weight, bias, mask), (stride, padding, dilation) = arguments("4² map")
    op = torch.ops.hida_emulation.deform_conv2d
    with pytest.raises(RuntimeError, match="offset must have"):
        op(x, offset[:, :-1], weight, bias, stride, padding, dilation, mask)
    with pytest.raises(RuntimeError, match="mask must have shape"):
        op(x, offset, weight, bias, stride, padding, dilation, mask[:, 1:])
    with pytest.raises(RuntimeError, match="bias must have shape"):
        op(x, offset, weight, bias[1:], stride, padding, dilation, mask)
    with pytest.raises(RuntimeError, match="x must be float32"):
        op(x.int(), offset, weight, bias, stride, padding, dilation, mask)
