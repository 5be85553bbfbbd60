"""What the ops do that only a GPU has: streams, graphs, a second device, tensors of more than 2³¹ elements.

Results and gradients are tested in tests/ops/contract. compute-sanitizer watches the same kernels in
bench/gpu/launches.py (docs/kernels.md); not through tests, whose poison hides from it what was never written.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from backends import BACKENDS
from checking import assert_same, deform, function, outcome
from operands import NAMES, NHWC, adaptation, deformation, randoms, upstream_of
from torch import Tensor

from hida import ops
from hida.ops.leaky_norm import leaky_norm

LAYERS = ("HIDA's 4² layer", "large map")
NORM = "leaky norm"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*deterministic")]


@pytest.fixture(autouse=True)
def natively_and_poisoned():
    BACKENDS["cuda"].skip()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    with ops.backend("native"):
        yield
    torch.use_deterministic_algorithms(False)


def operation(name, shape=(4, 32, 64, 64), device="cuda", **kind):
    """Return an op as a function of its tensors, and those tensors; ``name``: of the adaptation, of LAYERS, or NORM."""
    if name == NORM:
        return lambda x: leaky_norm(x, 0.2, 0.2), randoms(shape, layout=NHWC, device=device, **kind)
    if name not in LAYERS:
        return function(ops, name), adaptation(name, shape, device=device, **kind)
    tensors, steps = deformation(name, device=device, **kind)
    return deform(ops, steps), tensors


@contextlib.contextmanager
def another_stream(busy: bool = True):
    """Run the block on a side stream that has much to do before; wait for it."""
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        if busy:
            torch.cuda._sleep(50_000_000)
        yield
    side.synchronize()


every_op = pytest.mark.parametrize("name", [*NAMES, *LAYERS, NORM])


@pytest.mark.parametrize("shape", [(2, 8, 16, 16), (2, 64, 128, 128), (1, 2, 256, 256)], ids=str)
@every_op
def test_capture_into_a_graph_and_replay_with_new_data(name, shape):
    if name in LAYERS and shape != (2, 8, 16, 16):
        pytest.skip("the shape of a deform_conv2d is its own")
    call, inputs = operation(name, shape)
    static = [t.clone().requires_grad_() for t in inputs]
    upstream = torch.ones_like(call(*static).detach())

    def step() -> list[Tensor]:
        y = call(*static)
        return [y.detach(), *torch.autograd.grad(y, static, upstream)]

    with another_stream(busy=False):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (3, 4):
        with torch.no_grad():
            for t, new in zip(static, operation(name, shape, seed=seed)[1], strict=True):
                t.copy_(new)
        graph.replay()
        assert_same([t.clone() for t in captured], step())


@every_op
def test_the_current_stream_is_used(name):
    call, given = operation(name)
    expected = call(*given)
    late = [torch.zeros_like(t) for t in given]
    with another_stream():
        for t, right in zip(late, given, strict=True):
            t.copy_(right)  # seen only by what comes behind it on this stream
        found = call(*late)
    assert torch.equal(found, expected)


@every_op
def test_the_backward_follows_the_stream_of_its_forward(name):
    call, given = operation(name)
    leaves = [t.requires_grad_() for t in given]
    y = call(*leaves)
    upstream = upstream_of(y.detach())
    expected = torch.autograd.grad(y, leaves, upstream)
    late = torch.zeros_like(upstream)
    with another_stream(busy=False):
        y = call(*leaves)
        torch.cuda._sleep(50_000_000)
        late.copy_(upstream)  # seen only by what comes behind it on this stream
        found = torch.autograd.grad(y, leaves, late)
    assert_same(found, expected)


def test_slices_of_one_tensor_take_no_memory():
    h, joint, p1, p2 = randoms((2, 8, 64, 64), (2, 24, 64, 64), (1, 8, 1, 1), (1, 8, 1, 1), device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = ops.ida(h, *joint.chunk(3, 1), p1, p2)
    assert torch.cuda.max_memory_allocated() - before <= y.numel() * 4 + 65536


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", ["ida activated", "large map"])
def test_a_second_device(name):
    call, given = operation(name, (2, 8, 96, 96), device="cuda:1")
    before = torch.cuda.current_device()
    found = outcome(call, given)
    assert torch.cuda.current_device() == before
    assert all(t.device == torch.device("cuda:1") for t in found)
    here = outcome(call, [t.to("cuda:0") for t in given])
    if name == "ida activated":
        assert_same([t.cpu() for t in found], [t.cpu() for t in here])
        with pytest.raises(RuntimeError, match="gamma is on another device than x"):
            torch.ops.hida.instance_norm_modulate(given[0], given[2].to("cuda:0"), given[3], None, 1e-5)
    else:
        assert torch.equal(found[0].cpu(), here[0].cpu())


def test_devices_do_not_mix():
    x, gamma, beta = randoms(*[(1, 2, 3, 4)] * 3, device="cuda")
    with pytest.raises(ops.OpError, match="gamma is on cpu"):
        ops.instance_norm_modulate(x, gamma.cpu(), beta)
    with pytest.raises(RuntimeError, match="gamma is not on the CUDA device"):
        torch.ops.hida.instance_norm_modulate(x, gamma.cpu(), beta, None, 1e-5)
    (x, offset, weight, bias, mask), steps = deformation("large map", device="cuda")
    with pytest.raises(ops.OpError, match="weight is on cpu"):
        ops.deform_conv2d(x, offset, weight.cpu(), bias, *steps, mask)
    with pytest.raises(RuntimeError, match="weight is not on the CUDA device"):
        torch.ops.hida.deform_conv2d(x, offset, weight.cpu(), bias, *map(list, steps), mask)


def free_memory_or_skip(gigabytes: int) -> None:
    torch.use_deterministic_algorithms(False)  # which would fill these tensors
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes << 30:
        pytest.skip(f"the device has less than {gigabytes} GiB of free memory")


def test_more_elements_than_32_bits_count():
    free_memory_or_skip(24)
    shape = (33, 64, 1024, 1024)
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_().requires_grad_()
    small = (33, 64, 1, 1), (1, 64, 1, 1), (1, 64, 1, 1)
    logits, p1, p2 = randoms(*small, dtype=torch.bfloat16, device="cuda")
    functions = {
        "info_acon": lambda x, logits: ops.info_acon(x, logits, p1.to(x.dtype), p2.to(x.dtype)),
        "instance_norm_modulate": lambda x, logits: ops.instance_norm_modulate(
            x, logits.expand(x.shape), logits.expand(x.shape)
        ),
        "ida": lambda x, logits: ops.ida(
            x, logits, logits.expand(x.shape), logits.expand(x.shape), p1.to(x.dtype), p2.to(x.dtype)
        ),
    }
    for name, call in functions.items():
        y = call(x, logits)
        (dx,) = torch.autograd.grad(y, x, x.detach())
        for n in (0, 32):  # the last image is beyond the 2³¹st element
            one = x.detach()[n : n + 1].float().requires_grad_()
            with ops.backend("reference"):
                exact = call(one, logits[n : n + 1].float())
            (gradient,) = torch.autograd.grad(exact, one, one.detach())
            for found, right in ((y, exact), (dx, gradient)):
                difference = (found[n : n + 1].detach() - right.detach()).norm()
                assert difference <= 4e-3 * right.detach().norm(), f"{name}, image {n}"
        del y, dx


def test_more_elements_of_a_deform_conv2d_than_an_int_counts():
    free_memory_or_skip(60)
    n, c, side = 2, 8, 12288  # 2.4e9
    make = {"dtype": torch.float16, "device": "cuda"}
    x = torch.zeros(n, c, side, side, **make)
    x[-1, -1, -9:, -9:] = 1
    y = ops.deform_conv2d(x, torch.zeros(n, 2, side, side, **make), torch.ones(c, c, 1, 1, **make))
    assert y[-1, :, -9:, -9:].eq(1).all()
    assert y[-1].sum(dtype=torch.float64).item() == 81 * c
    assert y[0].count_nonzero().item() == 0
