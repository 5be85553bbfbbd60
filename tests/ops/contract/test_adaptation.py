"""The contract of info_acon, instance_norm_modulate and ida: architecture.md §4, for every back end."""

from __future__ import annotations

import functools
import itertools

import oracle
import pytest
import torch
from backends import DTYPES, LOGISTIC, back_ends, each, slow
from checking import assert_near, assert_same, check, exact_outcome, function, outcome, relative_error
from operands import NAMES, NHWC, SWITCHED, adaptation, randoms
from torch.library import opcheck

from hida.ops import OpError

BACKENDS = ("reference", "cpu", "emulated", "cuda")
REGISTERED = ("cpu", "cuda")
NATIVE = ("cpu", "emulated", "cuda")
every = functools.partial(each, BACKENDS)
names = pytest.mark.parametrize("name", NAMES)
some_names = pytest.mark.parametrize(
    "name", ["info_acon", "ida input", "with residual", *slow(*NAMES[1:5:2], "ida none")]
)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC], ids=["nchw", "nhwc"])
INFINITE = (float("nan"), float("inf"), -float("inf"))

# Planes of one pixel, of fewer than a vector, of odd widths and longer than a line; many channels, many images.
SHAPES = [
    *[(2, 5, 1, 1), (1, 3, 1, 19), (2, 3, 19, 1), (2, 3, 5, 7), (1, 2, 33, 37), (2, 37, 4, 4), (33, 5, 3, 3)],
    *[(3, 5, 4, 8), (2, 3, 16, 16)],
]
# Parts of a warp, a warp, a block, a cluster, chunks; tiles of channels.
GPU_SHAPES = [
    *[(37, 6, 4, 8), (4, 64, 16, 16), (4, 48, 32, 32), (2, 33, 33, 37), (3, 24, 64, 64), (2, 300, 65, 64)],
    *[(2, 130, 128, 128), (1, 3, 128, 128), (1, 5, 129, 127), (2, 100, 200, 204), (1, 3, 256, 256), (2, 150, 256, 256)],
    *[(1, 2, 640, 512), (1, 1, 1024, 1031), (2, 24, 72, 72), (37, 6, 3, 8), (1, 5, 168, 176), (2, 72, 40, 40)],
    *[(3, 512, 4, 4), (2, 16, 2, 2)],
]


@names
@layouts
@every("shape", SHAPES, emulated=[(1, 2, 32, 40), (1, 33, 40, 33), (2, 8, 64, 64)], cuda=GPU_SHAPES)
def test_results_and_gradients(backend, name, layout, shape):
    check(backend, name, adaptation(name, shape, layout=layout, device=backend.device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@names
@layouts
@every(
    "shape",
    [(2, 19, 9, 11)],
    emulated=[(2, 3, 8, 12), (1, 2, 48, 48), (1, 1, 72, 104)],
    cuda=[(4, 40, 32, 32), (2, 70, 128, 128), (1, 2, 256, 264)],
)
def test_dtypes(backend, name, layout, shape, dtype):
    check(backend, name, adaptation(name, shape, dtype=dtype, layout=layout, device=backend.device))


LARGE_PACKED = [
    *[(2, 512, 2, 2), (4, 512, 16, 16), (16, 256, 32, 32), (2, 40, 33, 37), (16, 128, 64, 64), (16, 64, 128, 128)],
    *[(1, 64, 128, 128), (2, 40, 128, 128), (1, 16, 256, 264)],
]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@names
@each(("reference", "cpu", "cuda"), "shape", [(3, 24, 4, 6), (2, 8, 33, 37)], cuda=LARGE_PACKED)
def test_nhwc_with_channels_in_packs_of_eight(backend, name, shape, dtype):
    for logits in (shape, (*shape[:2], 1, 1)) if name in SWITCHED else (shape,):
        given = adaptation(name, shape, logits, dtype=dtype, layout=NHWC, device=backend.device)
        check(backend, name, given)


@names
@every("shape", [(2, 3, 5, 7), (2, 3, 8, 8)], emulated=[(1, 2, 96, 96)], cuda=[(1, 2, 96, 96)])
def test_mixed_dtypes(backend, name, shape):
    float64, float32, bfloat16, float16 = DTYPES
    for kinds in ((bfloat16, float32, float16), (float32, bfloat16), (float16, float64), (float64, float32)):
        given = adaptation(name, shape, device=backend.device)
        check(backend, name, [t.to(kind) for t, kind in zip(given, itertools.cycle(kinds), strict=False)])


@pytest.mark.parametrize("eps", [0.3, 1e-2])
@pytest.mark.parametrize("name", NAMES[1:])
@back_ends(*BACKENDS)
def test_eps_is_added_to_the_variance(backend, name, eps):
    given = adaptation(name, (2, 3, 4, 5), dtype=torch.float64, device=backend.device)
    check(backend, name, [given[0] / 4, *given[1:]], eps=eps)


@pytest.mark.parametrize("logits", ["per pixel", "per plane", "per channel"])
@pytest.mark.parametrize("name", ["info_acon", "ida activated", *slow("ida none", "ida input")])
@layouts
@every(
    "shape",
    [(3, 18, 6, 5), (2, 4, 16, 16)],
    emulated=[(1, 2, 80, 80)],
    cuda=[(1, 2, 80, 80), (2, 40, 128, 128)],
)
def test_every_shape_of_logits(backend, name, layout, shape, logits):
    n, c, h, w = shape
    logits = {"per pixel": (n, 1, h, w), "per plane": (n, c, 1, 1), "per channel": (1, c, 1, 1)}[logits]
    check(backend, name, adaptation(name, shape, logits, layout=layout, device=backend.device))


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@some_names
@back_ends(*BACKENDS)
def test_views_of_any_strides(backend, name, dtype, view):
    given = adaptation(name, (2, 6, 16, 24), dtype=dtype, device=backend.device)
    maps = [VIEWS[view](t) for t in given if t.shape == given[0].shape]
    slopes = randoms(*[(1, maps[0].shape[1], 1, 1)] * (len(given) - len(maps)), dtype=dtype, device=backend.device)
    check(backend, name, maps + slopes)
    # Only one operand is unusual.
    check(backend, name, [maps[0].contiguous(), maps[1].contiguous(), *maps[2:], *slopes])


@layouts
@back_ends(*BACKENDS)
def test_slices_of_one_tensor(backend, layout):
    shapes = (2, 8, 16, 16), (2, 24, 16, 16), (1, 8, 1, 1), (1, 8, 1, 1)
    h, joint, *slopes = randoms(*shapes, layout=layout, device=backend.device)
    check(backend, "ida activated", [h, *joint.chunk(3, 1), *slopes])


@layouts
@back_ends(*NATIVE)
def test_slices_of_one_tensor_are_not_copied(backend, layout):
    shapes = (1, 8, 64, 64), (1, 24, 64, 64), (1, 8, 1, 1), (1, 8, 1, 1)
    h, joint, *slopes = randoms(*shapes, layout=layout, device=backend.device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        backend.ops.ida(h, *joint.chunk(3, 1), *slopes)
    called = {event.key for event in profile.key_averages()}
    assert f"{backend.operators.name}::ida" in called
    assert not {"aten::copy_", "aten::contiguous", "aten::clone"} & called


@names
@back_ends(*BACKENDS)
def test_the_layout_of_the_result_is_that_of_the_input(backend, name):
    found = outcome(function(backend.ops, name), adaptation(name, (2, 6, 5, 4), layout=NHWC, device=backend.device))
    for t in found:
        assert t.is_contiguous(memory_format=NHWC)


@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.bfloat16)], ids=str)
@names
@layouts
@every(
    "shape",
    [(2, 8, 3, 4)],
    emulated=[(2, 3, 4, 8), (1, 8, 37, 33), *slow((1, 2, 96, 88))],
    emulated_h100=[(1, 2, 80, 88)],
    cuda=[(1, 2, 96, 88), (3, 24, 9, 7), (4, 128, 64, 64)],
)
def test_only_the_gradients_asked_for(backend, name, layout, shape, dtype):
    for logits in (shape, (*shape[:2], 1, 1)) if name in SWITCHED else (shape,):
        given = adaptation(name, shape, logits, dtype=dtype, layout=layout, device=backend.device)
        full = outcome(function(backend.ops, name), given)
        for needed in itertools.product((False, True), repeat=len(given)):
            if given[0].numel() > 200 and sum(needed) not in (0, 1, len(given) - 1):
                continue  # for small tensors every choice, for others one gradient alone or missing
            some = outcome(function(backend.ops, name), given, needed)
            assert_same(some, [full[0], *(g if need else None for g, need in zip(full[1:], needed, strict=True))])


@names
@every("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
def test_empty_tensors(backend, name, shape):
    given = adaptation(name, shape, device=backend.device)
    found = outcome(function(backend.ops, name), given)
    assert [t.shape for t in found] == [t.shape for t in (given[0], *given)]
    assert all((t == 0).all() for t in found[1:])
    if backend.name == "emulated":
        assert backend.launches().count == 0


@pytest.mark.parametrize("name", ["instance_norm_modulate", "with residual"])
@every("shape", [(2, 3, 1, 1), (2, 8, 4, 5)])
def test_flat_planes_give_beta(backend, name, shape):
    x, gamma, beta, *residual = adaptation(name, shape, device=backend.device)
    y, *gradients = outcome(function(backend.ops, name), [torch.full_like(x, 7.0), gamma, beta, *residual])
    torch.testing.assert_close(y, sum(residual, beta), rtol=0, atol=1e-6)
    assert all(t.isfinite().all() for t in gradients)


@back_ends(*BACKENDS)
def test_slopes_are_subtracted_in_the_computing_dtype(backend):
    # In bfloat16 p1 − p2 would round to 256; the exact difference is 255.5.
    x, logits = (torch.full((1, 1, 1, 1), value, device=backend.device) for value in (1.0, 40.0))
    p1, p2 = (torch.full((1, 1, 1, 1), value, device=backend.device).bfloat16() for value in (256.0, 0.5))
    assert backend.ops.info_acon(x, logits, p1, p2).item() == 256.0


@back_ends(*BACKENDS)
def test_the_limits_of_the_activation_are_its_two_slopes(backend):
    p1, p2, logits = (torch.full((1, 1, 1, 1), value, device=backend.device) for value in (3.0, 0.5, 0.0))
    x = torch.tensor([1e4, -1e4], device=backend.device).reshape(1, 1, 1, 2)
    y = backend.ops.info_acon(x, logits, p1, p2).flatten().cpu()
    torch.testing.assert_close(y, torch.tensor([3e4, -5e3]))


@names
@back_ends(*BACKENDS)
def test_first_and_second_derivatives(backend, name):
    inputs = [t.requires_grad_() for t in adaptation(name, (2, 2, 2, 3), dtype=torch.float64, device=backend.device)]
    assert torch.autograd.gradcheck(function(backend.ops, name), inputs)
    if backend.twice:
        assert torch.autograd.gradgradcheck(function(backend.ops, name), inputs)


@pytest.mark.parametrize("name", SWITCHED)
@every("logits", [(2, 1, 2, 3), (2, 2, 1, 1), (1, 2, 1, 1)])
def test_first_and_second_derivatives_of_smaller_logits(backend, name, logits):
    given = adaptation(name, (2, 2, 2, 3), logits, dtype=torch.float64, device=backend.device)
    inputs = [t.requires_grad_() for t in given]
    assert torch.autograd.gradcheck(function(backend.ops, name), inputs)
    if backend.twice and name == "info_acon":
        assert torch.autograd.gradgradcheck(function(backend.ops, name), inputs)


@back_ends(*BACKENDS)
def test_one_tensor_in_two_places_gets_both_gradients(backend):
    x = randoms((1, 2, 3, 4), dtype=torch.float64, device=backend.device)[0].requires_grad_()
    for twice in (False, True) if backend.twice else (False,):
        found, exact = (
            torch.autograd.grad(ops.instance_norm_modulate(x, x, x, x).square().sum(), x, create_graph=twice)[0]
            for ops in (backend.ops, oracle)
        )
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("outlier", [0.0, 1e5])
@layouts
@every(
    "shape",
    [(1, 8, 4, 8), (1, 2, 64, 64), (2, 48, 24, 24)],
    emulated=[(1, 3, 16, 16), (1, 8, 100, 100), (1, 2, 128, 128)],
    emulated_h100=[(1, 2, 128, 120), (1, 2, 100, 100)],
    cuda=[(1, 2, 100, 100), (1, 2, 256, 256)],
)
def test_a_large_mean_with_a_small_spread(backend, layout, shape, outlier):
    name = "instance_norm_modulate"
    given = adaptation(name, shape, layout=layout, device=backend.device)
    given[0] += 1e4
    given[0][..., 0, 0] += outlier
    found = outcome(function(backend.ops, name), given)
    exact, plain = (exact_outcome(function(oracle, name), given, d) for d in (torch.float64, torch.float32))
    least, first_counts = 1e-6, outlier and layout == NHWC and backend.name in ("emulated", "cuda")
    if backend.name == "reference":
        least = 1e-3  # PyTorch's mean of channels_last planes adds up in float32, one number after the other
    elif first_counts:
        least = 3e-4  # a thread's sums are relative to its first pixel
    for a, b, c in zip(found, exact, plain, strict=True):
        assert relative_error(a, b) <= max(2 * relative_error(c, b), least)
    if backend.name != "reference" and not first_counts:
        mean, rstd = backend.operators.instance_norm_modulate(*given, None, oracle.EPS)[1:]
        variance, right = torch.var_mean(given[0].double(), (2, 3), correction=0)
        torch.testing.assert_close(mean.double(), right, rtol=1.2e-7, atol=0)
        torch.testing.assert_close(rstd.double(), (variance + oracle.EPS).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@back_ends(*BACKENDS)
def test_saturated_switches(backend, dtype):
    x = torch.linspace(-200, 200, 401, dtype=dtype, device=backend.device).reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1, dtype=dtype, device=backend.device)
    for logit in (-1e4, -90.0, 0.0, 90.0, 1e4):
        given = [x, torch.full_like(x, logit), 2 * one, -one]
        found, exact = outcome(backend.ops.info_acon, given), exact_outcome(oracle.info_acon, given)
        count = 3 if backend.name == "cuda" else 5  # there, sums of the chip's own exp2 and 1/x are another matter
        for a, b in zip(found[:count], exact[:count], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5 if backend.name == "reference" else 1e-5)


@pytest.mark.parametrize("slope", [1.0, 40.0, 1e4])
@every("shape", [(1, 2, 8, 8)], emulated=[(1, 2, 24, 24)], emulated_h100=[(1, 2, 72, 80)], cuda=[(1, 2, 72, 80)])
def test_saturated_switches_before_a_norm(backend, shape, slope):
    given = adaptation("ida activated", shape, device=backend.device)
    given[4] *= slope
    for logit in (-float("inf"), -1e4, -90.0, -30.0, 0.0, 30.0, 90.0, 1e4, float("inf")):
        for where in (shape, (*shape[:2], 1, 1)):
            given[1] = torch.full(where, logit, device=backend.device)
            found = outcome(backend.ops.ida, given)
            exact, plain = (exact_outcome(oracle.ida, given, d) for d in (torch.float64, torch.float32))
            for a, b, c in zip(found, exact, plain, strict=True):
                assert (a - b).norm() <= max(1e-5 * b.norm(), 3 * (c - b).norm(), 1e-10)


@back_ends(*BACKENDS)
def test_the_logistic_function_to_a_few_units_in_the_last_place(backend):
    z = torch.linspace(-80, 80, 100_001, device=backend.device)
    one, zero = (torch.full((1, 1, 1, 1), value, device=backend.device) for value in (1.0, 0.0))
    for count in (100_001, 100_000):
        # θ = σ(40) is 1 in float32; with x = z, p1 = 1, p2 = 0 the result is z·σ(z).
        y = backend.ops.info_acon(z[:count].reshape(1, 1, 1, -1), 40 * one, one, zero).flatten().double()
        exact = z[:count].double() * torch.sigmoid(z[:count].double())
        units = (y - exact).abs() / exact.abs().clamp_min(1e-37) / torch.finfo(torch.float32).eps
        assert units.max() <= LOGISTIC[backend.name]


@pytest.mark.parametrize("value", [*INFINITE[:2], *slow(*INFINITE[2:]), 3e38])
@names
@layouts
@every(
    "shape",
    [(2, 8, 5, 6), (2, 3, 8, 8)],
    emulated=[(2, 8, 40, 33), *slow((2, 3, 24, 24), (2, 3, 72, 64))],
    emulated_h100=[(2, 3, 72, 64)],
    cuda=[(2, 8, 40, 33), (2, 3, 72, 64)],
)
def test_what_is_not_finite_stays_in_its_plane(backend, name, layout, shape, value):
    elsewhere = torch.ones(shape, dtype=torch.bool, device=backend.device)
    elsewhere[0, 1] = False
    for operand, dtype in itertools.product(range(1 + (name in SWITCHED)), (torch.float32, torch.bfloat16)):
        given = adaptation(name, shape, dtype=dtype, layout=layout, device=backend.device)
        given[operand][0, 1, 2, 3] = value
        found = outcome(function(backend.ops, name), given)
        if value != 3e38:
            assert torch.equal(found[0].isfinite(), function(oracle, name)(*(t.float() for t in given)).isfinite())
        for t in found:
            assert t.shape != given[0].shape or t[elsewhere].isfinite().all()


@back_ends(*BACKENDS)
def test_in_an_activation_it_stays_where_it_is(backend):
    given = adaptation("info_acon", (2, 3, 4, 5), device=backend.device)
    clean = backend.ops.info_acon(*given)
    given[0][0, 0, 0, 0] = float("nan")
    y = backend.ops.info_acon(*given)
    assert y[0, 0, 0, 0].isnan()
    assert torch.equal(y.flatten()[1:], clean.flatten()[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@back_ends(*BACKENDS)
def test_what_16_bits_round_to(backend, dtype):
    # With p1 = p2 = 1 the result is x, if finite; float32 values between, above and far below those of 16 bits.
    x = torch.cat([torch.logspace(-45, 38, 4001), torch.tensor([0.0, -0.0, 65519.0, 65520.0, 1e-8, 6e-8, 5.97e-8])])
    x = torch.cat([x, -x, torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()])
    x = x.to(dtype)
    x = x[~x.isinf()].reshape(1, 1, 1, -1).to(backend.device)
    one = torch.ones(1, 1, 1, 1, device=backend.device)
    for count in (x.shape[3] // 8 * 8, x.shape[3] // 8 * 8 - 1):  # in packs, and one by one
        given = x[..., :count].contiguous()
        y = backend.ops.info_acon(given, one, one, one)
        assert torch.equal(y.isnan(), given.isnan())
        assert torch.equal(y[~y.isnan()], given[~given.isnan()])
    if backend.name != "reference":  # a float32 gradient, rounded
        grad = torch.cat([torch.randn(4096) * 10.0**e for e in (-42, -8, -5, 0, 4, 37)]).reshape(1, 1, 1, -1)
        for count in (grad.shape[3], grad.shape[3] - 1):
            g = grad[..., :count].contiguous().to(backend.device)
            dx = backend.operators.info_acon_backward(g, torch.zeros_like(g, dtype=dtype), one, one, one, 1)[0]
            torch.testing.assert_close(dx, g.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.bfloat16)], ids=str)
@names
@layouts
@every(
    "shape",
    [(3, 24, 17, 16)],
    emulated=slow((3, 40, 6, 5), (2, 24, 24, 24), (1, 8, 100, 96), (5, 7, 3, 8), (2, 2, 64, 64)),
    emulated_h100=[*slow((2, 3, 24, 24)), (1, 2, 104, 96)],
    cuda=[(3, 40, 24, 24), (2, 64, 128, 128), (1, 2, 512, 512), (16, 64, 72, 64)],
)
def test_the_same_bits_whatever_must_not_matter(backend, name, layout, shape, dtype):
    """Not the number of threads, not the order of threads and blocks, not the time."""
    given = adaptation(name, shape, dtype=dtype, layout=layout, device=backend.device)
    for group in backend.groups():
        first, *others = (outcome(function(backend.ops, name), given) for _ in group)
        for other in others:
            assert_same(other, first)


@pytest.mark.parametrize("name", ["info_acon", "instance_norm_modulate"])
@back_ends(*BACKENDS)
def test_distances_of_more_elements_than_32_bits_count(backend, name):
    torch.use_deterministic_algorithms(False)  # which would fill these tensors
    far = 2**31 + 64
    for shape, strides in {
        (2, 3, 4, 8): (far, 40, 8, 1),  # images far apart
        (1, 2, 4, 8): (0, far, 8, 1),  # channels
        (1, 2, 2, 8): (0, 16, far, 1),  # rows
        (1, 1, 1, 3): (0, 0, 0, far),  # columns
    }.items():
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if backend.device == "cuda" and torch.cuda.mem_get_info()[0] < 3 * reach:
            pytest.skip(f"the device has less than {3 * reach >> 30} GiB of free memory")
        given = adaptation(name, shape, dtype=torch.bfloat16, device=backend.device)
        memory = torch.empty(reach, dtype=torch.bfloat16, device=backend.device)
        given[0] = memory.as_strided(shape, strides).copy_(given[0])
        check(backend, name, given)


@names
@back_ends("reference", *REGISTERED)
def test_under_autocast_the_dtype_is_that_of_the_input(backend, name):
    for dtype in (torch.float32, torch.bfloat16):
        given = adaptation(name, (2, 3, 8, 8), dtype=dtype, device=backend.device)
        plain = function(backend.ops, name)(*given)
        with torch.autocast(backend.device, torch.bfloat16):
            found = function(backend.ops, name)(*given)
        assert found.dtype == dtype
        assert torch.equal(found, plain)


@back_ends(*REGISTERED)
def test_opcheck(backend):
    shapes = (2, 3, 4, 5), (2, 9, 4, 5), (2, 3, 4, 5), (1, 3, 1, 1), (1, 3, 1, 1)
    x, joint, gamma, p1, p2 = (t.requires_grad_() for t in randoms(*shapes, device=backend.device))
    e = backend.operators
    for logits in (joint[:, :3], joint[:, :1], joint[:, :3, :1, :1], joint[:1, :3, :1, :1]):
        one = logits.detach().requires_grad_()
        opcheck(e.info_acon, (x, one, p1, p2))
        opcheck(e.ida, (x, one, gamma, gamma.detach(), p1, p2, 1, 1e-5))
    residual = torch.ones_like(x, dtype=torch.bfloat16, requires_grad=True)
    opcheck(e.instance_norm_modulate, (x, gamma, gamma.detach(), residual, 1e-5))
    opcheck(e.instance_norm_modulate, (x, gamma, gamma.detach(), None, 1e-5))


# aot_eager traces forward and backward as inductor does, without waiting for a C++ compiler. "dynamic": sizes that
# change become symbols. A symbol of every size at once is left out: its guards on shapes keep sympy busy for minutes on
# torch 2.15.
@each((), "how", reference=slow("inductor"), cpu=["aot_eager", *slow("dynamic")], cuda=["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend, how):
    ops = backend.ops

    def composite(h, joint, p1, p2):
        f = ops.ida(h, *joint.chunk(3, 1), p1, p2)
        return ops.instance_norm_modulate(ops.info_acon(f, joint[:, :1], p1, p2), f, f)

    kind = {"backend": how} if how != "dynamic" else {"backend": "aot_eager", "dynamic": None}
    compiled = torch.compile(composite, fullgraph=True, **{"dynamic": False, **kind})
    for n, c, h, w in ((2, 3, 4, 5), (3, 3, 6, 5)):
        inputs = randoms((n, c, h, w), (n, 3 * c, h, w), (1, c, 1, 1), (1, c, 1, 1), device=backend.device)
        found, expected = outcome(compiled, inputs), outcome(composite, inputs)
        assert_near(found, [t.double() for t in expected], [1e-6 if how != "inductor" else 1e-5] * 5)


WRONG = {
    "info_acon": [
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
    "with residual": [
        ("x", torch.ones(2, 3)),
        ("gamma", torch.ones(2, 3, 1, 1)),
        ("beta", torch.ones(1, 3, 4, 5)),
        ("beta", torch.ones(2, 3, 4, 5, device="meta")),
        ("residual", torch.ones(2, 3, 4, 6)),
        ("residual", torch.ones(2, 3, 4, 5, dtype=torch.uint8)),
        ("eps", 0.0),
        ("eps", -1e-5),
        ("eps", float("nan")),
    ],
    "ida input": [
        ("h", torch.ones(3, 4, 5)),
        ("logits", torch.ones(2, 2, 4, 5)),
        ("gamma", torch.ones(2, 3, 4, 1)),
        ("beta", torch.ones(2, 3, 4, 5, dtype=torch.bool)),
        ("gamma", torch.ones(2, 3, 4, 5, device="meta")),
        ("p1", torch.ones(2, 3, 1, 1)),
        ("residual", "all"),
        ("eps", 0.0),
    ],
}
ARGUMENTS = {
    "info_acon": ("x", "logits", "p1", "p2"),
    "with residual": ("x", "gamma", "beta", "residual"),
    "ida input": ("h", "logits", "gamma", "beta", "p1", "p2"),
}


@pytest.mark.parametrize(
    ("name", "argument", "value"), [(op, *wrong) for op, wrongs in WRONG.items() for wrong in wrongs]
)
@back_ends("reference", *REGISTERED)
def test_a_wrong_argument_is_named(backend, name, argument, value):
    tensors = adaptation(name, (2, 3, 4, 5), device=backend.device)
    if isinstance(value, torch.Tensor) and value.device.type == "cpu":
        value = value.to(backend.device)
    op = getattr(backend.ops, {"with residual": "instance_norm_modulate", "ida input": "ida"}.get(name, name))
    with pytest.raises(OpError, match=rf"^{argument} (must|is on)"):
        op(**{**dict(zip(ARGUMENTS[name], tensors, strict=True)), argument: value})


@back_ends(*NATIVE)
def test_operators_refuse_what_they_cannot_compute(backend):
    e, x = backend.operators, torch.ones(1, 2, 3, 4, device=backend.device)
    slope, flat = x[:, :, :1, :1], x[0, :, 0, 0]
    with pytest.raises(RuntimeError, match=r"gamma must have shape \(1, 2, 3, 4\); its shape is \(1, 2, 3, 3\)"):
        e.instance_norm_modulate(x, x[..., :3], x, None, 1e-5)
    with pytest.raises(RuntimeError, match="p1 must have shape"):
        e.info_acon(x, x, flat, flat)
    with pytest.raises(RuntimeError, match="must be float32"):
        e.info_acon(x.int(), x, slope, slope)
    with pytest.raises(RuntimeError, match="residual must be"):
        e.ida(x, x, x, x, slope, slope, 3, 1e-5)
    with pytest.raises(RuntimeError, match="mean and rstd must be"):
        e.instance_norm_modulate_backward(x, x, x, flat[None].double(), flat[None], 3)
