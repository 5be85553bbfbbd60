"""The kernels for channels_last tensors of one dtype, emulated, against plain PyTorch in float64.

Each test also sees that these kernels ran, or that they left a call to those for any strides and dtypes.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from adaptations import NAMES, assert_stays_in_its_plane, check, found, gradients, launched, plain, statistics, upstream
from operands import adaptation as operands
from operands import randoms

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
