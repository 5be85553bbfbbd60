"""The kernels for usual cases, of one dtype and with planes or pixels in one piece: when they run, what they compute.

Each test also sees that these kernels ran, or that they left a call to those for any strides and dtypes.
"""

from __future__ import annotations

import pytest
import torch
from checking import assert_same, check, function, outcome
from operands import NAMES, NHWC, SWITCHED, adaptation, randoms, upstream_of

DTYPES = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow), torch.float32]
some_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
KEEP = {"memory_format": torch.preserve_format}


def taken(emulated, name, given, launches=(True, True)) -> tuple[int, int]:
    """Check the results of both directions and say which clusters they ran in; ``launches``: what is the usual case."""
    check(emulated, name, given)
    leaves = [t.detach().requires_grad_() for t in given]
    emulated.usual(), emulated.launches()
    y = function(emulated.ops, name)(*leaves)
    made, usual = [emulated.launches()], [emulated.usual()]
    torch.autograd.grad(y, leaves, randoms(y.shape, dtype=y.dtype)[0])
    made, usual = [*made, emulated.launches()], [*usual, emulated.usual()]
    assert usual == list(launches)
    assert all(m.count == 1 for m, one in zip(made, launches, strict=True) if one)
    assert made[0].shared == 0 or not launches[0]  # backward, operands of the next plane are in it
    return made[0].cluster, made[1].cluster


# Planes of 8 to 256 pixels are a part of a warp, up to 32 of them; more than 256 pixels are a block's.
SMALL = [
    *[(2, 5, 1, 8), (3, 33, 2, 4), (2, 7, 3, 8), (1, 130, 4, 8), (2, 3, 8, 8), (2, 9, 9, 8), (2, 5, 16, 16)],
    *[(2, 3, 12, 22), (2, 2, 17, 16), (1, 3, 32, 32), (1, 2, 40, 51), (1, 2, 64, 32), (1, 3, 56, 40), (1, 2, 63, 64)],
    *[(2, 1, 64, 64)],
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_planes_of_a_warp_and_of_a_block(emulated, name, shape, dtype):
    emulated.chip("small ampere", order=2)  # backward, a block goes from plane to plane
    assert taken(emulated, name, adaptation(name, shape, dtype=dtype)) == (1, 1)


# chip, shape, dtype, blocks of a cluster forward and backward
CLUSTERS = [
    ("H100", (2, 2, 128, 128), torch.bfloat16, (4, 4)),
    ("H100", (1, 2, 128, 128), torch.float16, (4, 4)),
    ("H100", (1, 2, 128, 128), torch.float32, (4, 8)),
    ("H100", (1, 2, 64, 64), torch.float32, (1, 2)),
    ("H100", (2, 3, 72, 72), torch.bfloat16, (2, 2)),  # the last block has a warp less
    ("H100", (2, 3, 72, 72), torch.float32, (2, 4)),
    ("H100", (1, 3, 66, 68), torch.bfloat16, (2, 2)),  # the last one is half empty
    ("H100", (1, 2, 91, 88), torch.float32, (2, 4)),
    ("H100", (1, 3, 168, 176), torch.bfloat16, (8, 8)),
    ("H100", (1, 1, 256, 256), torch.bfloat16, (8, 8)),
    ("small hopper", (1, 1, 152, 136), torch.float32, (8, 8)),
    ("two of hopper", (2, 3, 72, 72), torch.bfloat16, (2, 2)),  # one cluster backward, for all six planes
    ("two of hopper", (1, 3, 64, 64), torch.float32, (1, 2)),
]


@pytest.mark.parametrize(("chip", "shape", "dtype", "clusters"), CLUSTERS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_planes_of_a_cluster(emulated, name, chip, shape, dtype, clusters):
    for order in (1, 2):
        emulated.chip(chip, order)
        given = adaptation(name, shape, dtype=dtype)
        if name != "info_acon":
            assert taken(emulated, name, given) == clusters
            continue
        packs = shape[2] * shape[3] // 8  # one a thread backward; forward, blocks have nothing to exchange
        made = taken(emulated, name, given, launches=(True, packs <= 4096))
        assert made == (1, min(8, 1 << (packs - 1 >> 8).bit_length()) if packs <= 4096 else 1)


def test_a_float32_plane_that_is_too_large_backward(emulated):
    emulated.chip("H100")
    for name, cluster in (("ida activated", 8), ("info_acon", 1)):
        assert taken(emulated, name, adaptation(name, (1, 1, 256, 256)), launches=(True, False))[0] == cluster


def test_chips_without_clusters_leave_large_planes_to_others(emulated):
    for chip in ("turing", "ampere"):
        emulated.chip(chip)
        given = adaptation("ida activated", (1, 2, 72, 72), dtype=torch.bfloat16)
        taken(emulated, "ida activated", given, launches=(False, False))
        taken(emulated, "info_acon", adaptation("info_acon", (1, 2, 96, 96)), launches=(True, False))


@some_dtypes
@pytest.mark.parametrize("shape", [(3, 6, 4, 8), (2, 4, 16, 18), (2, 2, 64, 64), (2, 2, 80, 80)], ids=str)
@pytest.mark.parametrize("name", SWITCHED)
def test_slices_and_every_shape_of_logits(emulated, name, shape, dtype):
    emulated.chip("H100", order=1)
    n, c, h, w = shape
    x, joint, *slopes = randoms(shape, (n, 3 * c, h, w), (1, c, 1, 1), (1, c, 1, 1), dtype=dtype)
    parts = joint.chunk(3, 1)
    rest = [] if name == "info_acon" else parts[1:]
    taken(emulated, name, [x, parts[0], *rest, *slopes])
    taken(emulated, name, [parts[0], x, *rest, *slopes])
    for logits in ((n, c, 1, 1), (1, c, 1, 1)):
        given = adaptation(name, shape, logits, dtype=dtype)
        taken(emulated, name, given)
        taken(emulated, name, [*given[:-2], *(t.float() for t in given[-2:])])  # as parameters are
    # One switch per pixel: the gradients of all channels are float32, and added up elsewhere.
    given = adaptation(name, shape, (n, 1, h, w), dtype=dtype)
    taken(emulated, name, given, launches=(True, dtype == torch.float32))
    images = [t[:1].expand(n, -1, -1, -1) for t in (x, joint[:, :c])]  # one image for all
    taken(emulated, name, [x, images[1], *([images[0], x] if rest else []), *slopes])


UNUSUAL = {
    "misaligned": lambda t: torch.cat([t.flatten(), t.flatten()])[1 : 1 + t.numel()].reshape(t.shape),
    "a window": lambda t: torch.cat([t, t], 3)[..., : t.shape[3]],
    "every second column": lambda t: torch.stack([t, t], 4).flatten(3)[..., ::2],
    "another dtype": lambda t: t.half() if t.dtype != torch.float16 else t.float(),
    "channels that are not 16 bytes apart": lambda t: torch.cat([t.flatten(2), t.flatten(2)[..., :3]], 2)[
        ..., : t.shape[2] * t.shape[3]
    ].unflatten(2, t.shape[2:]),
}


@pytest.mark.parametrize("other", UNUSUAL)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 24, 40), (1, 2, 80, 72)], ids=str)
@pytest.mark.parametrize("name", ["ida input", "with residual"])
def test_one_unusual_operand_is_left_to_others(emulated, name, shape, other):
    emulated.chip("H100", order=1)
    given = adaptation(name, shape, dtype=torch.bfloat16)
    for i in [i for i, t in enumerate(given) if t.shape == given[0].shape]:
        changed = [UNUSUAL[other](t) if i == j else t for j, t in enumerate(given)]
        late = i == (3 if name == "ida input" else 2) or i == 3  # β and the residual are not read backward
        taken(emulated, name, changed, launches=(False, late))


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)], ids=str)
def test_slopes_of_other_dtypes(emulated, kinds):
    given = adaptation("ida activated", (2, 3, 16, 16), dtype=torch.bfloat16)
    given[4:] = [t.to(kind) for t, kind in zip(given[4:], kinds, strict=True)]
    taken(emulated, "ida activated", given, launches=(False, False))


def taken_nhwc(emulated, name, given, usually=True):
    """Check the results, and which kernels they are of."""
    emulated.usual(), emulated.launches()
    check(emulated, name, given)
    launches, usual = emulated.launches().count, emulated.usual()
    if not usually:
        assert usual == 0
    else:
        assert usual == 2 or (usual == 4 and name != "info_acon")
        assert usual <= launches <= usual + 1  # one that adds up the sums of chunks


# Planes that a block has as a whole, chunks of larger ones; tiles of every width.
PACKED = [
    *[(3, 8, 2, 2), (2, 512, 2, 2), (2, 24, 4, 6), (2, 16, 16, 16), (2, 40, 16, 16), (1, 64, 1, 19), (2, 72, 19, 1)],
    *[(1, 88, 9, 7), (1, 24, 33, 37), (2, 8, 33, 37), (1, 16, 64, 64), (1, 64, 72, 33)],
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PACKED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nhwc(emulated, name, shape, dtype):
    for chip in ("turing", "H100"):
        emulated.chip(chip, order=2)
        taken_nhwc(emulated, name, adaptation(name, shape, dtype=dtype, layout=NHWC))


@pytest.mark.parametrize("shape", [(1, 64, 128, 128), (5, 128, 48, 40), (2, 256, 32, 32)], ids=str)
@pytest.mark.parametrize("name", ["info_acon", "with residual", "ida activated"])
def test_nhwc_on_a_large_chip(emulated, name, shape):
    emulated.chip("H100")
    taken_nhwc(emulated, name, adaptation(name, shape, dtype=torch.bfloat16, layout=NHWC))


# chip, shape, kernels: a block has planes of up to 1024 pixels as a whole, and one chunk of more.
KERNELS = [
    ("turing", (2, 24, 32, 32), 1),
    ("turing", (16, 8, 33, 37), 1),
    ("hopper", (3, 24, 33, 37), 2),
    ("hopper", (3, 72, 72, 72), 2),
    ("H100", (1, 64, 36, 32), 2),
]


@some_dtypes
@pytest.mark.parametrize(("chip", "shape", "kernels"), KERNELS)
@pytest.mark.parametrize("name", [*NAMES[1:], "one switch per plane"])
def test_nhwc_in_one_kernel_or_two(emulated, name, chip, shape, kernels, dtype):
    logits = shape
    if name == "one switch per plane":
        name, logits = "ida activated", (*shape[:2], 1, 1)
    given = [t.requires_grad_() for t in adaptation(name, shape, logits, dtype=dtype, layout=NHWC)]
    call, results = function(emulated.ops, name), []
    for order in range(3):
        emulated.chip(chip, order)
        emulated.launches()
        y = call(*given)
        launches = emulated.launches()
        assert (launches.count, launches.cluster, launches.shared > 0) == (kernels, 1, True)
        results.append([y.detach(), *torch.autograd.grad(y, given, upstream_of(y.detach()))])
        assert emulated.launches()[:2] == (kernels + (kernels > 1 and name.startswith("ida")), 1)
        assert_same(results[-1], results[0])
    some = outcome(call, given, [i % 2 == 0 for i in range(len(given))])
    assert_same(some[1::2], results[0][1::2])


@pytest.mark.parametrize("shape", [(2, 512, 2, 2), (2, 8, 33, 37)], ids=str)
@pytest.mark.parametrize("name", SWITCHED)
def test_a_chip_whose_own_functions_err_as_they_may(emulated, name, shape):
    for rough, logits in ((1, shape), (1, (*shape[:2], 1, 1)), (2, shape), (3, shape)):
        emulated.chip("H100", rough=rough)
        check(emulated, name, adaptation(name, shape, logits, layout=NHWC))


@some_dtypes
@pytest.mark.parametrize("shape", [(2, 24, 4, 6), (2, 40, 33, 37), (1, 64, 40, 40)], ids=str)
@pytest.mark.parametrize("name", SWITCHED)
def test_nhwc_with_one_switch_per_plane(emulated, name, shape, dtype):
    n, c, h, w = shape
    for logits in ((n, c, 1, 1), (1, c, 1, 1)):
        given = adaptation(name, shape, logits, dtype=dtype, layout=NHWC)
        taken_nhwc(emulated, name, given)
        given[1] = given[1].float()  # read once: of any dtype
        given[-1], given[-2] = given[-1].half(), given[-2].float()
        taken_nhwc(emulated, name, given)
    taken_nhwc(emulated, name, adaptation(name, shape, (n, 1, h, w), dtype=dtype, layout=NHWC), usually=False)


@some_dtypes
@pytest.mark.parametrize("shape", [(2, 24, 9, 7), (1, 8, 48, 41)], ids=str)
@pytest.mark.parametrize("name", ["info_acon", "ida input", "with residual"])
def test_nhwc_of_slices(emulated, name, shape, dtype):
    n, c, h, w = shape
    joint, p1, p2 = randoms((n, 4 * c, h, w), (1, c, 1, 1), (1, c, 1, 1), dtype=dtype, layout=NHWC)
    parts = joint.chunk(4, 1)
    given = [*parts[:2], p1, p2] if name == "info_acon" else [*parts, *([p1, p2] if name == "ida input" else [])]
    taken_nhwc(emulated, name, given)
    for view in (lambda t: t[..., 1:-1, :], lambda t: t[:, :, :1].expand(-1, -1, h, -1)):  # whole rows; one for all
        changed = [view(t) if t.shape[2] == h else t for t in given]
        taken_nhwc(emulated, name, changed, usually=changed[0].stride(2) != 0)


UNUSUAL_NHWC = {
    "misaligned": lambda t: t[:, 1:9],
    "a window": lambda t: t[:, :8, :, 1:],
    "every second column": lambda t: t[:, :8, :, ::2],
    "channels that are no packs": lambda t: t[:, :7],
    "channels first": lambda t: t[:, :8].contiguous(),
    "float64": lambda t: t[:, :8].double(),
    "mixed": lambda t: t[:, :8].half(),
    "not packed pixels": lambda t: randoms((2, 9, 6, 5), layout=NHWC)[0][:, :8],
}


@pytest.mark.parametrize("which", UNUSUAL_NHWC)
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("name", ["info_acon", "ida input", "with residual"])
def test_nhwc_that_is_not_the_usual_case(emulated, name, operand, which):
    whole = adaptation(name, (2, 24, 6, 5), layout=NHWC)
    changed = UNUSUAL_NHWC[which](whole[operand])
    c, w = changed.shape[1], changed.shape[3]
    given = [t[:, :c] if t.shape[2] == 1 else t[:, :c, :, :w].clone(**KEEP) for t in whole]
    given[operand] = changed
    emulated.usual()
    check(emulated, name, given)
    assert emulated.usual() == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 4, 8), (1, 8, 24, 24), (1, 8, 80, 88)], ids=str)
@pytest.mark.parametrize("name", ["info_acon", "with residual", "ida input"])
def test_few_gradients_are_a_usual_case_too(emulated, name, shape, dtype, layout):
    emulated.chip("H100", order=2)
    for logits in (shape, (*shape[:2], 1, 1)) if name in SWITCHED else (shape,):
        given = adaptation(name, shape, logits, dtype=dtype, layout=layout)
        full = outcome(function(emulated.ops, name), given)
        for i in range(len(given)):
            emulated.usual(), emulated.launches()
            some = outcome(function(emulated.ops, name), given, [i == k for k in range(len(given))])
            assert torch.equal(some[1 + i], full[1 + i])
            assert 1 <= emulated.usual() >= emulated.launches().count - 1  # one that adds up the sums of chunks
