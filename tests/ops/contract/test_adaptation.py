"""The contract of info_acon, instance_norm_modulate and ida (architecture.md §4) for every back end."""

from __future__ import annotations

import functools
import itertools

import oracle
import pytest
import torch
from backends import DTYPES, back_ends, each, slow
from checking import assert_same, check, function, outcome
from operands import NAMES, NHWC, SWITCHED, adaptation, randoms

BACKENDS = ("reference", "cpu", "emulated", "cuda")
every = functools.partial(each, BACKENDS)
names = pytest.mark.parametrize("name", NAMES)
some_names = pytest.mark.parametrize(
    "name", ["info_acon", "ida input", "with residual", *slow(*NAMES[1:5:2], "ida none")]
)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC], ids=["nchw", "nhwc"])

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
    cuda_reference=[(2, 19, 9, 11)],
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
def test_slices_of_one_tensor_are_not_copied(backend, layout):
    shapes = (2, 8, 16, 16), (2, 24, 16, 16), (1, 8, 1, 1), (1, 8, 1, 1)
    h, joint, *slopes = randoms(*shapes, layout=layout, device=backend.device)
    given = [h, *joint.chunk(3, 1), *slopes]
    check(backend, "ida activated", given)
    if backend.name == "reference":
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        backend.ops.ida(*given)
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


@names
@every("logits", [(2, 2, 2, 3), (2, 1, 2, 3), (2, 2, 1, 1), (1, 2, 1, 1)])
def test_first_and_second_derivatives(backend, name, logits):
    whole = logits == (2, 2, 2, 3)
    if not whole and name not in SWITCHED:
        pytest.skip("the op takes no logits")
    given = adaptation(name, (2, 2, 2, 3), logits, dtype=torch.float64, device=backend.device)
    inputs = [t.requires_grad_() for t in given]
    assert torch.autograd.gradcheck(function(backend.ops, name), inputs)
    if backend.twice and (whole or name == "info_acon"):
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
