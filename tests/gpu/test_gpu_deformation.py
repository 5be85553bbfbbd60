"""deform_conv2d on a CUDA device, against the definition in float64 and against torchvision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.library import opcheck

from hida import ops
from hida.ops import dispatch
from hida.ops.deform_conv2d import deform_conv2d_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and dispatch.available()["cuda"]), reason="needs a GPU and the CUDA library"
    ),
]

NAMES = ("y", "x", "offset", "weight", "bias", "mask")
# Sums of up to 9,216 numbers, one after the other.
LIMITS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 8e-4}

# batch, C_in, C_out, height, width, kernel, groups, deformable groups, stride, padding, dilation
CASES = {
    "HIDA's 2² layer": (4, 512, 512, 2, 2, 3, 1, 2, 1, 1, 1),
    "HIDA's 4² layer": (4, 1024, 512, 4, 4, 3, 1, 2, 1, 1, 1),
    "8² map": (3, 256, 128, 8, 8, 3, 1, 2, 1, 1, 1),
    "large map": (2, 64, 64, 65, 67, 3, 1, 1, 1, 1, 1),
    "groups that cross": (2, 36, 12, 33, 29, 3, 2, 3, 1, 1, 1),
    "depthwise, batch 33": (33, 24, 24, 17, 12, 3, 24, 2, 2, 2, 2),
    "batch 37": (37, 5, 7, 11, 13, 3, 1, 1, 1, 0, 1),
    "large kernel": (2, 32, 16, 24, 24, 7, 1, 1, 1, 3, 1),
}


def arguments(case, dtype=torch.float32, device="cuda"):
    n, c_in, c_out, h, w, k, groups, deformable, stride, padding, dilation = CASES[case]
    out = [(size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size in (h, w)]
    shapes = [
        (n, c_in, h, w),
        (n, 2 * deformable * k * k, *out),
        (c_out, c_in // groups, k, k),
        (c_out,),
        (n, deformable * k * k, *out),
    ]
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes]
    tensors[1] *= 1.5
    return tensors, (stride, padding, dilation)


def native(x, offset, weight, bias, mask, steps):
    return ops.deform_conv2d(x, offset, weight, bias, *steps, mask)


def reference(x, offset, weight, bias, mask, steps):
    return deform_conv2d_reference(x, offset, weight, bias, *((s, s) for s in steps), mask)


def outcome(function, tensors, steps, upstream=None):
    given = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*given, steps)
    if upstream is None:
        upstream = torch.linspace(-1, 2, y.numel(), dtype=torch.float64, device=y.device).reshape(y.shape).cos()
    y.backward(upstream.to(y.dtype))
    return [y.detach(), *(None if t is None else t.grad for t in given)]


def assert_near(results, references, limit):
    for name, a, b in zip(NAMES, results, references, strict=True):
        error = ((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item()
        assert error <= limit, f"{name}: relative error {error:.2e}"


@pytest.fixture(autouse=True)
def natively_and_poisoned():
    """Memory that nobody has written is NaN. (warn_only: the reference gathers with atomics.)"""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with ops.backend("native"):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients(case, dtype):
    tensors, steps = arguments(case, dtype)
    found = outcome(native, tensors, steps)
    assert all(t.dtype == dtype for t in found)
    assert_near(found, outcome(reference, [t.double() for t in tensors], steps), LIMITS[dtype])


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("case", CASES)
def test_torchvision_agrees(case):
    torchvision = pytest.importorskip("torchvision")

    def theirs(x, offset, weight, bias, mask, steps):
        return torchvision.ops.deform_conv2d(x, offset, weight, bias, *steps, mask)

    tensors, steps = arguments(case, torch.float64)
    assert_near(outcome(native, tensors, steps), outcome(theirs, tensors, steps), 1e-12)


@pytest.mark.parametrize("path", ["tiny", "large"])
def test_either_path_takes_a_small_map(path, monkeypatch):
    monkeypatch.setenv("HIDA_DEFORM_PATH", path)
    for dtype in (torch.float32, torch.bfloat16):
        tensors, steps = arguments("8² map", dtype)
        expected = outcome(reference, [t.double() for t in tensors], steps)
        assert_near(outcome(native, tensors, steps), expected, LIMITS[dtype])


def test_tf32_is_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("HIDA_TF32", "1")
    for case in ("large map", "HIDA's 4² layer"):
        tensors, steps = arguments(case)
        expected = outcome(reference, [t.double() for t in tensors], steps)
        assert_near(outcome(native, tensors, steps), expected, 1e-3)


@pytest.mark.parametrize("case", ["HIDA's 4² layer", "large map", "groups that cross"])
def test_the_same_bits_every_time(case):
    for dtype in (torch.float32, torch.float16):
        tensors, steps = arguments(case, dtype)
        first = outcome(native, tensors, steps)
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, outcome(native, tensors, steps), strict=True))


def test_layouts_and_slices():
    (x, offset, weight, bias, mask), steps = arguments("large map", torch.bfloat16)
    plain = outcome(native, (x, offset, weight, bias, mask), steps)
    joint = torch.cat((offset, mask), 1).to(memory_format=torch.channels_last)
    parts = joint.split((offset.shape[1], mask.shape[1]), 1)
    wide = torch.zeros(2, 80, 65, 67, dtype=x.dtype, device="cuda")[:, 5:69]
    for other in (x.to(memory_format=torch.channels_last), wide.copy_(x)):
        found = outcome(native, (other, parts[0], weight, bias, parts[1]), steps)
        assert torch.equal(found[0], plain[0])
        assert_near(found, [t.double() for t in plain], LIMITS[torch.bfloat16])


def test_no_offset_is_an_illegal_address():
    tensors, steps = arguments("large map")
    special = torch.tensor([0, -1, -2, 64, 65, 66, math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9], device="cuda")
    count = tensors[1].numel()
    tensors[1] = special.repeat(count // len(special) + 1)[:count].reshape(tensors[1].shape)
    found = outcome(native, tensors, steps)
    torch.cuda.synchronize()
    assert_near(found, outcome(reference, [t.double() for t in tensors], steps), LIMITS[torch.float32])


def test_points_crowded_into_one_cell():
    tensors, steps = arguments("large map")
    row = torch.arange(65.0, device="cuda")[:, None]
    column = torch.arange(67.0, device="cuda")
    tensors[1][:, 0::2] = 30.25 - row
    tensors[1][:, 1::2] = 40.5 - column
    expected = outcome(reference, [t.double() for t in tensors], steps)
    assert_near(outcome(native, tensors, steps), expected, 3e-5)  # sums of 39,195 numbers in float


def test_a_graph_replays_with_new_data():
    for case in ("HIDA's 4² layer", "large map"):
        tensors, steps = arguments(case)
        static = [t.clone().requires_grad_() for t in tensors]
        upstream = torch.ones_like(native(*tensors, steps))

        def step(static=static, steps=steps, upstream=upstream):
            y = native(*static, steps)
            return y, *torch.autograd.grad(y, static, upstream)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        with torch.no_grad():
            for t in static:
                t.mul_(0.5)
        graph.replay()
        expected = outcome(native, [t * 0.5 for t in tensors], steps, upstream)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_side_streams_are_followed():
    tensors, steps = arguments("large map")
    expected = native(*tensors, steps)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late = [t.clone() for t in tensors]
        y = native(*late, steps)
    side.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("case", ["HIDA's 4² layer", "large map"])
def test_the_backward_follows_the_stream_of_its_forward(case):
    tensors, steps = arguments(case)
    leaves = [t.requires_grad_() for t in tensors]
    y = native(*leaves, steps)
    upstream = torch.linspace(-1, 1, y.numel(), device="cuda").reshape(y.shape)
    expected = torch.autograd.grad(y, leaves, upstream)
    late = torch.zeros_like(upstream)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        y = native(*leaves, steps)
        torch.cuda._sleep(50_000_000)
        late.copy_(upstream)  # seen only by what comes behind it on this stream
        found = torch.autograd.grad(y, leaves, late)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_of_the_tensors_counts():
    tensors, steps = arguments("large map")
    there = native(*(t.to("cuda:1") for t in tensors), steps)
    assert there.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(there.to("cuda:0"), native(*tensors, steps))


def test_devices_do_not_mix():
    (x, offset, weight, bias, mask), _ = arguments("large map")
    pairs = ([1, 1], [1, 1], [1, 1])
    with pytest.raises(RuntimeError, match="weight is not on the CUDA device"):
        torch.ops.hida.deform_conv2d(x, offset, weight.cpu(), bias, *pairs, mask)

    with pytest.raises(ops.OpError, match="weight is on cpu"):
        ops.deform_conv2d(x, offset, weight.cpu(), bias, padding=1, mask=mask)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("case", ["HIDA's 4² layer", "large map"])
def test_the_mixture_of_dtypes_that_autocast_makes(case):
    """As DOG calls it: pixels in bf16, offsets, weights and mask in float32; under autocast the same bits."""
    tensors, steps = arguments(case)
    tensors[0] = tensors[0].bfloat16()
    found = outcome(native, tensors, steps)
    assert [t.dtype for t in found] == [torch.bfloat16, *(t.dtype for t in tensors)]
    assert_near(found, outcome(reference, [t.double() for t in tensors], steps), 1e-2)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(native(*tensors, steps), found[0])


@pytest.mark.parametrize("case", ["HIDA's 4² layer", "groups that cross"])
def test_only_the_gradients_asked_for(case):
    tensors, steps = arguments(case)
    full = outcome(native, tensors, steps)[1:]
    for needed in itertools.product((False, True), repeat=5):
        if not any(needed):
            continue
        given = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]
        y = native(*given, steps)
        upstream = torch.linspace(-1, 2, y.numel(), dtype=torch.float64, device="cuda").reshape(y.shape).cos()
        y.backward(upstream.to(y.dtype))
        for t, expected, need in zip(given, full, needed, strict=True):
            assert torch.equal(t.grad, expected) if need else t.grad is None


def test_an_empty_batch():
    tensors, steps = arguments("large map")
    empty = [t[:0] if i in (0, 1, 4) else t for i, t in enumerate(tensors)]
    found = outcome(native, empty, steps)
    assert found[0].shape == (0, 64, 65, 67)
    assert all((t == 0).all() for t in found[1:])


def test_there_is_no_second_derivative():
    tensors, steps = arguments("batch 37")
    x = tensors[0].requires_grad_()
    (dx,) = torch.autograd.grad(native(x, *tensors[1:], steps).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize("case", ["batch 37", "HIDA's 2² layer"])
def test_opcheck(case):
    tensors, steps = arguments(case)
    x, offset, weight, bias, mask = (t.requires_grad_() for t in tensors)
    pairs = ([s, s] for s in steps)
    # The gradients' schema is the forward's; second derivatives, which it would ask for, are refused.
    opcheck(torch.ops.hida.deform_conv2d, (x, offset, weight, bias, *pairs, mask))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", ["HIDA's 4² layer", "large map"])
def test_compiles_as_one_graph(case, dynamic):
    tensors, steps = arguments(case)
    compiled = torch.compile(lambda *given: native(*given[:5], steps), fullgraph=True, dynamic=dynamic)
    found, expected = outcome(compiled, tensors, steps), outcome(native, tensors, steps)
    assert torch.equal(found[0], expected[0])
    assert_near(found, [t.double() for t in expected], 1e-6)


def test_more_elements_than_an_int_counts():
    n, c, side = 2, 8, 12288  # 2.4e9
    torch.use_deterministic_algorithms(False)
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GB of free memory")
    x = torch.zeros(n, c, side, side, dtype=torch.float16, device="cuda")
    x[-1, -1, -9:, -9:] = 1
    offset = torch.zeros(n, 2, side, side, dtype=torch.float16, device="cuda")
    weight = torch.ones(c, c, 1, 1, dtype=torch.float16, device="cuda")
    y = native(x, offset, weight, None, None, (1, 0, 1))
    assert y[-1, :, -9:, -9:].eq(1).all()
    assert y[-1].sum(dtype=torch.float64).item() == 81 * c
    assert y[0].count_nonzero().item() == 0
