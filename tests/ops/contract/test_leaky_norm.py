"""leaky_norm of channels_last tensors on every back end that has kernels for it, against float64."""

from __future__ import annotations

import functools
import math

import operands
import oracle
import pytest
import torch
from backends import back_ends, each, slow
from checking import assert_near, assert_same, exact_outcome, outcome, relative_error
from operands import NHWC, upstream_of
from torch._subclasses.fake_tensor import FakeTensorMode

from hida.ops import library
from hida.ops.leaky_norm import fits, leaky_norm

BACKENDS = ("cpu", "emulated", "cuda")
every = functools.partial(each, BACKENDS)
randoms = functools.partial(operands.randoms, layout=NHWC)
# dtype, slopes
KINDS = [
    *[(torch.float32, 1.0, 1.0), (torch.float32, 0.2, 1.0), (torch.float32, 0.2, 0.2), (torch.bfloat16, 0.2, 1.0)],
    *[(torch.float16, 0.2, 0.3), (torch.bfloat16, 1.0, 1.0), (torch.float16, 1.5, -0.5)],
]


def norm(backend, *slopes):
    """Return leaky_norm of a back end as a function of x."""
    chosen = backend.ops.leaky_norm if backend.name == "emulated" else leaky_norm
    return lambda x: chosen(x, *slopes)


def written_out(before=1.0, after=1.0):
    def function(x):
        unit = oracle.instance_norm_modulate(torch.where(x > 0, x, before * x), 0, 0)
        return torch.where(unit > 0, unit, after * unit)

    return function


# Whole planes, in tiles of every width, and chunks of larger ones; the last tile and the last chunk are not full.
@every(
    "shape",
    [(2, 24, 2, 2), (33, 8, 3, 4), (1, 40, 9, 7), (2, 16, 37, 33), (1, 24, 48, 47)],
    emulated=[(1, 520, 1, 3), (3, 64, 16, 16), (1, 88, 48, 43)],
    emulated_h100=[(1, 64, 33, 33), (1, 64, 48, 43), *slow((2, 64, 65, 65), (1, 64, 129, 129))],
    cuda=[(4, 64, 129, 129), (16, 512, 34, 34), (3, 24, 257, 255)],
)
def test_result_and_gradient(backend, shape):
    for dtype, *slopes in KINDS if math.prod(shape) < 1e5 or backend.name == "cuda" else KINDS[2:5]:
        given = randoms(shape, dtype=dtype, device=backend.device)
        found = outcome(norm(backend, *slopes), given)
        assert all(t.is_contiguous(memory_format=NHWC) and t.dtype == dtype for t in found)
        exact = exact_outcome(written_out(*slopes), given)
        plain = exact_outcome(written_out(*slopes), given, torch.float32) if dtype == torch.float32 else None
        assert_near(found, exact, [backend.limit("adaptation", dtype, wide=False)] * 2, plain)


X = {
    "channels of more": lambda x: torch.cat((x, x, x), 1)[:, 16:32],
    "channels that are misaligned": lambda x: torch.cat((x, x), 1)[:, 3:19],
    "a window": lambda x: torch.cat((x, x), 3)[..., 1 : 1 + x.shape[3]],
    "every second column": lambda x: torch.stack((x, x), 4).flatten(3).to(memory_format=NHWC)[..., ::2],
    "one image for all": lambda x: x[:1].expand(x.shape),
    "columns before rows": lambda x: x.transpose(2, 3).to(memory_format=NHWC).transpose(2, 3),
}
UPSTREAM = {
    "NCHW": lambda y: y.contiguous(),
    "one number": lambda y: y[:1, :1, :1, :1].expand(y.shape),
    "a plane for all": lambda y: y[:1, :1].expand(y.shape),
    "every second channel": lambda y: torch.stack((y, y), 2).flatten(1, 2).to(memory_format=NHWC)[:, ::2],
    "channels of more": lambda y: torch.cat((y, y), 1).to(memory_format=NHWC)[:, 16:],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every("shape", [(2, 16, 6, 5), (3, 16, 1, 1)], emulated=[(1, 16, 64, 33)], cuda=[(2, 16, 64, 65)])
def test_slices_and_other_gradients(backend, shape, dtype):
    given, upstream = randoms(shape, shape, dtype=dtype, device=backend.device)
    limits = [backend.limit("adaptation", dtype, wide=False)] * 2
    views = {f"x: {name}": (view(given), upstream) for name, view in X.items()}
    views |= {f"upstream: {name}": (given, view(upstream)) for name, view in UPSTREAM.items()}
    for name, (x, arriving) in views.items():
        found = outcome(norm(backend, 0.2, 0.3), [x], upstream=arriving)
        exact = exact_outcome(written_out(0.2, 0.3), [x], upstream=arriving)
        assert (found[0].shape, found[0].stride(1)) == (shape, 1), name
        # Of a constant gradient little is left: compared with its size, not with the difference.
        more = [0.0, limits[1] * float(arriving.double().norm() / exact[1].norm().clamp_min(1e-30))]
        assert_near(found, exact, limits, more=more, names=[name] * 2)


@pytest.mark.parametrize("slopes", [(1.0, 1.0), (0.2, 0.2)], ids=str)
@every("shape", [(2, 24, 30, 31)], emulated=[(1, 8, 64, 63)], emulated_h100=[(1, 64, 65, 65)], cuda=[(4, 64, 129, 129)])
def test_a_large_mean_with_a_small_spread(backend, shape, slopes):
    for sign in (1, -1):  # behind a leaky ReLU of 0.2 the spread is another
        given = sign * (randoms(shape, device=backend.device)[0] * 1e-1 + 1e4)
        found = norm(backend, *slopes)(given)
        exact, plain = (written_out(*slopes)(given.to(d)) for d in (torch.float64, torch.float32))
        assert_near([found], [exact], [1e-6], [plain])


@every("shape", [(1, 24, 32, 32)], emulated=[(1, 8, 64, 63)], cuda=[(1, 64, 129, 129)])
def test_outliers_cost_no_digits(backend, shape):
    for place in ((0, 0), (0, 8), (-1, -1)):
        (x,) = randoms(shape, device=backend.device)
        x[:, :, place[0], place[1]] = 1e4
        assert relative_error(norm(backend)(x), written_out()(x.double())) <= 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@every("shape", [(2, 16, 5, 6)], emulated=[(2, 8, 48, 47)], cuda=[(2, 16, 80, 80)])
def test_what_is_not_finite_stays_in_its_plane(backend, shape, value):
    elsewhere = torch.ones(shape[:2], dtype=torch.bool, device=backend.device)
    elsewhere[0, 1] = False
    for dtype in (torch.float32, torch.bfloat16):
        (x,) = randoms(shape, dtype=dtype, device=backend.device)
        clean = outcome(norm(backend, 0.2, 0.2), [x])
        x[0, 1, 2, 3] = value
        for a, b in zip(outcome(norm(backend, 0.2, 0.2), [x]), clean, strict=True):
            assert torch.equal(a[elsewhere], b[elsewhere])
            assert not a[0, 1].isfinite().any()


@every("shape", [(3, 24, 9, 7), (1, 24, 48, 47)], cuda=[(4, 64, 129, 129)])
def test_the_same_bits_in_any_circumstances(backend, shape):
    for dtype in (torch.float32, torch.bfloat16):
        given = randoms(shape, dtype=dtype, device=backend.device)
        for circumstances in backend.groups():
            first, *others = [outcome(norm(backend, 0.2, 0.2), given) for _ in circumstances]
            for other in others:
                assert_same(other, first)


@back_ends(*BACKENDS)
def test_planes_of_one_pixel_and_empty_batches(backend):
    (x,) = randoms((2, 8, 1, 2), device=backend.device)
    y, dx = outcome(norm(backend, 0.2), [x[..., :1]])
    assert (y == 0).all()
    assert dx.abs().max() == 0
    assert [t.shape for t in outcome(norm(backend), [x[:0]])] == [(0, 8, 1, 2)] * 2


@back_ends("emulated", "cuda")
def test_the_operator_refuses_what_it_has_no_kernels_for(backend):
    for x in (*randoms((2, 12, 4, 5), device=backend.device), randoms((2, 8, 4, 5), device=backend.device)[0].double()):
        with pytest.raises(RuntimeError, match="multiple of 8"):
            backend.operators.leaky_norm(x, 1.0, 1.0, 1e-5)
    (x,) = randoms((2, 8, 4, 5), device=backend.device)
    y, mean, rstd = backend.operators.leaky_norm(x, 1.0, 1.0, 1e-5)
    with pytest.raises(RuntimeError, match="grad must have shape"):
        backend.operators.leaky_norm_backward(y[..., 1:], x, mean, rstd, 1.0, 1.0)
    with pytest.raises(RuntimeError, match="mean and rstd must"):
        backend.operators.leaky_norm_backward(y, x, mean.half(), rstd, 1.0, 1.0)


@pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")
@pytest.mark.skipif(torch.version.cuda is None, reason="this is a CPU build of torch")
def test_what_a_gpu_computes_natively():
    with FakeTensorMode():
        make = functools.partial(torch.empty, 2, 16, 8, 8, device="cuda", dtype=torch.bfloat16)
        x = make().to(memory_format=NHWC)
        cases = {
            "usual": (x, True),
            "misaligned": (make().to(memory_format=NHWC)[:, 3:11], True),
            "NCHW": (make(), False),
            "odd": (x[:, :12], False),
            "double": (x.double(), False),
            "one channel": (x[:, :1], False),
            "too large": (torch.empty(1, 8, 1 << 14, 1 << 13, device="cuda").to(memory_format=NHWC), False),
            "meta": (torch.empty(2, 16, 8, 8, device="meta").to(memory_format=NHWC), False),
        }
        assert {name: fits(given) for name, (given, _) in cases.items()} == {
            name: case[1] for name, case in cases.items()
        }
        for given in (x, x[:, 3:11]):
            y, mean, rstd = torch.ops.hida.leaky_norm(given, 0.2, 1.0, 1e-5)
            dx = torch.ops.hida.leaky_norm_backward(upstream_of(y), given, mean, rstd, 0.2, 1.0)
            for t in (y, dx):
                assert t.is_contiguous(memory_format=NHWC)
                assert (t.device, t.dtype) == (x.device, x.dtype)
            assert mean.shape == rstd.shape == given.shape[:2]
            assert mean.dtype == rstd.dtype == torch.float32
