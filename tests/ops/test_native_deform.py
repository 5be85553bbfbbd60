"""The native deform_conv2d against the reference in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from operands import deformation, relative_error, upstream_of
from torch.library import opcheck

from hida import ops
from hida.ops import library

pytestmark = pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")

LIMITS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
NAMES = ("x", "offset", "weight", "bias", "mask")

# batch, C_in, C_out, height, width, kernel, groups, deformable groups, stride, padding, dilation
CASES = {
    "tiny map": (1, 40, 30, 4, 4, (3, 3), 1, 2, 1, 1, 1),
    "tiny map, batch": (5, 34, 10, 2, 2, (3, 3), 1, 2, 1, 1, 1),
    "one tile exactly": (1, 16, 13, 8, 8, (3, 3), 1, 1, 1, 1, 1),
    "tiles across images": (7, 20, 9, 3, 5, (3, 3), 1, 1, 1, 1, 1),
    "large map": (2, 35, 26, 17, 19, (3, 3), 1, 1, 1, 1, 1),
    "groups that cross blocks": (2, 36, 12, 9, 11, (3, 3), 2, 3, 1, 1, 1),
    "depthwise": (2, 18, 18, 9, 10, (3, 3), 18, 2, 1, 1, 1),
    "batch 33, steps": (33, 6, 4, 7, 6, (3, 2), 2, 1, (2, 1), (1, 2), (1, 2)),
    "one pixel": (2, 17, 5, 1, 1, (1, 1), 1, 1, 1, 0, 1),
}


def arguments(case, dtype=torch.float32, masked=True):
    return deformation(CASES[case], dtype, masked)


def call(tensors, steps):
    x, offset, weight, bias, mask = tensors
    return ops.deform_conv2d(x, offset, weight, bias, *steps, mask)


def outcome(tensors, steps, needed=(True,) * 5):
    given = [
        None if t is None else t.detach().clone().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)
    ]
    y = call(given, steps)
    if y.requires_grad:
        y.backward(upstream_of(y))
    return [y.detach(), *(None if t is None else t.grad for t in given)]


def assert_near(found, expected, limit):
    for name, a, b in zip(("y", *NAMES), found, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape
            error = relative_error(a, b)
            assert error <= limit, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_in_every_geometry(case, masked):
    tensors, steps = arguments(case, masked=masked)
    with ops.backend("native"):
        found = outcome(tensors, steps)
    with ops.backend("reference"):
        expected = outcome([None if t is None else t.double() for t in tensors], steps)
    assert_near(found, expected, 2e-6)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("case", ["tiny map", "large map"])
def test_dtypes(case, dtype):
    tensors, steps = arguments(case, dtype)
    with ops.backend("native"):
        found = outcome(tensors, steps)
    assert all(t.dtype == dtype for t in found)
    with ops.backend("reference"):
        expected = outcome([t.double() for t in tensors], steps)
    assert_near(found, expected, LIMITS[dtype] * 2)


def test_layouts_and_slices():
    tensors, steps = arguments("large map")
    expected = outcome(tensors, steps)
    x, offset, weight, bias, mask = tensors
    joint = torch.cat((offset, mask), 1).to(memory_format=torch.channels_last)
    offset, mask = joint.split((offset.shape[1], mask.shape[1]), 1)
    last = [t.to(memory_format=torch.channels_last) for t in (x, weight)]
    with ops.backend("native"):
        y = call([last[0], offset, last[1], bias, mask], steps)
    torch.testing.assert_close(y, expected[0], rtol=0, atol=0)


def test_only_the_gradients_asked_for():
    tensors, steps = arguments("groups that cross blocks", torch.float64)
    with ops.backend("reference"):
        full = outcome(tensors, steps)
    for needed in itertools.product((False, True), repeat=5):
        with ops.backend("native"):
            found = outcome(tensors, steps, needed)
        wanted = [full[0], *(g if need else None for g, need in zip(full[1:], needed, strict=True))]
        assert_near(found, wanted, 1e-12)


@pytest.mark.parametrize("case", ["tiny map", "large map", "batch 33, steps"])
def test_the_same_bits_whatever_the_threads(case):
    tensors, steps = arguments(case)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            with ops.backend("native"):
                results.append(outcome(tensors, steps))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_second_derivative_is_refused_and_a_first_is_not():
    tensors, steps = arguments("one pixel", torch.float64)
    tensors = [t.requires_grad_() for t in tensors]
    with ops.backend("native"):
        grad = torch.autograd.grad(call(tensors, steps).square().sum(), tensors[0], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="no second derivative in its native kernels"):
            grad.sum().backward()
    with ops.backend("reference"):
        grad = torch.autograd.grad(call(tensors, steps).square().sum(), tensors[0], create_graph=True)[0]
        grad.sum().backward()


def test_opcheck():
    for case, masked in (("tiny map, batch", True), ("groups that cross blocks", False)):
        (x, offset, weight, bias, mask), steps = arguments(case, masked=masked)
        given = [None if t is None else t.requires_grad_() for t in (x, offset, weight, bias)]
        opcheck(torch.ops.hida.deform_conv2d, (*given, *map(list, steps), mask))


def test_compiles_as_one_graph():
    tensors, steps = arguments("tiny map")
    compiled = torch.compile(lambda *given: call(given, steps), fullgraph=True, backend="aot_eager")
    with ops.backend("native"):
        torch.testing.assert_close(compiled(*tensors), call(tensors, steps), rtol=0, atol=0)


def test_a_direct_call_with_wrong_arguments_is_refused():
    (x, offset, weight, bias, mask), (stride, padding, dilation) = arguments("tiny map")
    op = torch.ops.hida.deform_conv2d
    with pytest.raises(RuntimeError, match="offset must have"):
        op(x, offset[:, :-1], weight, bias, stride, padding, dilation, mask)
    with pytest.raises(RuntimeError, match="mask must have shape"):
        op(x, offset, weight, bias, stride, padding, dilation, mask[:, 1:])
    with pytest.raises(RuntimeError, match="smaller than the kernel"):
        op(x, offset, weight, bias, stride, (0, 0), (9, 9), mask)
    with pytest.raises(RuntimeError, match="at least 1"):
        op(x, offset, weight, bias, (0, 1), padding, dilation, mask)
