"""The adaptation ops where numbers are hard: cancellation, saturation, NaN and infinity, order, rounding, distances."""

from __future__ import annotations

import functools
import itertools

import oracle
import pytest
import torch
from backends import LOGISTIC, back_ends, each, slow
from checking import assert_same, check, exact_outcome, function, outcome, relative_error
from operands import NAMES, NHWC, SWITCHED, adaptation

BACKENDS = ("reference", "cpu", "emulated", "cuda")
every = functools.partial(each, BACKENDS)
names = pytest.mark.parametrize("name", NAMES)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC], ids=["nchw", "nhwc"])
INFINITE = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("name", ["instance_norm_modulate", "with residual"])
@every("shape", [(2, 3, 1, 1), (2, 8, 4, 5)])
def test_flat_planes_give_beta(backend, name, shape):
    x, gamma, beta, *residual = adaptation(name, shape, dtype=torch.float64, device=backend.device)
    y, *gradients = outcome(function(backend.ops, name), [torch.full_like(x, 7.0), gamma, beta, *residual])
    torch.testing.assert_close(y, sum(residual, beta), rtol=0, atol=1e-12)
    assert all(t.isfinite().all() for t in gradients)


@back_ends(*BACKENDS)
def test_slopes_are_subtracted_in_the_computing_dtype(backend):
    # In bfloat16 p1 − p2 would round to 256; the exact difference is 255.5.
    x, logits = (torch.full((1, 1, 1, 1), value, device=backend.device) for value in (1.0, 40.0))
    p1, p2 = (torch.full((1, 1, 1, 1), value, device=backend.device).bfloat16() for value in (256.0, 0.5))
    assert backend.ops.info_acon(x, logits, p1, p2).item() == 256.0


OUTLIERS = {  # of planes (N, C, H, W): none, where a kernel begins, where one thread does, far behind
    "none": lambda x: x[..., :0],
    "first": lambda x: x[..., 0, 0],
    "some": lambda x: x.flatten(2)[..., :24:8],
    "last": lambda x: x[..., -1, -1],
}


@pytest.mark.parametrize("outliers", ["none", "first", *slow("some", "last")])
@layouts
@every(
    "shape",
    [(1, 8, 4, 8), (1, 2, 64, 64), (2, 48, 24, 24), *slow((1, 150, 40, 41))],
    emulated=[(1, 3, 16, 16), (1, 8, 100, 100), (1, 2, 128, 128), *slow((1, 40, 64, 64))],
    emulated_h100=[(1, 2, 128, 120), (1, 2, 100, 100), (2, 48, 24, 24)],
    cuda=[(1, 2, 100, 100), (1, 2, 256, 256), (2, 64, 128, 128)],
)
def test_a_large_mean_with_a_small_spread(backend, layout, shape, outliers):
    name = "instance_norm_modulate"
    given = adaptation(name, shape, layout=layout, device=backend.device)
    given[0] += 1e4
    OUTLIERS[outliers](given[0]).add_(1e5)
    found = outcome(function(backend.ops, name), given)
    exact, plain = (exact_outcome(function(oracle, name), given, d) for d in (torch.float64, torch.float32))
    # PyTorch's mean of channels_last planes adds up in float32, one number after the other.
    least = 1e-3 if backend.name == "reference" else 1e-6
    for a, b, c in zip(found, exact, plain, strict=True):
        assert relative_error(a, b) <= max(2 * relative_error(c, b), least)
    if backend.name != "reference":
        mean, rstd = backend.operators.instance_norm_modulate(*given, None, oracle.EPS)[1:]
        variance, right = torch.var_mean(given[0].double(), (2, 3), correction=0)
        assert ((mean - right).abs() <= 1.2e-7 * given[0].double().abs().amax((2, 3))).all()
        torch.testing.assert_close(rstd.double(), (variance + oracle.EPS).rsqrt(), rtol=least, atol=0)


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


def kinds(t):
    """Return 3 where a number is NaN, 1 or -1 where it is infinite, 0 elsewhere."""
    return torch.where(t.isnan(), 3, torch.where(t.isinf(), t.sign(), 0)).int()


@pytest.mark.parametrize("value", [*INFINITE[:2], *slow(INFINITE[2])])
@names
@layouts
@every("shape", [(2, 8, 5, 6), (1, 3, 1, 7)], emulated=[(2, 8, 8, 8)], cuda=[(2, 8, 40, 33), (2, 64, 72, 64)])
def test_what_is_not_finite_in_any_operand_shows_as_in_the_formula(backend, name, layout, shape, value):
    small = (*shape[:2], 1, 1)
    for dtype, logits in itertools.product((torch.float32, torch.bfloat16, torch.float64), (shape, small)):
        given = adaptation(name, shape, logits, dtype=dtype, layout=layout, device=backend.device)
        for operand, tensor in enumerate(given):
            spoilt = tensor.clone()
            spoilt[0, 1, -1, -1] = value
            some = [*given[:operand], spoilt, *given[operand + 1 :]]
            found = outcome(function(backend.ops, name), some)
            exact = exact_outcome(function(oracle, name), some)
            assert torch.equal(kinds(found[0]), kinds(exact[0])), operand
            for a, b in zip(found[1:], exact[1:], strict=True):  # NaN or infinite
                assert torch.equal(a.isfinite(), b.isfinite()), operand


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@layouts
@back_ends(*BACKENDS)
def test_a_closed_gate_lets_nothing_of_a_large_number_through(backend, layout, dtype):
    large = 1e300 if dtype == torch.float64 else 1e38
    for x, p1 in ((-large, 1.0), (-1.0, large), (1.0, -large), (-1000.0, 1.0)):
        like = torch.ones(2, 8, 3, 4, dtype=dtype, device=backend.device).contiguous(memory_format=layout)
        one = like[:1, :, :1, :1]
        y, dx, dlogits, _, _ = outcome(backend.ops.info_acon, [x * like, 40 * like, p1 * one, 0 * one])
        assert (y == 0).all()
        assert (dx == 0).all()
        assert (dlogits == 0).all()


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
