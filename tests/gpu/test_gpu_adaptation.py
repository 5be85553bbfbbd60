"""info_acon, ida and instance_norm_modulate on a GPU, against plain PyTorch in float64.

``bash bench/gpu/run.sh sanitize`` watches the same kernels with compute-sanitizer; not through these tests, whose
poison hides from it what was never written.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from hida import ops
from hida.ops import OpError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not ops.available()["cuda"], reason="the native CUDA library is not built"),
]

DEVICE = "cuda"
NAMES = ("info_acon", "instance_norm_modulate", "with residual", "ida none", "ida activated", "ida input")
# ‖Δ‖/‖exact‖; float32 with the chip's own exp2 and 1/x, the 16-bit ones with the rounding of the result.
LIMITS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SHAPES = [
    *[(2, 5, 1, 1), (1, 3, 1, 19), (2, 3, 5, 7), (33, 5, 3, 3), (37, 6, 4, 8), (4, 64, 16, 16), (4, 48, 32, 32)],
    *[(2, 33, 33, 37), (3, 24, 64, 64), (2, 300, 65, 64), (2, 130, 128, 128), (1, 3, 128, 128), (1, 5, 129, 127)],
    *[(2, 100, 200, 204), (1, 3, 256, 256), (2, 150, 256, 256), (1, 2, 640, 512), (1, 1, 1024, 1031)],
    *[(2, 24, 72, 72), (37, 6, 3, 8), (1, 5, 168, 176), (2, 72, 40, 40), (3, 512, 4, 4), (2, 16, 2, 2)],
]


@pytest.fixture(autouse=True)
def natively_and_poisoned():
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    with ops.backend("native"):
        yield
    torch.use_deterministic_algorithms(False)


def randoms(*shapes, dtype=torch.float32, layout=torch.contiguous_format, seed=1, device=None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(s, generator=generator, dtype=torch.float32).to(device or DEVICE, dtype) for s in shapes)
    return [t.to(memory_format=layout) for t in made]


def operands(name, shape, logits=None, **kind) -> list[Tensor]:
    slopes = (1, shape[1], 1, 1), (1, shape[1], 1, 1)
    if name == "info_acon":
        return randoms(shape, logits or shape, *slopes, **kind)
    if name.startswith("ida"):
        return randoms(shape, logits or shape, shape, shape, *slopes, **kind)
    return randoms(*[shape] * (3 + (name == "with residual")), **kind)


def function_of(name):
    if name == "info_acon":
        return ops.info_acon
    if name.startswith("ida"):
        return lambda *given: ops.ida(*given, name.removeprefix("ida "))
    return ops.instance_norm_modulate


def outcome(function, inputs, needed=None) -> list[Tensor | None]:
    """The result, and the gradients, for an upstream gradient that is not constant."""
    given = [t.detach().requires_grad_(needed is None or needed[i]) for i, t in enumerate(inputs)]
    y = function(*given)
    if y.requires_grad:
        upstream = torch.linspace(-9, 9, y.numel(), dtype=torch.float64, device=y.device).reshape(y.shape).cos()
        y.backward(torch.empty_like(y).copy_(upstream))  # in the memory layout of y, as from a layer behind it
    return [y.detach(), *(t.grad for t in given)]


def assert_near(found, exact, eager, limit, x):
    """Within ``limit``, or thrice the error of the plain computation where that is worse.

    A sum over planes is as good as the rounding of its terms, which are about as large as dx·x, and may cancel.
    """
    for i, (a, b, c) in enumerate(zip(found, exact, eager, strict=True)):
        assert a.shape == b.shape
        allowed = max(limit * float(b.double().norm()), 3 * float((c.double() - b).norm()), 1e-30)
        if a.shape != x.shape:
            allowed += limit / 20 * float((exact[1] * x).abs().sum())
        error = float((a.double() - b).norm())
        assert error <= allowed, f"output {i}: error {error:.2e} > {allowed:.2e}, of {float(b.norm()):.2e}"


def check(name, inputs, limit=None):
    function, dtype = function_of(name), inputs[0].dtype
    found = outcome(function, inputs)
    assert [t.dtype for t in found] == [dtype, *(t.dtype for t in inputs)]
    with ops.backend("reference"):
        exact = outcome(function, [t.double() for t in inputs])
        eager = outcome(function, inputs)
    assert_near(found, exact, eager, limit or LIMITS[dtype], inputs[0].double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, layout, shape):
    check(name, operands(name, shape, layout=layout))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(2, 19, 9, 11), (4, 40, 32, 32), (2, 70, 128, 128), (1, 2, 256, 264)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, shape, layout, dtype):
    check(name, operands(name, shape, dtype=dtype, layout=layout))


# Channels in packs of eight: planes that a block has as a whole, two kernels for others; tiles of every width.
USUAL = [
    *[(2, 512, 2, 2), (3, 24, 4, 6), (4, 512, 16, 16), (16, 256, 32, 32), (2, 40, 33, 37), (16, 128, 64, 64)],
    *[(16, 64, 128, 128), (1, 64, 128, 128), (2, 40, 128, 128), (1, 16, 256, 264)],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", USUAL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_usual_channels_last(name, shape, dtype):
    n, c = shape[:2]
    for logits in (shape, (n, c, 1, 1)) if name.startswith(("info", "ida")) else (shape,):
        given = operands(name, shape, logits=logits, dtype=dtype, layout=torch.channels_last)
        check(name, given)


@pytest.mark.parametrize("shape", [(3, 24, 9, 7), (16, 64, 72, 64), (4, 128, 64, 64)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_usual_channels_last_the_same_bits_and_only_what_is_asked_for(name, shape):
    function, given = function_of(name), operands(name, shape, dtype=torch.bfloat16, layout=torch.channels_last)
    full = outcome(function, given)
    for needed in [[True] * len(given), *([i == k for i in range(len(given))] for k in range(len(given)))]:
        some = outcome(function, given, needed)
        for a, b, need in zip(some[1:], full[1:], needed, strict=True):
            assert torch.equal(a, b) if need else a is None


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 8, 8), (1, 2, 96, 96)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_mixed_dtypes(name, shape):
    for kinds in (
        (torch.bfloat16, torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
    ):
        given = [t.to(kind) for t, kind in zip(operands(name, shape), itertools.cycle(kinds), strict=False)]
        check(name, given, limit=4e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(3, 18, 6, 5), (2, 4, 16, 16), (1, 2, 80, 80), (2, 40, 128, 128)], ids=str)
@pytest.mark.parametrize("name", ["info_acon", "ida activated"])
def test_every_shape_of_logits(name, shape, layout):
    n, c, h, w = shape
    for logits in ((n, 1, h, w), (n, c, 1, 1), (1, c, 1, 1)):
        check(name, operands(name, shape, logits=logits, layout=layout))


VIEWS = {
    "every second row and column": lambda t: t[:, :, ::2, ::2],
    "sides exchanged": lambda t: t.transpose(2, 3),
    "channels from the third on": lambda t: t[:, 2:],
    "a window": lambda t: t[:, :, 1:-1, 3:],
    "a window on packs": lambda t: t[:, :, 2:10, 8:],
    "rows of a wider image": lambda t: t[..., :8],
    "one image for all": lambda t: t[:1].expand(3, -1, -1, -1),
    "one row for all": lambda t: t[:, :, :1].expand(-1, -1, 7, -1),
    "misaligned": lambda t: t.flatten()[1 : 1 + t.numel() // 2].reshape(1, *t.shape[1:]),
    "images and channels exchanged": lambda t: t.transpose(0, 1),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["info_acon", "ida input", "with residual"])
def test_views_of_any_strides(name, dtype, view):
    slopes = 0 if name == "with residual" else 2
    given = operands(name, (2, 6, 16, 24), dtype=dtype)
    maps = [VIEWS[view](t) for t in given[: len(given) - slopes]]
    check(name, maps + randoms(*[(1, maps[0].shape[1], 1, 1)] * slopes, dtype=dtype))


def test_slices_of_one_tensor_are_not_copied():
    h, joint, p1, p2 = randoms((2, 8, 64, 64), (2, 24, 64, 64), (1, 8, 1, 1), (1, 8, 1, 1))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = ops.ida(h, *joint.chunk(3, 1), p1, p2)
    assert torch.cuda.max_memory_allocated() - before <= y.numel() * 4 + 65536
    check("ida activated", [h, *joint.chunk(3, 1), p1, p2])


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (1, 2, 96, 88)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_only_the_gradients_asked_for(name, shape):
    function, given = function_of(name), operands(name, shape)
    full = outcome(function, given)
    for needed in itertools.product((False, True), repeat=len(given)):
        some = outcome(function, given, needed)
        for a, b, need in zip(some[1:], full[1:], needed, strict=True):
            assert torch.equal(a, b) if need else a is None


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_empty_tensors(name, shape):
    found = outcome(function_of(name), operands(name, shape))
    assert all((a == 0).all() for a in found[1:])


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name):
    function = function_of(name)
    inputs = [t.double().requires_grad_() for t in operands(name, (2, 2, 2, 3))]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("side", [64, 100, 256])
def test_a_large_mean_with_a_small_spread(side):
    x, gamma, beta = randoms(*[(1, 2, side, side)] * 3)
    x += 1e4
    found = ops.instance_norm_modulate(x, gamma, beta)
    with ops.backend("reference"):
        exact = ops.instance_norm_modulate(*(t.double() for t in (x, gamma, beta)))
        eager = ops.instance_norm_modulate(x, gamma, beta)
    assert (found - exact).norm() <= max(2 * (eager - exact).norm(), 1e-6 * exact.norm())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 3, 8, 8), (2, 3, 72, 64)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_plane(name, shape, value):
    given = operands(name, shape)
    given[0][0, 1, 2, 3] = value
    y = function_of(name)(*given)
    with ops.backend("reference"):
        expected = function_of(name)(*given)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert y[1].isfinite().all()
    assert y[0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_switches(dtype):
    x = torch.linspace(-200, 200, 401, dtype=dtype, device=DEVICE).reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1, dtype=dtype, device=DEVICE)
    for logit in (-1e4, -90.0, 0.0, 90.0, 1e4):
        given = x, torch.full_like(x, logit), 2 * one, -one
        found = outcome(ops.info_acon, given)
        with ops.backend("reference"):
            expected = outcome(ops.info_acon, [t.double() for t in given])
        for a, b in zip(found[:3], expected[:3], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_the_logistic_function_to_a_few_units_in_the_last_place():
    z = torch.linspace(-80, 80, 100_001, device=DEVICE)
    one, zero = torch.ones(1, 1, 1, 1, device=DEVICE), torch.zeros(1, 1, 1, 1, device=DEVICE)
    # θ = σ(40) is 1 in float32; with x = z, p1 = 1, p2 = 0 the result is z·σ(z).
    found = ops.info_acon(z.reshape(1, 1, 1, -1), 40 * one, one, zero).flatten().double()
    exact = z.double() * torch.sigmoid(z.double())
    units = (found - exact).abs() / exact.abs().clamp_min(1e-37) / torch.finfo(torch.float32).eps
    assert units.max() <= 6


@pytest.mark.parametrize("shape", [(3, 40, 24, 24), (2, 64, 128, 128), (1, 2, 512, 512)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_every_time(name, shape):
    function, given = function_of(name), operands(name, shape)
    first = outcome(function, given)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, outcome(function, given), strict=True))


@pytest.mark.parametrize("shape", [(2, 8, 16, 16), (2, 64, 128, 128), (1, 2, 256, 256)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_capture_into_a_graph_and_replay_with_new_data(name, shape):
    function, inputs = function_of(name), operands(name, shape)
    static = [t.clone().requires_grad_() for t in inputs]
    upstream = torch.ones(shape, device=DEVICE)

    def step() -> list[Tensor]:
        y = function(*static)
        return [y.detach(), *torch.autograd.grad(y, static, upstream)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (3, 4):
        fresh = operands(name, shape, seed=seed)
        with torch.no_grad():
            for t, new in zip(static, fresh, strict=True):
                t.copy_(new)
        graph.replay()
        again = [t.clone() for t in captured]
        assert all(torch.equal(a, b) for a, b in zip(again, step(), strict=True))


def test_the_current_stream_is_used():
    shape = (4, 64, 64, 64)
    x, gamma, beta = operands("instance_norm_modulate", shape)
    expected = ops.instance_norm_modulate(x, gamma, beta)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)  # seen only by what comes behind it on this stream
        found = ops.instance_norm_modulate(late, gamma, beta)
    side.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_follows_the_stream_of_its_forward(name):
    function, given = function_of(name), operands(name, (4, 32, 64, 64))
    upstream = randoms((4, 32, 64, 64), seed=2)[0]
    leaves = [t.requires_grad_() for t in given]
    expected = torch.autograd.grad(function(*leaves), leaves, upstream)
    late = torch.zeros_like(upstream)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        y = function(*leaves)
        torch.cuda._sleep(50_000_000)
        late.copy_(upstream)
        found = torch.autograd.grad(y, leaves, late)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device only")
def test_a_second_device():
    given = operands("ida activated", (2, 8, 96, 96), device="cuda:1")
    before = torch.cuda.current_device()
    found = outcome(function_of("ida activated"), given)
    assert torch.cuda.current_device() == before
    assert all(t.device == torch.device("cuda:1") for t in found)
    here = outcome(function_of("ida activated"), [t.to("cuda:0") for t in given])
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, here, strict=True))
    with pytest.raises(RuntimeError, match="gamma is on another device than x"):
        torch.ops.hida.instance_norm_modulate(given[0], given[2].to("cuda:0"), given[3], None, 1e-5)


def test_devices_do_not_mix():
    x, gamma, beta = randoms(*[(1, 2, 3, 4)] * 3)
    with pytest.raises(OpError, match="gamma is on cpu"):
        ops.instance_norm_modulate(x, gamma.cpu(), beta)
    with pytest.raises(RuntimeError, match="gamma is not on the CUDA device"):
        torch.ops.hida.instance_norm_modulate(x, gamma.cpu(), beta, None, 1e-5)


def test_more_elements_than_32_bits_count():
    torch.use_deterministic_algorithms(False)
    shape = (33, 64, 1024, 1024)
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("the device has less than 24 GiB of free memory")
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_().requires_grad_()
    logits, p1, p2 = randoms((33, 64, 1, 1), (1, 64, 1, 1), (1, 64, 1, 1), dtype=torch.bfloat16)
    functions = {
        "info_acon": lambda x, logits: ops.info_acon(x, logits, p1.to(x.dtype), p2.to(x.dtype)),
        "instance_norm_modulate": lambda x, logits: ops.instance_norm_modulate(
            x, logits.expand(x.shape), logits.expand(x.shape)
        ),
        "ida": lambda x, logits: ops.ida(
            x, logits, logits.expand(x.shape), logits.expand(x.shape), p1.to(x.dtype), p2.to(x.dtype)
        ),
    }
    for name, function in functions.items():
        y = function(x, logits)
        (dx,) = torch.autograd.grad(y, x, x.detach())
        for n in (0, 32):  # the last image lies beyond the 2³¹st element
            one = x.detach()[n : n + 1].float().requires_grad_()
            with ops.backend("reference"):
                exact = function(one, logits[n : n + 1].float())
            (gradient,) = torch.autograd.grad(exact, one, one.detach())
            for found, right in ((y, exact), (dx, gradient)):
                difference = (found[n : n + 1].detach() - right.detach()).norm()
                assert difference <= 4e-3 * right.detach().norm(), f"{name}, image {n}"
        del y, dx


def test_opcheck():
    x, joint, gamma, p1, p2 = (
        t.requires_grad_() for t in randoms((2, 3, 4, 5), (2, 9, 4, 5), (2, 3, 4, 5), (1, 3, 1, 1), (1, 3, 1, 1))
    )
    h = torch.ops.hida
    for logits in (joint[:, :3], joint[:, :1], joint[:, :3, :1, :1], joint[:1, :3, :1, :1]):
        one = logits.detach().requires_grad_()
        opcheck(h.info_acon, (x, one, p1, p2))
        opcheck(h.ida, (x, one, gamma, gamma.detach(), p1, p2, 1, 1e-5))
    opcheck(h.instance_norm_modulate, (x, gamma, gamma.detach(), None, 1e-5))


@pytest.mark.parametrize("how", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(how):
    def function(h, joint, p1, p2):
        f = ops.ida(h, *joint.chunk(3, 1), p1, p2)
        return ops.instance_norm_modulate(ops.info_acon(f, joint[:, :1], p1, p2), f, f)

    compiled = torch.compile(function, fullgraph=True, backend=how)
    for n, c, h, w in ((2, 3, 4, 5), (3, 3, 6, 5)):
        inputs = randoms((n, c, h, w), (n, 3 * c, h, w), (1, c, 1, 1), (1, c, 1, 1))
        for a, b in zip(outcome(compiled, inputs), outcome(function, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_the_dtype_is_that_of_the_input(name):
    for dtype in (torch.float32, torch.bfloat16):
        given = operands(name, (2, 3, 8, 8), dtype=dtype)
        plain = function_of(name)(*given)
        with torch.autocast("cuda", torch.bfloat16):
            found = function_of(name)(*given)
        assert found.dtype == dtype
        assert torch.equal(found, plain)
