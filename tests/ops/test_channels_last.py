"""What the native kernels have for channels_last tensors alone, against PyTorch in float64."""

from __future__ import annotations

import functools
import itertools

import operands
import oracle
import pytest
import torch
from backends import BACKENDS
from checking import assert_near, assert_same, exact_outcome, outcome
from operands import NHWC, upstream_of
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.nn import functional

from hida import ops
from hida.models import build_discriminator, build_generator
from hida.nn import DOG, Conv2d, InstanceNorm, MetaACON, Upsample
from hida.ops import library
from hida.ops.cpu.conv_to_one import fits, to_one
from hida.ops.cpu.convolution import conv2d, conv_transpose2d
from hida.ops.cpu.plane_mean import Mean, plane_mean
from hida.ops.layout import channels_last, interleaved, joined, laid_out_as, laid_out_for_kernels
from hida.ops.leaky_norm import leaky_norm

pytestmark = pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")

# Channels that fill tiles and that do not, more than a block of them, fewer pixels than a tile, planes of a few tiles.
SHAPES = [(2, 24, 9, 7), (1, 5, 33, 17), (2, 131, 3, 5), (1, 64, 1, 2), (3, 16, 8, 8), (1, 400, 2, 2)]
LIMITS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
TO_ONE = [(2, 48, 8, 8), (3, 37, 5, 9), (1, 5, 17, 3), (1, 2, 1, 2), (2, 260, 11, 10)]


randoms = functools.partial(operands.randoms, layout=NHWC)


def written_out(x, before, after):
    unit = oracle.instance_norm_modulate(torch.where(x > 0, x, before * x), 0, 0)
    return torch.where(unit > 0, unit, after * unit)


SLOPES = [(0.2, 1.0), (0.2, 0.2), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("shape", "slopes", "dtype"),
    [
        *itertools.product(SHAPES, SLOPES, [torch.float32]),
        *itertools.product([(2, 19, 9, 11)], [(0.2, 0.3)], LIMITS),
    ],
)
def test_leaky_norm_in_every_shape_and_dtype(shape, slopes, dtype):
    inputs = randoms(shape, dtype=dtype)
    with ops.backend("native"), torch.profiler.profile() as profile:
        found = outcome(lambda x: leaky_norm(x, *slopes), inputs)
    assert "hida::leaky_norm_backward" in {event.key for event in profile.key_averages()}
    assert all(t.is_contiguous(memory_format=NHWC) and t.dtype == dtype for t in found)
    exact, plain = (exact_outcome(lambda x: written_out(x, *slopes), inputs, d) for d in (torch.float64, torch.float32))
    limit, plain = (1e-6, plain) if dtype == torch.float32 else (LIMITS[dtype], None)
    assert_near(found, exact, [limit] * 2, plain)


@pytest.mark.parametrize("shape", SHAPES)
def test_plane_mean(shape):
    inputs = randoms(shape)
    with ops.backend("native"):
        found = outcome(plane_mean, inputs)
    exact = exact_outcome(lambda x: x.mean((2, 3), keepdim=True), inputs)
    assert_near(found, exact, [1e-6] * 2)
    assert_near(outcome(Mean.apply, inputs), exact, [1e-6] * 2)  # a GPU's


def test_images_are_joined_in_the_layout_of_another():
    images = [torch.randn(2, channels, 4, 6, requires_grad=True) for channels in (1, 3, 1)]
    plain = torch.cat(images, 1)
    for like in (torch.empty(1, 2, 2, 2), torch.empty(1, 2, 2, 2).to(memory_format=NHWC)):
        found = joined(images, like)
        assert torch.equal(found, plain)
        assert found.stride() == plain.to(memory_format=NHWC if channels_last(like) else torch.preserve_format).stride()
    found = interleaved(images)  # a GPU's
    assert torch.equal(found, plain)
    assert found.is_contiguous(memory_format=NHWC)
    upstream = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(t, images, upstream) for t in (found, plain)), strict=True):
        assert torch.equal(a, b)


def convolved(x, weight, bias, transposed):
    if transposed:
        return functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    return functional.conv2d(x, weight, bias, padding=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "plain"])
@pytest.mark.parametrize("shape", TO_ONE)
def test_convolution_to_one_channel(shape, transposed, dtype):
    c = shape[1]
    x, weight, bias = randoms(shape, (c, 1, 4, 4) if transposed else (1, c, 4, 4), (1,))
    x = x.to(dtype)
    with ops.backend("native"):
        assert fits(x, weight, transposed)
        found = outcome(lambda *given: to_one(*given, transposed), [x, weight, bias])
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    exact = exact_outcome(lambda *given: convolved(*given, transposed), [x, weight, bias])
    assert_near(found[:3], exact[:3], [LIMITS[dtype]] * 3)
    scale = found[0].numel() ** 0.5  # the gradient of the bias is a sum that may cancel out
    assert abs(float(found[3] - exact[3])) <= LIMITS[dtype] * scale


def test_convolution_to_one_channel_without_a_bias_and_of_slices():
    x, weight = randoms((2, 40, 6, 5), (27, 1, 4, 4))
    with ops.backend("native"):
        found = outcome(lambda w: to_one(x[:, 3:30], w, None, True), [weight])
    assert_near(found, exact_outcome(lambda w: convolved(x[:, 3:30].double(), w, None, True), [weight]), [1e-6] * 2)


@pytest.mark.parametrize("module", [Upsample(40, 24), Upsample(16, 1), Conv2d(24, 1, 4, padding=2)], ids=str)
def test_convolutions_with_autocast_agree_with_torch(module):
    module = module.to(memory_format=NHWC)
    x = randoms((2, module.in_channels, 8, 8))[0]
    results = {}
    for backend in ("native", "reference"):
        module.zero_grad()
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with ops.backend(backend), torch.autocast("cpu", torch.bfloat16):
            y = module(given)
        y.backward(upstream_of(y))
        results[backend] = [y.detach(), given.grad, module.weight.grad, module.bias.grad]
    kinds = [t.dtype for t in results["native"]]
    assert kinds == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    exact_bias = upstream_of(y).double().sum((0, 2, 3))
    assert_near(results["native"][:3], [t.double() for t in results["reference"][:3]], [1e-2] * 3)
    assert (results["native"][3] - exact_bias).norm() <= 4e-3 * exact_bias.norm()


def test_first_and_second_derivatives():
    x, weight = randoms((2, 3, 4, 3), (3, 1, 4, 4), dtype=torch.float64)
    x.requires_grad_(), weight.requires_grad_()
    with ops.backend("native"):
        for function in (lambda x: leaky_norm(x, 0.2, 0.3), plane_mean):
            assert torch.autograd.gradcheck(function, (x,))
            assert torch.autograd.gradgradcheck(function, (x,))
        x, weight = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
        y = to_one(x, weight, None, True)
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found = torch.autograd.grad(slope.square().sum(), (x, weight))
        y = functional.conv_transpose2d(x, weight, stride=2, padding=1)
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        for a, b in zip(found, torch.autograd.grad(slope.square().sum(), (x, weight)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_opcheck():
    x, weight = randoms((2, 8, 4, 5), (8, 16))
    x.requires_grad_(), weight.requires_grad_()
    opcheck(torch.ops.hida.leaky_norm.default, (x, 0.2, 1.0, 1e-5))
    opcheck(torch.ops.hida.plane_sums.default, (x,))
    for transposed in (True, False):
        opcheck(torch.ops.hida.to_one.default, (x, weight, torch.zeros(1, requires_grad=True), transposed))
        y = torch.ops.hida.to_one(x.detach(), weight.detach(), None, transposed)
        opcheck(torch.ops.hida.to_one_backward.default, (y, x.detach(), weight.detach(), transposed, 3))


def test_the_number_of_threads_does_not_show():
    x, gamma, p1, p2 = operands.adaptation("info_acon", (5, 150, 20, 21), layout=NHWC)
    weight = torch.randn(150, 1, 4, 4)
    calls = [
        (lambda x: leaky_norm(x, 0.2, 0.2), [x]),
        (plane_mean, [x]),
        (lambda x: to_one(x, weight, None, True), [x]),
        (ops.ida, [x, gamma, gamma, gamma, p1, p2]),
        (ops.info_acon, [x, gamma, p1, p2]),
    ]
    with ops.backend("native"):
        first, *others = [
            [t for call, given in calls for t in outcome(call, given)] for _ in next(BACKENDS["cpu"].groups())
        ]
    for other in others:
        assert_same(other, first)


def test_modules_keep_the_layout():
    x = randoms((2, 16, 8, 8))[0].requires_grad_()
    with ops.backend("native"):
        for module in (InstanceNorm(), MetaACON(16), Upsample(16, 8), DOG(16, 8)):
            y = module.to(memory_format=NHWC)(x)
            assert y.is_contiguous(memory_format=NHWC), module
            (dx,) = torch.autograd.grad(y.square().sum(), x)
            assert dx.is_contiguous(memory_format=NHWC), module


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC], ids=["nchw", "nhwc"])
def test_forward_mode_through_the_networks_is_the_transpose_of_a_backward(layout):
    torch.manual_seed(0)
    networks = build_generator("small").eval(), build_discriminator("small")
    generator, discriminator = (m.to(memory_format=layout) for m in networks)
    photo, direction = (torch.rand(1, 3, 256, 256).contiguous(memory_format=layout) for _ in range(2))
    depth, style = torch.rand(1, 1, 256, 256), torch.tensor([1])

    def score(photo):
        return discriminator(depth, generator(photo, depth, style)[0]).mean()

    with ops.backend("native"):
        given = photo.clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(given), given)
        tangent = torch.func.jvp(score, (photo,), (direction,))[1]
    assert abs(tangent - (slope * direction).sum()) <= 1e-3 * slope.norm() * direction.norm()
    assert tangent.abs() >= 0.01 * slope.norm()


TANGENTS = {  # each as a function of (x, weight, bias)
    "mean": lambda x, weight, bias: plane_mean(x),
    "norm": lambda x, weight, bias: leaky_norm(x, 0.2, 0.3),
    "few pixels": lambda x, weight, bias: conv2d(x, weight[:, :, :3, :3], bias, (1, 1), (1, 1)),
    "doubled": conv_transpose2d,
    "to one": lambda x, weight, bias: conv2d(x, weight[:1], bias[:1], (1, 1), (2, 2)),
    "doubled to one": lambda x, weight, bias: conv_transpose2d(x, weight[:, :1], bias[:1]),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", TANGENTS)
def test_tangents_of_what_only_has_cpu_kernels(name, layout):
    call = TANGENTS[name]
    tensors = [
        t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in randoms((2, 6, 5, 4), (6, 6, 4, 4), (6,))
    ]
    for chosen in (0,) if name in ("mean", "norm") else (0, 1, 2, None):
        directions = [(3 * t).cos() * (chosen in (None, i)) for i, t in enumerate(tensors)]
        with ops.backend("reference"):
            exact = torch.func.jvp(call, *(tuple(t.double() for t in part) for part in (tensors, directions)))
        for wanted in (False, True):
            with ops.backend("native"), forward_ad.dual_level():
                given = [t.detach().requires_grad_(wanted) for t in tensors]
                duals = [
                    forward_ad.make_dual(t, d) if chosen in (None, i) else t
                    for i, (t, d) in enumerate(zip(given, directions, strict=True))
                ]
                found = forward_ad.unpack_dual(call(*duals))
            assert_near([t.detach() for t in found], exact, [1e-5] * 2)


@pytest.mark.parametrize("name", ["norm", "doubled", "to one", "doubled to one"])
def test_tangents_of_gradients_of_what_only_has_cpu_kernels(name):
    call, tensors = TANGENTS[name], randoms((2, 6, 5, 4), (6, 6, 4, 4), (6,))
    results = []
    for kind, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        given = [t.to(kind).requires_grad_() for t in tensors][: 1 if name == "norm" else 3]
        with ops.backend(backend):
            y = call(*given) if name != "norm" else call(*given, None, None)
        upstream = torch.linspace(-1, 2, y.numel(), dtype=kind).reshape(y.shape)
        with ops.backend(backend), forward_ad.dual_level():
            made = torch.autograd.grad(y, given, forward_ad.make_dual(upstream, upstream.cos()))
            results.append([part for t in made for part in forward_ad.unpack_dual(t)])
    assert_near(*results, [1e-5] * len(results[0]))


def test_a_gradient_is_laid_out_as_the_operand_that_it_belongs_to():
    grad = torch.randn(2, 8, 3, 5)
    joint = torch.empty(2, 24, 3, 5).to(memory_format=torch.channels_last)
    for x, last in (
        (joint[:, 8:16], True),
        (torch.empty(2, 8, 3, 5), False),
        (torch.empty(2, 8, 3, 6)[..., :5], False),
    ):
        for given in (grad, grad.to(memory_format=torch.channels_last), torch.ones(1, 1, 1, 1).expand(2, 8, 3, 5)):
            made = laid_out_as(given, x)
            assert torch.equal(made, given)
            assert made.stride() == ((120, 1, 40, 8) if last else (120, 15, 5, 1))
            assert (made is given) == (made.stride() == given.stride())
        assert laid_out_for_kernels(grad, x) is grad  # a CPU's kernels take it as it is
