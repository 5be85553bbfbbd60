"""The CUDA kernels of info_acon, ida and instance_norm_modulate, emulated, against plain PyTorch in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from adaptations import (
    EPS,
    LIMITS,
    NAMES,
    assert_stays_in_its_plane,
    check,
    expected,
    found,
    gradients,
    launched,
    plain,
    statistics,
    upstream,
)
from operands import adaptation as operands
from operands import randoms

SHAPES = {
    "point": (2, 5, 1, 1),
    "row": (1, 3, 1, 19),
    "column": (2, 3, 19, 1),
    "odd": (2, 3, 5, 7),
    "several planes a warp": (3, 5, 4, 8),
    "a warp a plane": (2, 3, 16, 16),
    "odd planes, many of them": (33, 5, 3, 3),
    "a block a plane": (1, 2, 32, 40),
    "odd block": (1, 2, 33, 37),
    "whole block": (1, 2, 64, 64),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", NAMES)
def test_planes_that_stay_in_registers(emulated, name, shape):
    check(emulated, name, operands(name, shape))
    if name != "info_acon":
        assert emulated.launches() == (2, 1, 0)


# chip, shape, then forward and backward: launches, blocks of a cluster, whether shared memory was asked for
PATHS = {
    "staged": ("ampere", (3, 3, 65, 64), (1, 1, True), (1, 1, False)),
    "staged, four packs": ("ampere", (1, 8, 128, 128), (1, 1, True), (1, 1, False)),
    "staged, odd": ("small", (1, 2, 65, 67), (1, 1, True), (1, 1, False)),
    "staged, sweeps apart": ("turing", (1, 3, 96, 96), (1, 1, True), (3, 1, False)),
    "cluster": ("hopper", (1, 2, 128, 128), (1, 8, True), (1, 8, True)),
    "cluster, odd": ("hopper", (2, 3, 81, 79), (1, 4, True), (1, 4, True)),
    "cluster, one block without pixels": ("hopper", (1, 3, 144, 144), (1, 8, True), (1, 8, True)),
    "cluster for its shared memory": ("hopper", (8, 2, 144, 144), (1, 2, True), (1, 4, True)),
    "cluster of small blocks": ("small hopper", (2, 1, 120, 120), (1, 8, True), (1, 8, True)),
    "cluster with and without memory": ("small hopper", (2, 1, 192, 192), (1, 8, True), (1, 8, False)),
    "larger than a cluster": ("small hopper", (1, 1, 304, 304), (2, 1, False), (1, 8, False)),
    "streamed": ("small", (1, 2, 128, 128), (1, 1, False), (1, 1, False)),
    "streamed, odd": ("small", (1, 3, 117, 113), (1, 1, False), (1, 1, False)),
    "chunks": ("turing", (1, 1, 128, 128), (2, 1, False), (3, 1, False)),
    "chunks, odd": ("turing", (1, 2, 129, 127), (2, 1, False), (3, 1, False)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ida activated", "with residual"])
def test_larger_planes_on_every_path(emulated, name, path):
    chip, shape, forward, backward = PATHS[path]
    emulated.chip(chip, order=2)
    given = operands(name, shape)
    given[1] = given[1].half()  # of one dtype, planes of a cluster are for other kernels
    check(emulated, name, given)
    emulated.launches()
    emulated.usual()
    outputs = statistics(emulated, name, given)
    assert launched(emulated) == forward
    assert emulated.usual() == 0
    gradients(emulated, name, given, upstream(shape, torch.float32), *outputs[1:])
    if name == "with residual" and backward[0] > 1:
        backward = (backward[0] - 1, *backward[1:])  # there are no sums of chunks to add up
    assert launched(emulated) == backward


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("float16", "float32", "bfloat16")])
@pytest.mark.parametrize("shape", [(2, 2, 96, 88), (1, 2, 91, 73)])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_kept_in_a_cluster(emulated, name, shape, dtypes):
    emulated.chip("hopper", order=1)
    kinds = itertools.cycle(getattr(torch, d) for d in dtypes)
    given = [t.to(kind) for t, kind in zip(operands(name, shape), kinds, strict=False)]
    check(emulated, name, given, limit=4e-3)


@pytest.mark.parametrize("chip", ["turing", "small", "hopper"])
@pytest.mark.parametrize("shape", [(2, 35, 9, 7), (1, 5, 20, 25), (1, 33, 40, 33), (2, 8, 64, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_channels_last(emulated, name, shape, chip):
    emulated.chip(chip, order=1)
    check(emulated, name, operands(name, shape, layout=torch.channels_last))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(2, 19, 9, 11), (2, 3, 8, 12), (1, 2, 48, 48), (1, 1, 72, 104)])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(emulated, name, shape, layout, dtype):
    check(emulated, name, operands(name, shape, dtype=dtype, layout=layout))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 8, 8), (1, 2, 96, 96)])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_dtypes(emulated, name, shape):
    for kinds in (
        (torch.bfloat16, torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
        (torch.float64, torch.float32),
    ):
        given = [t.to(kind) for t, kind in zip(operands(name, shape), itertools.cycle(kinds), strict=False)]
        check(emulated, name, given, limit=4e-3)


LOGITS = {
    "one a pixel": lambda n, c, h, w: (n, 1, h, w),
    "one a plane": lambda n, c, h, w: (n, c, 1, 1),
    "one a channel": lambda n, c, h, w: (1, c, 1, 1),
}


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(3, 18, 6, 5), (2, 4, 16, 16), (1, 2, 80, 80)])
@pytest.mark.parametrize("name", ["info_acon", "ida activated"])
def test_every_shape_of_logits(emulated, name, shape, layout, logits):
    check(emulated, name, operands(name, shape, logits=LOGITS[logits](*shape), layout=layout))


VIEWS = {
    "every second row and column": lambda t: t[:, :, ::2, ::2],
    "sides exchanged": lambda t: t.transpose(2, 3),
    "channels from the third on": lambda t: t[:, 2:],
    "a window": lambda t: t[:, :, 1:-1, 3:],
    "a window on packs": lambda t: t[:, :, 2:10, 8:],
    "rows of a wider image": lambda t: t[..., :8],
    "one image for all": lambda t: t[:1].expand(3, -1, -1, -1),
    "one row for all": lambda t: t[:, :, :1].expand(-1, -1, 7, -1),
    "one channel for all": lambda t: t[:, :1].expand(-1, 5, -1, -1),
    "misaligned": lambda t: t.flatten()[1 : 1 + t.numel() // 2].reshape(1, *t.shape[1:]),
    "images and channels exchanged": lambda t: t.transpose(0, 1),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["info_acon", "ida input", "with residual"])
def test_views_of_any_strides(emulated, name, dtype, view):
    slopes = {"info_acon": 2, "ida input": 2}.get(name, 0)
    given = operands(name, (2, 6, 16, 24), dtype=dtype)
    maps = [VIEWS[view](t) for t in given[: len(given) - slopes]]
    given = maps + randoms(*[(1, maps[0].shape[1], 1, 1)] * slopes, dtype=dtype)
    check(emulated, name, given)
    # Only one operand is unusual.
    given[1] = given[1].contiguous()
    given[0] = given[0].contiguous()
    check(emulated, name, given)


def test_slices_of_one_tensor(emulated):
    h, joint = randoms((2, 8, 16, 16), (2, 24, 16, 16))
    check(emulated, "ida activated", [h, *joint.chunk(3, 1), *randoms((1, 8, 1, 1), (1, 8, 1, 1))])


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (1, 2, 96, 88)])
@pytest.mark.parametrize("name", NAMES)
def test_only_the_gradients_asked_for(emulated, name, shape):
    given = operands(name, shape)
    grad = upstream(shape, torch.float32)
    full = found(emulated, name, given, grad)
    for needed in itertools.product((False, True), repeat=len(given)):
        some = found(emulated, name, given, grad, needed)
        for a, b, need in zip(some[1:], full[1:], needed, strict=True):
            assert torch.equal(a, b) if need else a is None


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_empty_tensors(emulated, name, shape):
    given = operands(name, shape)
    outputs = found(emulated, name, given, upstream(shape, torch.float32))
    assert all(a.shape == t.shape for a, t in zip(outputs, [given[0], *given], strict=True))
    assert all((a == 0).all() for a in outputs[1:])
    assert emulated.launches().count == 0


@pytest.mark.parametrize("chip", ["ampere", "small", "turing", "hopper"])
@pytest.mark.parametrize("kind", [(2, {}), (48, {"layout": torch.channels_last})], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("side", [24, 64, 100, 128])
def test_a_large_mean_with_a_small_spread(emulated, chip, side, kind):
    emulated.chip(chip)
    shape = (1, kind[0], side, side)
    given = operands("instance_norm_modulate", shape, **kind[1])
    given[0] += 1e4
    grad = upstream(shape, torch.float32, **kind[1])
    exact, eager = (expected("instance_norm_modulate", given, grad, d) for d in (torch.float64, torch.float32))
    outputs = found(emulated, "instance_norm_modulate", given, grad)
    for a, b, c in zip(outputs, exact, eager, strict=True):
        assert (a - b).norm() <= max(2 * (c - b).norm(), 1e-6 * b.norm())
    mean, rstd = emulated.ops.instance_norm_modulate(*given, None, EPS)[1:]
    torch.testing.assert_close(mean.double(), given[0].double().mean((2, 3)), rtol=1.2e-7, atol=0)
    variance = given[0].double().var((2, 3), correction=0)
    torch.testing.assert_close(rstd.double(), (variance + EPS).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_switches(emulated, dtype):
    x = torch.linspace(-200, 200, 401, dtype=dtype).reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for logit in (-1e4, -90.0, 0.0, 90.0, 1e4):
        given = [x, torch.full_like(x, logit), 2 * one, -one]
        grad = torch.ones_like(x)
        for a, b in zip(found(emulated, "info_acon", given, grad), expected("info_acon", given, grad), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_the_logistic_function_to_a_few_units_in_the_last_place(emulated):
    z = torch.linspace(-80, 80, 100_001)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    # θ = σ(40) is 1 in float32; with x = z, p1 = 1, p2 = 0 the result is z·σ(z).
    y = emulated.ops.info_acon(z.reshape(1, 1, 1, -1), 40 * one, one, zero).flatten().double()
    exact = z.double() * torch.sigmoid(z.double())
    units = (y - exact).abs() / exact.abs().clamp_min(1e-37) / torch.finfo(torch.float32).eps
    assert units.max() <= 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 3, 8, 8), (2, 3, 72, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_plane(emulated, name, shape, value):
    given = operands(name, shape)
    given[0][0, 1, 2, 3] = value
    outputs = found(emulated, name, given, upstream(shape, torch.float32))
    assert_stays_in_its_plane(outputs, plain(name, given, torch.float32), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_16_bits_round_to(emulated, dtype):
    # With p1 = p2 = 1 the result is x, if finite; float32 values between, above and far below those of 16 bits.
    x = torch.cat([torch.logspace(-45, 38, 4001), torch.tensor([0.0, -0.0, 65519.0, 65520.0, 1e-8, 6e-8, 5.97e-8])])
    x = torch.cat([x, -x, torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()])
    x = x.to(dtype)
    x = x[~x.isinf()].reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1)
    for count in (x.shape[3] // 8 * 8, x.shape[3] // 8 * 8 - 1):  # in packs, and one by one
        given = x[..., :count].contiguous()
        y = emulated.ops.info_acon(given, one, one, one)
        assert torch.equal(y.isnan(), given.isnan())
        assert torch.equal(y[~y.isnan()], given[~given.isnan()])
    # A float32 gradient, rounded.
    grad = torch.cat([torch.randn(4096) * 10.0**e for e in (-42, -8, -5, 0, 4, 37)]).reshape(1, 1, 1, -1)
    for count in (grad.shape[3], grad.shape[3] - 1):
        g = grad[..., :count].contiguous()
        dx = emulated.ops.info_acon_backward(g, torch.zeros_like(g, dtype=dtype), one, one, one, 1)[0]
        torch.testing.assert_close(dx, g.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("chip", ["turing", "ampere", "hopper", "small"])
@pytest.mark.parametrize("shape", [(3, 5, 6, 5), (2, 3, 24, 24), (1, 2, 100, 104)])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_in_whatever_order_threads_run(emulated, name, shape, chip):
    given, grad = operands(name, shape), upstream(shape, torch.float32)
    results = []
    for order in (0, 1, 2, 2):
        emulated.chip(chip, order)
        results.append(found(emulated, name, given, grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_offsets_beyond_32_bits(emulated):
    torch.use_deterministic_algorithms(False)  # which would fill these tensors
    far = 2**31 + 64
    for shape, strides in {
        (2, 3, 4, 8): (far, 40, 8, 1),  # images far apart
        (1, 2, 4, 8): (0, far, 8, 1),  # channels
        (1, 2, 2, 8): (0, 16, far, 1),  # rows
        (1, 1, 1, 3): (0, 0, 0, far),  # columns
    }.items():
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        for name in ("info_acon", "instance_norm_modulate"):
            given = operands(name, shape, dtype=torch.bfloat16)
            memory = torch.empty(reach, dtype=torch.bfloat16)
            given[0] = memory.as_strided(shape, strides).copy_(given[0])
            check(emulated, name, given)


def test_misuse_is_refused(emulated):
    e, x, slope = emulated.ops, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 1, 1)
    with pytest.raises(RuntimeError, match=r"gamma must have shape \(1, 2, 3, 4\); its shape is \(1, 2, 3, 3\)"):
        e.instance_norm_modulate(x, x[..., :3], x, None, EPS)
    with pytest.raises(RuntimeError, match="p1 must have shape"):
        e.info_acon(x, x, torch.ones(2), torch.ones(2))
    with pytest.raises(RuntimeError, match="must be float32"):
        e.info_acon(x.int(), x, slope, slope)
    with pytest.raises(RuntimeError, match="residual must be"):
        e.ida(x, x, x, x, slope, slope, 3, EPS)
    with pytest.raises(RuntimeError, match="mean and rstd must be"):
        e.instance_norm_modulate_backward(x, x, x, torch.ones(1, 2).double(), torch.ones(1, 2), 3)
