"""The contract of deform_conv2d (architecture.md §4) for every back end; emulated, for tiny maps and for large ones."""

from __future__ import annotations

import functools
import itertools
import math

import oracle
import pytest
import torch
from backends import DTYPES, back_ends, each, slow
from checking import OUTPUTS, assert_near, assert_same, check_deformation, deform, exact_outcome, outcome
from operands import GEOMETRIES, LARGE_GEOMETRIES, NHWC, deformation, upstream_of

BACKENDS = ("reference", "cpu", "emulated-tiny", "emulated-large", "cuda")
every = functools.partial(each, BACKENDS)
MAPS = ("4² map", "groups that cross deformable groups")
OTHERS = [case for case in GEOMETRIES if case not in MAPS]
LONG = ("depthwise, many", "groups that cross blocks", "larger map")  # emulated, and like others
EMULATED = [*(case for case in GEOMETRIES if case not in LONG), *slow(*LONG)]
LAYERS = ("HIDA's 4² layer", "large map")
NOT_FINITE = (math.nan, math.inf, -math.inf)
pytestmark = pytest.mark.filterwarnings("ignore:.*deterministic")  # torch's own of a GPU


@each(
    ("reference", "cpu", "cuda"),
    "case",
    GEOMETRIES,
    emulated_tiny=EMULATED,
    emulated_large=EMULATED,
    cuda=LARGE_GEOMETRIES,
    cuda_tiny=["8² map"],
    cuda_large=["8² map"],
)
def test_results_and_gradients_in_every_geometry(backend, case):
    check_deformation(backend, *deformation(case, device=backend.device))


@every("case", ["tiles across images", *MAPS], cpu=GEOMETRIES, cuda=["large map"])
def test_without_a_mask(backend, case):
    check_deformation(backend, *deformation(case, masked=False, device=backend.device))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32], ids=str)
@every(
    "case",
    MAPS,
    cpu=["larger map"],
    emulated_tiny=slow("tall tiles"),
    emulated_large=["more than a tile", *slow("tall tiles")],
    cuda=LARGE_GEOMETRIES,
    cuda_tiny=["8² map"],
    cuda_large=["8² map"],
    cuda_reference=["4² map"],
)
def test_dtypes(backend, case, dtype):
    check_deformation(backend, *deformation(case, dtype, device=backend.device))


# x, offset, weight, bias, mask; the last as DOG calls it under autocast
@pytest.mark.parametrize(
    "dtypes",
    [
        ("bfloat16", "float32", "float32", "float32", "float16"),
        ("float16", "float16", "bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "float16", "bfloat16", "float32"),
        ("bfloat16", "float64", "float32", "float16", "float32"),
        ("bfloat16", "float32", "float32", "float32", "float32"),
        ("float32", "float16", "float64", "float64", "float32"),
    ],
    ids="-".join,
)
@every("case", ["4² map"], cpu=["larger map"], cuda=LAYERS)
def test_mixed_dtypes(backend, case, dtypes):
    tensors, steps = deformation(case, device=backend.device)
    check_deformation(backend, [t.to(getattr(torch, d)) for t, d in zip(tensors, dtypes, strict=True)], steps)


@each(
    ("reference", "cpu", "cuda"),
    "case",
    GEOMETRIES,
    emulated_tiny=[*MAPS, *slow(*OTHERS)],
    emulated_large=[*MAPS, *slow(*OTHERS)],
    cuda=LARGE_GEOMETRIES,
)
def test_torchvision_agrees(backend, case):
    torchvision = pytest.importorskip("torchvision")
    tensors, steps = deformation(case, torch.float64, device=backend.device)
    tensors[1][:, ::3] = tensors[1][:, ::3].round()  # points on pixels, where the slope jumps
    call = deform(torchvision.ops, steps)
    assert_near(outcome(deform(backend.ops, steps), tensors), outcome(call, tensors), [1e-12] * 6, names=OUTPUTS)


@each((), "case", emulated_tiny=["4² map"], emulated_large=["tall tiles"], cuda=LAYERS)
def test_tf32_is_for_those_who_ask(backend, case, monkeypatch):
    tensors, steps = deformation(case, device=backend.device)
    plain = outcome(deform(backend.ops, steps), tensors)
    monkeypatch.setenv("HIDA_TF32", "1")
    rounded = check_deformation(backend, tensors, steps, limit=1e-3)
    assert not torch.equal(plain[0], rounded[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every("case", ["whole packs"], reference=["4² map"], cpu=["4² map"], emulated_large=slow("4² map"), cuda=["large map"])
def test_layouts_and_slices(backend, case, dtype):
    (x, offset, weight, bias, mask), steps = deformation(case, dtype, device=backend.device)
    n, c, h, w = x.shape
    make = {"dtype": dtype, "device": backend.device}
    call, upstream = deform(backend.ops, steps), upstream_of(torch.empty(n, weight.shape[0], h, w, **make))
    plain = outcome(call, (x, offset, weight, bias, mask), upstream=upstream)
    joint = torch.cat((offset, mask), 1).contiguous(memory_format=NHWC)
    parts = joint.split((offset.shape[1], mask.shape[1]), 1)
    rows = torch.zeros(n, c, h, 2 * w + 1, **make)[..., 1::2]
    part = torch.zeros(n, h, w, c + 24, **make).permute(0, 3, 1, 2)
    shifted = torch.zeros(x.numel() + 1, **make)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    for other in (x.contiguous(memory_format=NHWC), rows, part[:, 5 : 5 + c], part[:, 8 : 8 + c], shifted):
        wide = torch.zeros(n, h, w, weight.shape[0] + 16, **make).permute(0, 3, 1, 2)[:, 8:-8].copy_(upstream)
        given = (other.copy_(x), parts[0], weight.contiguous(memory_format=NHWC), bias, parts[1])
        for grad in (wide, upstream.contiguous(memory_format=NHWC)):
            found = outcome(call, given, upstream=grad)
            if backend.name == "emulated":
                assert_same(found[:4] + found[5:], plain[:4] + plain[5:])  # the bias's is PyTorch's sum
            elif backend.name != "reference":
                assert torch.equal(found[0], plain[0])
            limits = [backend.limit("deformation", dtype)] * 6
            assert_near(found, [t.double() for t in plain], limits, names=OUTPUTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@every("case", ["4² map", "more than a tile"], cuda=["large map"])
def test_sampling_points_at_the_edges_and_beyond(backend, case, dtype):
    tensors, steps = deformation(case, dtype, device=backend.device)
    h, w = tensors[0].shape[2:]
    special = [0.0, 1, -1, -2, -1.0001, h, h - 1, w - 1.001, w, w + 1, 1e30, -1e30, 65504, 2e9, 1e5, *NOT_FINITE]
    count = tensors[1].numel()
    special = torch.tensor(special).repeat(count // len(special) + 1)[:count]
    tensors[1] = special.reshape(tensors[1].shape).to(dtype).to(backend.device)
    assert all(t.isfinite().all() for t in check_deformation(backend, tensors, steps))


@pytest.mark.parametrize("value", [*NOT_FINITE, 1e30, -1e30, 3e9, 1e5])
@every("dtype", [torch.float32, torch.float16])
def test_some_wild_offsets_among_others(backend, dtype, value):
    tensors, steps = deformation("plain", dtype, device=backend.device)
    tensors[1][:, 3, 2, 2] = value  # float16 makes infinities of the largest
    tensors[1][:, 10] = value
    assert all(t.isfinite().all() for t in check_deformation(backend, tensors, steps))


@every("case", ["4² map"], cuda=["8² map"])
def test_numbers_that_are_not_finite_stay_where_they_belong(backend, case):
    tensors, steps = deformation(case, device=backend.device)
    x, offset, weight, _, mask = tensors
    upstream = upstream_of(torch.empty(x.shape[0], weight.shape[0], *x.shape[2:], device=backend.device))
    offset[1, 8:10, 1, 1] = 0.25  # the point whose mask is spoilt, of the tap in the middle, reads four pixels
    spoilt = {"x": (0, 3, 1, 2), "mask": (1, 4, 1, 1), "upstream": (0, 5, 2, 2)}
    # Where each counts: with nothing but it, and no number that cancels another, the oracle is not zero.
    reached = [torch.zeros_like(t, dtype=torch.bool) for t in (upstream, x)]
    for key, place in spoilt.items():
        alone = {k: torch.ones_like(t).double() for k, t in (("x", x), ("mask", mask), ("upstream", upstream))}
        alone[key].zero_()[place] = 1
        given = [alone["x"], offset.double(), torch.ones_like(weight).double(), None, alone["mask"]]
        y, dx, *_ = exact_outcome(deform(oracle, steps), given, upstream=alone["upstream"])
        reached[0] |= (y != 0) & (key != "upstream")
        reached[1] |= (dx != 0) & (key != "x")
    for tensor, place, value in zip((x, mask, upstream), spoilt.values(), (math.inf, math.nan, math.inf), strict=True):
        tensor[place] = value
    found = outcome(deform(backend.ops, steps), tensors, upstream=upstream)
    for name, a, wrong in zip(("y", "x"), found[:2], reached, strict=True):
        assert torch.equal(~a.isfinite(), wrong), name
        assert not wrong.all(), name


@back_ends(*BACKENDS)
def test_a_pixel_that_is_not_read_does_no_harm(backend):
    x = torch.ones(1, 1, 4, 4, device=backend.device)
    x[0, 0, 0, 0] = float("nan")  # the corner that points outside would be clamped to
    offset = torch.full((1, 2, 4, 4), -9.0, device=backend.device)
    assert (backend.ops.deform_conv2d(x, offset, torch.ones_like(x[..., :1, :1])) == 0).all()


@back_ends(*BACKENDS)
def test_a_corner_outside_adds_nothing_to_an_infinite_one_inside(backend):
    x = torch.ones(1, 1, 4, 4, device=backend.device)
    x[0, 0, 0, 0] = x[0, 0, 3, 3] = float("inf")  # a corner outside may be read there, if that makes no 0·∞
    for shift, reached in (
        (-0.5, ((0, 0), (0, 1), (1, 0), (1, 1), (3, 3))),
        (0.5, ((0, 0), (2, 2), (2, 3), (3, 2), (3, 3))),
    ):
        y = backend.ops.deform_conv2d(x, torch.full((1, 2, 4, 4), shift, device=backend.device), x[..., 1:2, 1:2])
        assert sorted(map(tuple, y[0, 0].isposinf().nonzero().tolist())) == list(reached)
        assert not y.isnan().any()


@every("dtype", [torch.float64, torch.float32, torch.float16])
def test_many_points_in_one_cell(backend, dtype):
    case = "large map" if backend.device == "cuda" else "more than a tile"
    tensors, steps = deformation(case, dtype, device=backend.device)
    h, w = tensors[0].shape[2:]
    tensors[1][:, 0::2] = h // 2 + 0.25 - torch.arange(float(h), device=backend.device)[:, None]
    tensors[1][:, 1::2] = w // 2 + 0.5 - torch.arange(float(w), device=backend.device)
    # On a large map sums of 39,195 numbers in float32.
    check_deformation(backend, tensors, steps, limit=3e-5 if case == "large map" and dtype == torch.float32 else 0)


@back_ends(*BACKENDS)
def test_the_slope_at_a_pixel_is_that_of_the_cell_behind_it(backend):
    # The sampled value is continuous there but bent; floor picks the cell to the right, as torchvision does.
    x = torch.tensor([1.0, 4.0, 9.0, 16.0], dtype=torch.float64, device=backend.device).reshape(1, 1, 2, 2)
    offset = x.new_zeros(1, 2, 2, 2).requires_grad_()
    backend.ops.deform_conv2d(x, offset, x.new_ones(1, 1, 1, 1)).sum().backward()
    assert offset.grad[0].tolist() == [[[8.0, 12.0], [-9.0, -16.0]], [[3.0, -4.0], [7.0, -16.0]]]


@pytest.mark.parametrize("masked", [True, False])
@every("case", ["pairs"], reference=slow("groups"), cpu=["groups"], emulated_tiny=slow("groups"), cuda=["groups"])
def test_first_derivatives(backend, case, masked):
    tensors, steps = deformation(case, torch.float64, masked, batch=1, size=(2, 3), device=backend.device)
    # Finite differences need points away from the pixels, where the slope jumps.
    tensors[1] = tensors[1].floor() + 0.25 + 0.5 * (tensors[1] - tensors[1].floor())
    given = [t.requires_grad_() for t in tensors if t is not None]
    call = deform(backend.ops, steps)
    assert torch.autograd.gradcheck(lambda *some: call(*some[:4], some[4] if masked else None), given)


@every("case", ["one pixel", "batch 37"])
def test_a_second_derivative_is_refused_where_there_is_none_and_a_first_is_not(backend, case):
    tensors, steps = deformation(case, torch.float64, device=backend.device)
    x = tensors[0].requires_grad_()
    y = deform(backend.ops, steps)(*tensors)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    if backend.name == "reference":
        dx.sum().backward()
    elif backend.twice:
        with pytest.raises(RuntimeError, match="no second derivative in its native kernels"):
            dx.sum().backward()


@pytest.mark.parametrize("masked", [True, False])
@every("case", ["groups"], cpu=MAPS[1:], emulated_tiny=slow(MAPS[1]), emulated_large=slow(MAPS[1]), cuda=LAYERS[:1])
def test_only_the_gradients_asked_for(backend, case, masked):
    tensors, steps = deformation(case, masked=masked, device=backend.device)
    call = deform(backend.ops, steps)
    full = outcome(call, tensors)
    for *needed, bias, mask in itertools.product((False, True), repeat=5):
        if bias != mask and backend.name == "emulated":
            continue  # the bias's is PyTorch's sum
        needed = (*needed, bias, mask)
        some = outcome(call, tensors, needed)
        assert_same(some, [full[0], *(g if need else None for g, need in zip(full[1:], needed, strict=True))])


@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.float16)], ids=str)
@every(
    "case",
    ["4² map", "batch 37"],
    cpu=["2² map", "larger map", "batch 33, steps"],
    emulated_tiny=slow("groups that cross deformable groups"),
    emulated_large=["groups that cross deformable groups"],
    cuda=[*LAYERS, "large groups that cross"],
)
def test_the_same_bits_whatever_must_not_matter(backend, case, dtype):
    """Not the number of threads, not the order of threads and blocks, not the time."""
    tensors, steps = deformation(case, dtype, device=backend.device)
    for group in backend.groups():
        first, *others = (outcome(deform(backend.ops, steps), tensors) for _ in group)
        for other in others:
            assert_same(other, first)


@every("case", ["4² map", "groups"], cuda=["large map"])
def test_an_empty_batch(backend, case):
    tensors, steps = deformation(case, batch=0, device=backend.device)
    y, *gradients = outcome(deform(backend.ops, steps), tensors)
    assert y.shape == (0, tensors[2].shape[0], *tensors[0].shape[2:])
    assert [t.shape for t in gradients] == [t.shape for t in tensors]
    assert all((t == 0).all() for t in gradients)
