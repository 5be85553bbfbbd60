"""The native info_acon, instance_norm_modulate and ida against the reference in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from operands import ADAPTATION_LIMITS as LIMITS
from operands import adaptation, randoms, relative_error, upstream_of
from torch.library import opcheck

from hida import ops
from hida.errors import HidaError
from hida.ops import library

pytestmark = pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")

SHAPES = {  # odd widths, planes longer than a line, of one pixel, and fewer pixels than a vector
    "odd": (2, 3, 5, 7),
    "long": (1, 2, 33, 37),
    "point": (2, 5, 1, 1),
    "row": (1, 3, 1, 19),
    "column": (2, 3, 19, 1),
    "many channels": (2, 37, 4, 4),
}
LOGITS = ("whole", "pixel", "channel", "shared")


def logits_shape(shape, kind):
    n, c, h, w = shape
    return {"whole": shape, "pixel": (n, 1, h, w), "channel": (n, c, 1, 1), "shared": (1, c, 1, 1)}[kind]


def call(name, shape, dtype=torch.float32, logits="whole", layout=torch.contiguous_format):
    """Return a function of an op's tensors, and those tensors."""
    builder = "with residual" if name == "instance_norm_modulate" else name
    inputs = adaptation(builder, shape, logits_shape(shape, logits), dtype=dtype, layout=layout)
    if name.startswith("ida"):
        return lambda *given: ops.ida(*given, name.removeprefix("ida ")), inputs
    return getattr(ops, name), inputs


CALLS = ("info_acon", "instance_norm_modulate", "ida activated", "ida input", "ida none")


def outcome(function, inputs, needed=None):
    """The result and the gradients of ``function``, for an upstream gradient that is not constant."""
    given = [t.detach().clone().requires_grad_(needed is None or needed[i]) for i, t in enumerate(inputs)]
    y = function(*given)
    if y.requires_grad:
        y.backward(upstream_of(y))
    return [y.detach(), *(t.grad for t in given)]


def assert_near(found, expected, limit, plain=None):
    """Compare with what is exact; where the plain computation itself is worse than ``limit``, with thrice its error."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a is None) == (b is None)
        if a is None:
            continue
        assert a.shape == b.shape
        assert b.norm() > 0 or (a == 0).all(), f"output {i} is not 0"
        error = relative_error(a, b)
        bound = limit if plain is None else max(limit, 3 * relative_error(plain[i], b))
        assert error <= bound, f"output {i}: relative error {error:.2e} > {bound:.2e}"


def check(name, shape, dtype=torch.float32, **kind):
    function, inputs = call(name, shape, dtype, **kind)
    with ops.backend("native"):
        found = outcome(function, inputs)
    assert all(t.dtype == dtype for t in found)
    with ops.backend("reference"):
        expected, plain = outcome(function, [t.double() for t in inputs]), outcome(function, inputs)
    assert_near(found, expected, LIMITS[dtype], plain)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_in_every_shape(name, shape):
    check(name, shape)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", CALLS)
def test_dtypes_and_layouts(name, layout, dtype):
    check(name, (2, 19, 9, 11), dtype, layout=layout)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["info_acon", "ida activated"])
def test_every_shape_of_logits(name, layout, logits):
    check(name, (3, 18, 6, 5), logits=logits, layout=layout)


@pytest.mark.parametrize("name", CALLS)
def test_the_layout_of_the_result_is_that_of_the_input(name):
    function, inputs = call(name, (2, 6, 5, 4), layout=torch.channels_last)
    y, dx, *_ = outcome(function, inputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CALLS)
def test_views_of_any_strides(name):
    function, inputs = call(name, (2, 6, 8, 10))
    views = {
        "every second row and column": lambda t: t[:, :, ::2, ::2] if t.shape[2] > 1 else t,
        "flipped sides": lambda t: t.transpose(2, 3) if t.shape[2] > 1 else t,
        "channels from the third on": lambda t: t[:, 3:],
        "channels exchanged": lambda t: t[:, :4].transpose(0, 1)[:2].transpose(0, 1),
        "one image for all": lambda t: t[:1].expand(3, -1, -1, -1) if t.shape[2] > 1 else t,
        "one row for all": lambda t: t[:, :, :1].expand(-1, -1, 7, -1) if t.shape[2] > 1 else t,
        "misaligned": lambda t: (
            t.flatten()[1 : 1 + t.numel() // 2].reshape(t.shape[0], -1, *t.shape[2:]) if t.shape[0] == 2 else t[:, :3]
        ),
    }
    for title, view in views.items():
        strided = [view(t) for t in inputs]
        with ops.backend("native"):
            found = function(*strided)
        with ops.backend("reference"):
            expected = function(*(t.double() for t in strided))
        assert found.shape == expected.shape, title
        assert_near([found], [expected], 1e-6)


def test_slices_of_one_tensor_are_not_copied():
    h, joint, p1, p2 = randoms((1, 8, 64, 64), (1, 24, 64, 64), (1, 8, 1, 1), (1, 8, 1, 1))
    logits, gamma, beta = joint.chunk(3, 1)
    with ops.backend("native"), torch.profiler.profile() as profile:
        ops.ida(h, logits, gamma, beta, p1, p2)
    called = {event.key for event in profile.key_averages()}
    assert "hida::ida" in called
    assert not {"aten::copy_", "aten::contiguous", "aten::clone"} & called


@pytest.mark.parametrize("name", CALLS)
def test_mixed_dtypes(name):
    function, inputs = call(name, (2, 3, 5, 6))
    kinds = itertools.cycle((torch.bfloat16, torch.float32, torch.float16))
    inputs = [t.to(dtype) for t, dtype in zip(inputs, kinds, strict=False)]
    with ops.backend("native"):
        found = outcome(function, inputs)
    assert [t.dtype for t in found] == [inputs[0].dtype, *(t.dtype for t in inputs)]
    with ops.backend("reference"):
        expected = outcome(function, [t.double() for t in inputs])
    assert_near(found, expected, 4e-3)


@pytest.mark.parametrize("name", CALLS)
def test_only_the_gradients_asked_for(name):
    function, inputs = call(name, (1, 2, 3, 4), torch.float64)
    with ops.backend("reference"):
        full = outcome(function, inputs)
    for needed in itertools.product((False, True), repeat=len(inputs)):
        with ops.backend("native"):
            found = outcome(function, inputs, needed)
        assert_near(found, [full[0], *(g if need else None for g, need in zip(full[1:], needed, strict=True))], 1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_first_and_second_derivatives(name):
    function, inputs = call(name, (2, 2, 2, 3), torch.float64)
    inputs = [t.requires_grad_() for t in inputs]
    with ops.backend("native"):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_one_tensor_in_two_places_gets_both_gradients():
    x = randoms((1, 2, 3, 4), dtype=torch.float64)[0].requires_grad_()
    for create in (False, True):
        found = {}
        for backend in ("native", "reference"):
            with ops.backend(backend):
                y = ops.instance_norm_modulate(x, x, x, x)
                found[backend] = torch.autograd.grad(y.square().sum(), x, create_graph=create)[0]
        torch.testing.assert_close(found["native"], found["reference"])


def test_a_large_mean_with_a_small_spread():
    x, gamma, beta = randoms((1, 2, 64, 64), (1, 2, 64, 64), (1, 2, 64, 64))
    x += 1e4
    with ops.backend("reference"):
        exact = ops.instance_norm_modulate(*(t.double() for t in (x, gamma, beta)))
        plain = ops.instance_norm_modulate(x, gamma, beta)
    with ops.backend("native"):
        found = ops.instance_norm_modulate(x, gamma, beta)
    assert (found - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_switches(dtype):
    x = torch.linspace(-200, 200, 401, dtype=dtype).reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for logit in (-1e4, -90.0, 0.0, 90.0, 1e4):
        given = x, torch.full_like(x, logit), 2 * one, -one
        with ops.backend("native"):
            found = outcome(ops.info_acon, given)
        with ops.backend("reference"):
            expected = outcome(ops.info_acon, [t.double() for t in given])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_the_logistic_function_to_a_few_units_in_the_last_place():
    z = torch.linspace(-80, 80, 100_001)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    # θ = σ(40) is 1 in float32; with x = z, p1 = 1, p2 = 0 the result is z·σ(z).
    with ops.backend("native"):
        found = ops.info_acon(z.reshape(1, 1, 1, -1), 40 * one, one, zero).flatten().double()
    exact = z.double() * torch.sigmoid(z.double())
    units = (found - exact).abs() / exact.abs().clamp_min(1e-37) / torch.finfo(torch.float32).eps
    assert units.max() <= 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_plane(value):
    for name in CALLS:
        function, inputs = call(name, (2, 3, 5, 6))
        inputs[0][0, 1, 2, 3] = value
        with ops.backend("native"):
            y = function(*inputs)
        with ops.backend("reference"):
            expected = function(*inputs)
        assert torch.equal(y.isfinite(), expected.isfinite()), name
        assert y[1].isfinite().all()
        assert y[0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
@pytest.mark.parametrize("name", CALLS)
def test_empty_tensors(name, shape):
    function, inputs = call(name, shape)
    with ops.backend("native"):
        found = outcome(function, inputs)
    assert all(f.shape == t.shape for f, t in zip(found, [inputs[0], *inputs], strict=True))
    assert all((f == 0).all() for f in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["instance_norm_modulate", "ida activated", "ida input"])
def test_gradients_that_pass_the_caches_have_the_bits_of_those_that_do_not(name, dtype):
    function, inputs = call(name, (1, 64, 64, 64), dtype)  # a tensor of 1 MB or 2, and of an eighth of that
    upstream = upstream_of(inputs[0])

    def gradients(channels):
        given = [t[:, channels].clone().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*given), given, upstream[:, channels].clone())

    whole, parts = gradients(slice(64)), [gradients(slice(c, c + 8)) for c in range(0, 64, 8)]
    for gradient, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(gradient, torch.cat(pieces, 1))


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_whatever_the_threads(name):
    function, inputs = call(name, (3, 40, 24, 24))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            with ops.backend("native"):
                results.append(outcome(function, inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck():
    x, joint, gamma, p1, p2 = (
        t.requires_grad_() for t in randoms((2, 3, 4, 5), (2, 9, 4, 5), (2, 3, 4, 5), (1, 3, 1, 1), (1, 3, 1, 1))
    )
    h = torch.ops.hida
    logits = [joint[:, :3], joint[:, :1], joint[:, :3, :1, :1], joint[:1, :3, :1, :1]]
    for one in (t.detach().requires_grad_() for t in logits):
        opcheck(h.info_acon, (x, one, p1, p2))
        opcheck(h.ida, (x, one, gamma, gamma.detach(), p1, p2, 1, 1e-5))
    residual = torch.ones_like(x, dtype=torch.bfloat16, requires_grad=True)
    opcheck(h.instance_norm_modulate, (x, gamma, gamma.detach(), residual, 1e-5))
    opcheck(h.instance_norm_modulate, (x, gamma, gamma.detach(), None, 1e-5))


# None: sizes that change become symbols. True, which makes a symbol of every size at once, is left out: its guards on
# shapes keep sympy busy for minutes on torch 2.15.
@pytest.mark.parametrize("dynamic", [False, pytest.param(None, marks=pytest.mark.slow)])
def test_compiles_as_one_graph(dynamic):
    # aot_eager traces forward and backward as inductor does, without waiting for a C++ compiler.
    def function(h, joint, p1, p2):
        f = ops.ida(h, *joint.chunk(3, 1), p1, p2)
        return ops.instance_norm_modulate(ops.info_acon(f, joint[:, :1], p1, p2), f, f)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((2, 3, 4, 5), (3, 3, 6, 5)):
        n, c, h, w = size
        inputs = randoms(size, (n, 3 * c, h, w), (1, c, 1, 1), (1, c, 1, 1))
        with ops.backend("native"):
            found, expected = outcome(compiled, inputs), outcome(function, inputs)
        assert_near(found, [t.double() for t in expected], 1e-6)


def test_under_autocast_the_dtype_is_that_of_the_input():
    for name in CALLS:
        function, inputs = call(name, (2, 3, 4, 5))
        with torch.autocast("cpu", torch.bfloat16):
            with ops.backend("native"):
                found = function(*inputs)
            with ops.backend("reference"):
                expected = function(*inputs)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)


def test_a_direct_call_with_a_wrong_shape_is_refused():
    x, gamma = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 3)
    with pytest.raises(RuntimeError, match=r"gamma must have shape \(1, 2, 3, 4\); its shape is \(1, 2, 3, 3\)"):
        torch.ops.hida.instance_norm_modulate(x, gamma, x, None, 1e-5)
    with pytest.raises(RuntimeError, match="p1 must have shape"):
        torch.ops.hida.info_acon(x, x, torch.ones(2), torch.ones(2))
    with pytest.raises(RuntimeError, match="must be float32"):
        torch.ops.hida.info_acon(x.int(), x, torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1))


def test_native_is_refused_where_it_is_not():
    x, slope = torch.ones(1, 2, 3, 4, device="meta"), torch.ones(1, 2, 1, 1, device="meta")
    with ops.backend("native"), pytest.raises(HidaError, match=r"no native ops for torch\.float32 on meta"):
        ops.info_acon(x, x, slope, slope)
    with ops.backend("auto"):
        assert ops.info_acon(x, x, slope, slope).shape == x.shape


KERNELS = """
import torch
from hida import ops
from hida.ops import library
torch.manual_seed(0)
x = torch.randn(2, 19, 9, 7, requires_grad=True)
j = torch.randn(2, 57, 9, 7, dtype=torch.float16).requires_grad_()
p = [torch.randn(1, 19, 1, 1) for _ in range(2)]
offset, weight = 2 * torch.randn(2, 18, 9, 7), torch.randn(5, 19, 3, 3)
results = []
for backend in ("native", "reference"):
    with ops.backend(backend):
        y = ops.deform_conv2d(ops.ida(x, *j.chunk(3, 1), *p), offset, weight, padding=1)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, j))))
for a, b in zip(*results):
    assert (a.double() - b.double()).norm() <= 2e-4 * b.double().norm(), (a, b)
print(library.instruction_set())
"""


@pytest.mark.parametrize("name", ["generic", "avx2", "avx512"])
def test_the_kernels_of_every_instruction_set(name):
    # In a process of its own: the choice is made once.
    environment = {**os.environ, "HIDA_CPU": name, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, check=False)
    if "does not have" in run.stderr:
        pytest.skip(f"this processor has no {name}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == name
