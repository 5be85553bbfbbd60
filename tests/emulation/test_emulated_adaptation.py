"""The CUDA kernels of info_acon, ida and instance_norm_modulate, emulated, against plain PyTorch in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from operands import ADAPTATION_LIMITS as LIMITS
from operands import adaptation as operands
from operands import randoms, relative_error
from torch import Tensor

from hida.ops.library import fold

NAMES = ("info_acon", "instance_norm_modulate", "with residual", "ida none", "ida activated", "ida input")
RESIDUALS = {"ida none": 0, "ida activated": 1, "ida input": 2}
EPS = 1e-5


def upstream(shape, dtype, layout=torch.contiguous_format) -> Tensor:
    return randoms(shape, dtype=dtype, layout=layout, seed=2)[0]


def plain(name, tensors, dtype) -> Tensor:
    """The op as its contract has it, of PyTorch's own functions."""
    given = [t.to(dtype) for t in tensors]
    x = given[0]
    f = x
    if name.startswith("i") and name != "instance_norm_modulate":
        logits, p1, p2 = given[1], given[-2], given[-1]
        f = (p1 - p2) * x * torch.sigmoid(torch.sigmoid(logits) * (p1 - p2) * x) + p2 * x
        if name == "info_acon":
            return f
    gamma, beta = given[2:4] if name in RESIDUALS else given[1:3]
    variance, mean = torch.var_mean(f, (2, 3), correction=0, keepdim=True)
    normal = (f - mean) / torch.sqrt(variance + EPS)
    y = (1 + gamma) * normal + beta
    return y + {"with residual": given[-1], "ida activated": f, "ida input": x}.get(name, torch.zeros(()))


def expected(name, tensors, grad, dtype=torch.float64) -> list[Tensor]:
    given = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = plain(name, given, dtype)
    y.backward(grad.to(dtype))
    return [y.detach(), *(t.grad for t in given)]


def statistics(emulated, name, tensors) -> tuple[Tensor, ...]:
    """The result, and what else the forward operator returns."""
    if name == "info_acon":
        return (emulated.ops.info_acon(*tensors),)
    if name in RESIDUALS:
        return emulated.ops.ida(*tensors, RESIDUALS[name], EPS)
    x, gamma, beta, *residual = tensors
    return emulated.ops.instance_norm_modulate(x, gamma, beta, residual[0] if residual else None, EPS)


def gradients(emulated, name, tensors, grad, *kept, needed=None) -> dict[int, Tensor]:
    """The gradients that the backward operator returns, by the number of the operand."""
    e, needed = emulated.ops, [True] * len(tensors) if needed is None else needed
    which = {"info_acon": (0, 1, 2, 3), **dict.fromkeys(RESIDUALS, (0, 1, 2, 4, 5))}.get(name, (0, 1))
    wanted = sum(1 << bit for bit, i in enumerate(which) if needed[i])
    if name == "info_acon":
        made = e.info_acon_backward(grad, *tensors, wanted)
    elif name in RESIDUALS:
        x, logits, gamma, _, p1, p2 = tensors
        made = e.ida_backward(grad, x, logits, gamma, p1, p2, *kept, RESIDUALS[name], wanted)
    else:
        made = e.instance_norm_modulate_backward(grad, *tensors[:2], *kept, wanted)
    pairs = list(zip(made, which, strict=True))
    assert all(g.shape == (0,) for g, i in pairs if not needed[i])
    return {i: fold(g, tensors[i]) for g, i in pairs if needed[i]}


def launched(emulated) -> tuple[int, int, bool]:
    launches = emulated.launches()
    return launches.count, launches.cluster, launches.shared > 0


def found(emulated, name, tensors, grad, needed=None) -> list[Tensor | None]:
    """The result, and the gradients of all operands (those of β and the residual are the upstream one itself)."""
    needed = [True] * len(tensors) if needed is None else needed
    y, *kept = statistics(emulated, name, tensors)
    made = gradients(emulated, name, tensors, grad, *kept, needed=needed)
    through = {} if name == "info_acon" else {3: grad} if name in RESIDUALS else {2: grad, 3: grad}
    return [y, *(made.get(i, through.get(i)) if needed[i] else None for i in range(len(tensors)))]


def assert_near(outputs, exact, limit, eager=None):
    """Within ``limit``, or thrice the error of the plain computation in float32 where that is worse.

    Sums over planes, in which thousands of numbers of both signs cancel, may lose some digits more.
    """
    for i, (a, b) in enumerate(zip(outputs, exact, strict=True)):
        if a is None:
            continue
        assert a.shape == b.shape
        limit_here = max(limit, LIMITS[a.dtype]) if a.shape == outputs[0].shape else 10 * limit
        bound = limit_here if eager is None else max(limit_here, 3 * relative_error(eager[i], b))
        error = relative_error(a, b)
        assert error <= bound, f"output {i}: relative error {error:.2e} > {bound:.2e}"


def assert_stays_in_its_plane(outputs, eager, value):
    """What is not finite, or nearly so, at the second plane of the first image is nowhere else."""
    if value != 3e38:
        assert torch.equal(outputs[0].isfinite(), eager.isfinite())
    elsewhere = torch.ones(eager.shape, dtype=torch.bool)
    elsewhere[0, 1] = False
    for t in (outputs[0], *(g for g in outputs[1:] if g.shape == eager.shape)):
        assert t[elsewhere].isfinite().all()


def check(emulated, name, tensors, limit=None):
    dtype = tensors[0].dtype
    layout = torch.channels_last if tensors[0].stride(1) == 1 else torch.contiguous_format
    grad = upstream(tensors[0].shape, dtype, layout)
    outputs = found(emulated, name, tensors, grad)
    assert outputs[0].dtype == dtype
    assert all(a.dtype == t.dtype for a, t in zip(outputs[1:], tensors, strict=True) if a is not grad)
    eager = expected(name, tensors, grad, torch.float32) if dtype != torch.float64 else None
    assert_near(outputs, expected(name, tensors, grad), limit or LIMITS[dtype], eager)


SHAPES = {
    "point": (2, 5, 1, 1),
    "row": (1, 3, 1, 19),
    "column": (2, 3, 19, 1),
    "odd": (2, 3, 5, 7),
    "several planes a warp": (3, 5, 4, 8),
    "a warp a plane": (2, 3, 16, 16),
    "odd planes, many of them": (33, 5, 3, 3),
    "a block a plane": (1, 2, 32, 40),
    "odd block": (1, 2, 33, 37),
    "whole block": (1, 2, 64, 64),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", NAMES)
def test_planes_that_stay_in_registers(emulated, name, shape):
    check(emulated, name, operands(name, shape))
    if name != "info_acon":
        assert emulated.launches() == (2, 1, 0)


# chip, shape, then forward and backward: launches, blocks of a cluster, whether shared memory was asked for
PATHS = {
    "staged": ("ampere", (3, 3, 65, 64), (1, 1, True), (1, 1, False)),
    "staged, four packs": ("ampere", (1, 8, 128, 128), (1, 1, True), (1, 1, False)),
    "staged, odd": ("small", (1, 2, 65, 67), (1, 1, True), (1, 1, False)),
    "staged, sweeps apart": ("turing", (1, 3, 96, 96), (1, 1, True), (3, 1, False)),
    "cluster": ("hopper", (1, 2, 128, 128), (1, 8, True), (1, 8, True)),
    "cluster, odd": ("hopper", (2, 3, 81, 79), (1, 4, True), (1, 4, True)),
    "cluster, one block without pixels": ("hopper", (1, 3, 144, 144), (1, 8, True), (1, 8, True)),
    "cluster for its shared memory": ("hopper", (8, 2, 144, 144), (1, 2, True), (1, 4, True)),
    "cluster of small blocks": ("small hopper", (2, 1, 120, 120), (1, 8, True), (1, 8, True)),
    "cluster with and without memory": ("small hopper", (2, 1, 192, 192), (1, 8, True), (1, 8, False)),
    "larger than a cluster": ("small hopper", (1, 1, 304, 304), (2, 1, False), (1, 8, False)),
    "streamed": ("small", (1, 2, 128, 128), (1, 1, False), (1, 1, False)),
    "streamed, odd": ("small", (1, 3, 117, 113), (1, 1, False), (1, 1, False)),
    "chunks": ("turing", (1, 1, 128, 128), (2, 1, False), (3, 1, False)),
    "chunks, odd": ("turing", (1, 2, 129, 127), (2, 1, False), (3, 1, False)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ida activated", "with residual"])
def test_larger_planes_on_every_path(emulated, name, path):
    chip, shape, forward, backward = PATHS[path]
    emulated.chip(chip, order=2)
    given = operands(name, shape)
    given[1] = given[1].half()  # of one dtype, planes of a cluster are for other kernels
    check(emulated, name, given)
    emulated.launches()
    emulated.usual()
    outputs = statistics(emulated, name, given)
    assert launched(emulated) == forward
    assert emulated.usual() == 0
    gradients(emulated, name, given, upstream(shape, torch.float32), *outputs[1:])
    if name == "with residual" and backward[0] > 1:
        backward = (backward[0] - 1, *backward[1:])  # there are no sums of chunks to add up
    assert launched(emulated) == backward


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("float16", "float32", "bfloat16")])
@pytest.mark.parametrize("shape", [(2, 2, 96, 88), (1, 2, 91, 73)])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_kept_in_a_cluster(emulated, name, shape, dtypes):
    emulated.chip("hopper", order=1)
    kinds = itertools.cycle(getattr(torch, d) for d in dtypes)
    given = [t.to(kind) for t, kind in zip(operands(name, shape), kinds, strict=False)]
    check(emulated, name, given, limit=4e-3)


@pytest.mark.parametrize("chip", ["turing", "small", "hopper"])
@pytest.mark.parametrize("shape", [(2, 35, 9, 7), (1, 5, 20, 25), (1, 33, 40, 33), (2, 8, 64, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_channels_last(emulated, name, shape, chip):
    emulated.chip(chip, order=1)
    check(emulated, name, operands(name, shape, layout=torch.channels_last))


# Of the usual channels_last case: planes that a block has as a whole, chunks of larger ones; tiles of every width.
USUAL = [
    (3, 8, 2, 2),
    (2, 512, 2, 2),
    (2, 24, 4, 6),
    (2, 16, 16, 16),
    (2, 40, 16, 16),
    (1, 64, 1, 19),
    (2, 72, 19, 1),
    (1, 88, 9, 7),
    (1, 24, 33, 37),
    (2, 8, 33, 37),
    (1, 16, 64, 64),
    (1, 64, 72, 33),
]
usual_shapes = pytest.mark.parametrize("shape", USUAL, ids=lambda s: "x".join(map(str, s)))
NHWC = {"layout": torch.channels_last}
KEEP = {"memory_format": torch.preserve_format}


def check_usual(emulated, name, given, taken=True, limit=None):
    """Check the results, and which kernels they are of."""
    emulated.usual()
    emulated.launches()
    check(emulated, name, given, limit)
    launches, usual = emulated.launches().count, emulated.usual()
    if not taken:
        assert usual == 0
    else:
        assert usual == 2 or (usual <= 4 and name != "info_acon")
        assert usual <= launches <= usual + 1  # one that adds up the sums of chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@usual_shapes
@pytest.mark.parametrize("name", NAMES)
def test_usual_channels_last(emulated, name, shape, dtype):
    for chip in ("turing", "H100"):
        emulated.chip(chip, order=2)
        check_usual(emulated, name, operands(name, shape, dtype=dtype, **NHWC))


@pytest.mark.parametrize("shape", [(1, 64, 128, 128), (5, 128, 48, 40), (2, 256, 32, 32)])
@pytest.mark.parametrize("name", ["info_acon", "with residual", "ida activated"])
def test_usual_channels_last_on_a_large_chip(emulated, name, shape):
    emulated.chip("H100")
    check_usual(emulated, name, operands(name, shape, dtype=torch.bfloat16, **NHWC))


# chip, shape, kernels: a block has planes of up to 1024 pixels as a whole, and one chunk of more.
KERNELS = [
    ("turing", (2, 24, 32, 32), 1),
    ("turing", (16, 8, 33, 37), 1),
    ("hopper", (3, 24, 33, 37), 2),
    ("H100", (1, 64, 36, 32), 2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("chip", "shape", "kernels"), KERNELS)
@pytest.mark.parametrize("name", [*NAMES[1:], "one switch a plane"])
def test_usual_channels_last_in_one_kernel_or_two(emulated, name, chip, shape, kernels, dtype):
    logits = None
    if name == "one switch a plane":
        name, logits = "ida activated", (*shape[:2], 1, 1)
    given = operands(name, shape, logits=logits, dtype=dtype, **NHWC)
    grad = upstream(shape, dtype, torch.channels_last)
    results = []
    for order in range(3):
        emulated.chip(chip, order)
        check_usual(emulated, name, given)
        y, *kept = statistics(emulated, name, given)
        assert launched(emulated) == (kernels, 1, True)
        made = gradients(emulated, name, given, grad, *kept)
        assert launched(emulated)[:2] == (kernels + (kernels > 1 and name.startswith("ida")), 1)
        results.append([y, *made.values()])
        some = gradients(emulated, name, given, grad, *kept, needed=[i % 2 == 0 for i in range(len(given))])
        assert all(torch.equal(some[i], made[i]) for i in some)
        emulated.launches()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 24, 4, 6), (2, 40, 33, 37), (1, 64, 40, 40)])
@pytest.mark.parametrize("name", ["info_acon", "ida none", "ida activated", "ida input"])
def test_usual_channels_last_with_one_switch_a_plane(emulated, name, shape, dtype):
    n, c, h, w = shape
    for logits in ((n, c, 1, 1), (1, c, 1, 1)):
        given = operands(name, shape, logits=logits, dtype=dtype, **NHWC)
        check_usual(emulated, name, given)
        given[1] = given[1].float()  # read once: of any dtype
        given[-1], given[-2] = given[-1].half(), given[-2].float()
        check_usual(emulated, name, given, limit=4e-3)
    check_usual(emulated, name, operands(name, shape, logits=(n, 1, h, w), dtype=dtype, **NHWC), taken=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 24, 9, 7), (1, 8, 48, 41)])
@pytest.mark.parametrize("name", ["info_acon", "ida input", "with residual"])
def test_usual_channels_last_of_slices(emulated, name, shape, dtype):
    n, c, h, w = shape
    joint, p1, p2 = randoms((n, 4 * c, h, w), (1, c, 1, 1), (1, c, 1, 1), dtype=dtype, **NHWC)
    parts = joint.chunk(4, 1)
    given = [*parts[:2], p1, p2] if name == "info_acon" else [*parts, *([p1, p2] if name == "ida input" else [])]
    check_usual(emulated, name, given)
    for view in (lambda t: t[..., 1:-1, :], lambda t: t[:, :, :1].expand(-1, -1, h, -1)):  # whole rows; one for all
        changed = [view(t) if t.shape[2] == h else t for t in given]
        check_usual(emulated, name, changed, taken=changed[0].stride(2) != 0)


OTHERS = {
    "misaligned": lambda t: t[:, 1:9],
    "a window": lambda t: t[:, :8, :, 1:],
    "every second column": lambda t: t[:, :8, :, ::2],
    "channels that are no packs": lambda t: t[:, :7],
    "channels first": lambda t: t[:, :8].contiguous(),
    "float64": lambda t: t[:, :8].double(),
    "mixed": lambda t: t[:, :8].half(),
    "not packed pixels": lambda t: randoms((2, 9, 6, 5), **NHWC)[0][:, :8],
}


@pytest.mark.parametrize("which", OTHERS)
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("name", ["info_acon", "ida input", "with residual"])
def test_what_is_not_the_usual_case(emulated, name, operand, which):
    given = operands(name, (2, 24, 6, 5), **NHWC)
    shape = OTHERS[which](given[operand]).shape
    given = [t[:, : shape[1]] if t.shape[2] == 1 else t[:, : shape[1], :, : shape[3]].clone(**KEEP) for t in given]
    given[operand] = OTHERS[which](operands(name, (2, 24, 6, 5), **NHWC)[operand])
    emulated.usual()
    check(emulated, name, given, limit={"mixed": 4e-3, "float64": 1e-6}.get(which))
    assert emulated.usual() == 0


@pytest.mark.parametrize("shape", [(2, 24, 4, 5), (1, 8, 37, 33)])
@pytest.mark.parametrize("name", NAMES)
def test_usual_channels_last_only_the_gradients_asked_for(emulated, name, shape):
    for logits in (None, (shape[0], shape[1], 1, 1)) if name.startswith(("info", "ida")) else (None,):
        given = operands(name, shape, logits=logits, **NHWC)
        grad = upstream(shape, torch.float32, torch.channels_last)
        full = found(emulated, name, given, grad)
        for needed in itertools.product((False, True), repeat=len(given)):
            emulated.usual()
            some = found(emulated, name, given, grad, needed)
            assert emulated.usual() >= 2
            for a, b, need in zip(some[1:], full[1:], needed, strict=True):
                assert torch.equal(a, b) if need else a is None


@pytest.mark.parametrize("chip", ["turing", "H100"])
@pytest.mark.parametrize("shape", [(3, 40, 6, 5), (2, 24, 24, 24), (1, 8, 100, 96)])
@pytest.mark.parametrize("name", ["info_acon", "ida activated", "with residual"])
def test_usual_channels_last_in_whatever_order_threads_run(emulated, name, shape, chip):
    given, grad = operands(name, shape, **NHWC), upstream(shape, torch.float32, torch.channels_last)
    results = []
    for order in (0, 1, 2, 2):
        emulated.chip(chip, order)
        results.append(found(emulated, name, given, grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (2, 8, 40, 33)])
@pytest.mark.parametrize("name", NAMES)
def test_usual_channels_last_keeps_what_is_not_finite_in_its_plane(emulated, name, shape, dtype, value):
    given = operands(name, shape, dtype=dtype, **NHWC)
    for operand in range(2 if name.startswith(("info", "ida")) else 1):
        spoilt = [t.clone(**KEEP) for t in given]
        spoilt[operand][0, 1, 2, 3] = value
        outputs = found(emulated, name, spoilt, upstream(shape, dtype, torch.channels_last))
        assert_stays_in_its_plane(outputs, plain(name, spoilt, torch.float32), value)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(2, 19, 9, 11), (2, 3, 8, 12), (1, 2, 48, 48), (1, 1, 72, 104)])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(emulated, name, shape, layout, dtype):
    check(emulated, name, operands(name, shape, dtype=dtype, layout=layout))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 8, 8), (1, 2, 96, 96)])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_dtypes(emulated, name, shape):
    for kinds in (
        (torch.bfloat16, torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
        (torch.float64, torch.float32),
    ):
        given = [t.to(kind) for t, kind in zip(operands(name, shape), itertools.cycle(kinds), strict=False)]
        check(emulated, name, given, limit=4e-3)


LOGITS = {
    "one a pixel": lambda n, c, h, w: (n, 1, h, w),
    "one a plane": lambda n, c, h, w: (n, c, 1, 1),
    "one a channel": lambda n, c, h, w: (1, c, 1, 1),
}


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(3, 18, 6, 5), (2, 4, 16, 16), (1, 2, 80, 80)])
@pytest.mark.parametrize("name", ["info_acon", "ida activated"])
def test_every_shape_of_logits(emulated, name, shape, layout, logits):
    check(emulated, name, operands(name, shape, logits=LOGITS[logits](*shape), layout=layout))


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["info_acon", "ida input", "with residual"])
def test_views_of_any_strides(emulated, name, dtype, view):
    slopes = {"info_acon": 2, "ida input": 2}.get(name, 0)
    given = operands(name, (2, 6, 16, 24), dtype=dtype)
    maps = [VIEWS[view](t) for t in given[: len(given) - slopes]]
    given = maps + randoms(*[(1, maps[0].shape[1], 1, 1)] * slopes, dtype=dtype)
    check(emulated, name, given)
    # Only one operand is unusual.
    given[1] = given[1].contiguous()
    given[0] = given[0].contiguous()
    check(emulated, name, given)


def test_slices_of_one_tensor(emulated):
    h, joint = randoms((2, 8, 16, 16), (2, 24, 16, 16))
    check(emulated, "ida activated", [h, *joint.chunk(3, 1), *randoms((1, 8, 1, 1), (1, 8, 1, 1))])


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (1, 2, 96, 88)])
@pytest.mark.parametrize("name", NAMES)
def test_only_the_gradients_asked_for(emulated, name, shape):
    given = operands(name, shape)
    grad = upstream(shape, torch.float32)
    full = found(emulated, name, given, grad)
    for needed in itertools.product((False, True), repeat=len(given)):
        some = found(emulated, name, given, grad, needed)
        for a, b, need in zip(some[1:], full[1:], needed, strict=True):
            assert torch.equal(a, b) if need else a is None


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_empty_tensors(emulated, name, shape):
    given = operands(name, shape)
    outputs = found(emulated, name, given, upstream(shape, torch.float32))
    assert all(a.shape == t.shape for a, t in zip(outputs, [given[0], *given], strict=True))
    assert all((a == 0).all() for a in outputs[1:])
    assert emulated.launches().count == 0


@pytest.mark.parametrize("chip", ["ampere", "small", "turing", "hopper"])
@pytest.mark.parametrize("kind", [(2, {}), (48, {"layout": torch.channels_last})], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("side", [24, 64, 100, 128])
def test_a_large_mean_with_a_small_spread(emulated, chip, side, kind):
    emulated.chip(chip)
    shape = (1, kind[0], side, side)
    given = operands("instance_norm_modulate", shape, **kind[1])
    given[0] += 1e4
    grad = upstream(shape, torch.float32, **kind[1])
    exact, eager = (expected("instance_norm_modulate", given, grad, d) for d in (torch.float64, torch.float32))
    outputs = found(emulated, "instance_norm_modulate", given, grad)
    for a, b, c in zip(outputs, exact, eager, strict=True):
        assert (a - b).norm() <= max(2 * (c - b).norm(), 1e-6 * b.norm())
    mean, rstd = emulated.ops.instance_norm_modulate(*given, None, EPS)[1:]
    torch.testing.assert_close(mean.double(), given[0].double().mean((2, 3)), rtol=1.2e-7, atol=0)
    variance = given[0].double().var((2, 3), correction=0)
    torch.testing.assert_close(rstd.double(), (variance + EPS).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_switches(emulated, dtype):
    x = torch.linspace(-200, 200, 401, dtype=dtype).reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for logit in (-1e4, -90.0, 0.0, 90.0, 1e4):
        given = [x, torch.full_like(x, logit), 2 * one, -one]
        grad = torch.ones_like(x)
        for a, b in zip(found(emulated, "info_acon", given, grad), expected("info_acon", given, grad), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_the_logistic_function_to_a_few_units_in_the_last_place(emulated):
    z = torch.linspace(-80, 80, 100_001)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    # θ = σ(40) is 1 in float32; with x = z, p1 = 1, p2 = 0 the result is z·σ(z).
    y = emulated.ops.info_acon(z.reshape(1, 1, 1, -1), 40 * one, one, zero).flatten().double()
    exact = z.double() * torch.sigmoid(z.double())
    units = (y - exact).abs() / exact.abs().clamp_min(1e-37) / torch.finfo(torch.float32).eps
    assert units.max() <= 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 3, 8, 8), (2, 3, 72, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_plane(emulated, name, shape, value):
    given = operands(name, shape)
    given[0][0, 1, 2, 3] = value
    outputs = found(emulated, name, given, upstream(shape, torch.float32))
    assert_stays_in_its_plane(outputs, plain(name, given, torch.float32), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_16_bits_round_to(emulated, dtype):
    # With p1 = p2 = 1 the result is x, if finite; float32 values between, above and far below those of 16 bits.
    x = torch.cat([torch.logspace(-45, 38, 4001), torch.tensor([0.0, -0.0, 65519.0, 65520.0, 1e-8, 6e-8, 5.97e-8])])
    x = torch.cat([x, -x, torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()])
    x = x.to(dtype)
    x = x[~x.isinf()].reshape(1, 1, 1, -1)
    one = torch.ones(1, 1, 1, 1)
    for count in (x.shape[3] // 8 * 8, x.shape[3] // 8 * 8 - 1):  # in packs, and one by one
        given = x[..., :count].contiguous()
        y = emulated.ops.info_acon(given, one, one, one)
        assert torch.equal(y.isnan(), given.isnan())
        assert torch.equal(y[~y.isnan()], given[~given.isnan()])
    # A float32 gradient, rounded.
    grad = torch.cat([torch.randn(4096) * 10.0**e for e in (-42, -8, -5, 0, 4, 37)]).reshape(1, 1, 1, -1)
    for count in (grad.shape[3], grad.shape[3] - 1):
        g = grad[..., :count].contiguous()
        dx = emulated.ops.info_acon_backward(g, torch.zeros_like(g, dtype=dtype), one, one, one, 1)[0]
        torch.testing.assert_close(dx, g.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("chip", ["turing", "ampere", "hopper", "small"])
@pytest.mark.parametrize("shape", [(3, 5, 6, 5), (2, 3, 24, 24), (1, 2, 100, 104)])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_in_whatever_order_threads_run(emulated, name, shape, chip):
    given, grad = operands(name, shape), upstream(shape, torch.float32)
    results = []
    for order in (0, 1, 2, 2):
        emulated.chip(chip, order)
        results.append(found(emulated, name, given, grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_offsets_beyond_32_bits(emulated):
    torch.use_deterministic_algorithms(False)  # which would fill these tensors
    far = 2**31 + 64
    for shape, strides in {
        (2, 3, 4, 8): (far, 40, 8, 1),  # images far apart
        (1, 2, 4, 8): (0, far, 8, 1),  # channels
        (1, 2, 2, 8): (0, 16, far, 1),  # rows
        (1, 1, 1, 3): (0, 0, 0, far),  # columns
    }.items():
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        for name in ("info_acon", "instance_norm_modulate"):
            given = operands(name, shape, dtype=torch.bfloat16)
            memory = torch.empty(reach, dtype=torch.bfloat16)
            given[0] = memory.as_strided(shape, strides).copy_(given[0])
            check(emulated, name, given)


def test_misuse_is_refused(emulated):
    e, x, slope = emulated.ops, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 1, 1)
    with pytest.raises(RuntimeError, match=r"gamma must have shape \(1, 2, 3, 4\); its shape is \(1, 2, 3, 3\)"):
        e.instance_norm_modulate(x, x[..., :3], x, None, EPS)
    with pytest.raises(RuntimeError, match="p1 must have shape"):
        e.info_acon(x, x, torch.ones(2), torch.ones(2))
    with pytest.raises(RuntimeError, match="must be float32"):
        e.info_acon(x.int(), x, slope, slope)
    with pytest.raises(RuntimeError, match="residual must be"):
        e.ida(x, x, x, x, slope, slope, 3, EPS)
    with pytest.raises(RuntimeError, match="mean and rstd must be"):
        e.instance_norm_modulate_backward(x, x, x, torch.ones(1, 2).double(), torch.ones(1, 2), 3)
