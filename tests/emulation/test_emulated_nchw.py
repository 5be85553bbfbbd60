"""The kernels for planes in one piece and one dtype, emulated, against plain PyTorch in float64.

Each test also sees that these kernels ran, or that they left a call to those for any strides and dtypes.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from adaptations import (
    EPS,
    LIMITS,
    NAMES,
    assert_stays_in_its_plane,
    check,
    expected,
    found,
    gradients,
    plain,
    statistics,
    upstream,
)
from operands import adaptation as operands
from operands import randoms

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def taken(emulated, name, given, limit=None, launches=(True, True)) -> tuple[int, int]:
    """Check the results of both directions and say which clusters they ran in; ``launches``: what is the usual case."""
    clusters = []
    check(emulated, name, given, limit)
    grad = upstream(given[0].shape, given[0].dtype)
    emulated.usual(), emulated.launches()
    _, *kept = statistics(emulated, name, given)
    assert emulated.usual() == launches[0]
    clusters.append(emulated.launches())
    gradients(emulated, name, given, grad, *kept)
    assert emulated.usual() == launches[1]
    clusters.append(emulated.launches())
    for made, usual in zip(clusters, launches, strict=True):
        assert not usual or (made.count == 1 and made.shared == 0)
    return clusters[0].cluster, clusters[1].cluster


def size(shape) -> str:
    return "x".join(map(str, shape))


# Planes of 8 to 256 pixels are a part of a warp, up to 32 of them; more than 256 pixels are a block's.
SMALL = [
    *[(2, 5, 1, 8), (3, 33, 2, 4), (2, 7, 3, 8), (1, 130, 4, 8), (2, 3, 8, 8), (2, 9, 9, 8), (2, 5, 16, 16)],
    *[(2, 3, 12, 22), (2, 2, 17, 16), (1, 3, 32, 32), (1, 2, 40, 51), (1, 2, 64, 32), (1, 3, 56, 40), (1, 2, 63, 64)],
    *[(2, 1, 64, 64)],
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=size)
@pytest.mark.parametrize("name", NAMES)
def test_planes_of_a_warp_and_of_a_block(emulated, name, shape, dtype):
    emulated.chip("ampere", order=2)
    assert taken(emulated, name, operands(name, shape, dtype=dtype)) == (1, 1)


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
]


@pytest.mark.parametrize(("chip", "shape", "dtype", "clusters"), CLUSTERS, ids=lambda v: str(v))
@pytest.mark.parametrize("name", NAMES)
def test_planes_of_a_cluster(emulated, name, chip, shape, dtype, clusters):
    for order in (1, 2):
        emulated.chip(chip, order)
        given = operands(name, shape, dtype=dtype)
        if name != "info_acon":
            assert taken(emulated, name, given) == clusters
            continue
        packs = shape[2] * shape[3] // 8  # one a thread backward; forward, blocks have nothing to exchange
        made = taken(emulated, name, given, launches=(True, packs <= 4096))
        assert made == (1, min(8, 1 << (packs - 1 >> 8).bit_length()) if packs <= 4096 else 1)


def test_a_float32_plane_that_is_too_large_backward(emulated):
    emulated.chip("H100")
    for name, cluster in (("ida activated", 8), ("info_acon", 1)):
        given = operands(name, (1, 1, 256, 256))
        assert taken(emulated, name, given, launches=(True, False))[0] == cluster


def test_chips_without_clusters_leave_large_planes_to_others(emulated):
    for chip in ("turing", "ampere"):
        emulated.chip(chip)
        given = operands("ida activated", (1, 2, 72, 72), dtype=torch.bfloat16)
        taken(emulated, "ida activated", given, launches=(False, False))
        taken(emulated, "info_acon", operands("info_acon", (1, 2, 96, 96)), launches=(True, False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(3, 6, 4, 8), (2, 4, 16, 18), (2, 2, 64, 64), (2, 2, 80, 80)], ids=size)
@pytest.mark.parametrize("name", ["info_acon", "ida none", "ida activated", "ida input"])
def test_slices_and_every_shape_of_logits(emulated, name, shape, dtype):
    emulated.chip("H100", order=1)
    n, c, h, w = shape
    x, joint, *slopes = randoms(shape, (n, 3 * c, h, w), (1, c, 1, 1), (1, c, 1, 1), dtype=dtype)
    parts = joint.chunk(3, 1)
    rest = [] if name == "info_acon" else parts[1:]
    taken(emulated, name, [x, parts[0], *rest, *slopes])
    taken(emulated, name, [parts[0], x, *rest, *slopes])
    for logits in ((n, c, 1, 1), (1, c, 1, 1)):
        given = operands(name, shape, logits=logits, dtype=dtype)
        taken(emulated, name, given)
        given[-2:] = [t.float() for t in given[-2:]]  # as parameters are
        taken(emulated, name, given)
    # One switch a pixel: the gradients of all channels are float32, and added up elsewhere.
    usual = (True, dtype == torch.float32)
    taken(emulated, name, operands(name, shape, logits=(n, 1, h, w), dtype=dtype), launches=usual)
    images = [t[:1].expand(n, -1, -1, -1) for t in (x, joint[:, :c])]  # one image for all
    taken(emulated, name, [x, images[1], *([images[0], x] if rest else []), *slopes])


OTHERS = {
    "misaligned": lambda t: torch.cat([t.flatten(), t.flatten()])[1 : 1 + t.numel()].reshape(t.shape),
    "a window": lambda t: torch.cat([t, t], 3)[..., : t.shape[3]],
    "every second column": lambda t: torch.stack([t, t], 4).flatten(3)[..., ::2],
    "another dtype": lambda t: t.half() if t.dtype != torch.float16 else t.float(),
    "channels that are not 16 bytes apart": lambda t: torch.cat([t.flatten(2), t.flatten(2)[..., :3]], 2)[
        ..., : t.shape[2] * t.shape[3]
    ].unflatten(2, t.shape[2:]),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 24, 40), (1, 2, 80, 72)], ids=size)
@pytest.mark.parametrize("name", ["ida input", "with residual"])
def test_one_unusual_operand_is_left_to_others(emulated, name, shape, other):
    emulated.chip("H100", order=1)
    given = operands(name, shape, dtype=torch.bfloat16)
    maps = [i for i, t in enumerate(given) if t.shape == given[0].shape]
    for i in maps:
        changed = [OTHERS[other](t) if i == j else t for j, t in enumerate(given)]
        late = i == (3 if name == "ida input" else 2) or i == 3  # β and the residual are not read backward
        taken(emulated, name, changed, limit=4e-3, launches=(False, late))


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)], ids=str)
def test_slopes_of_other_dtypes(emulated, kinds):
    given = operands("ida activated", (2, 3, 16, 16), dtype=torch.bfloat16)
    given[4:] = [t.to(kind) for t, kind in zip(given[4:], kinds, strict=True)]
    taken(emulated, "ida activated", given, launches=(False, False))


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (1, 2, 24, 24), (1, 2, 80, 88)], ids=size)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_only_the_gradients_asked_for(emulated, name, dtype, shape):
    emulated.chip("H100", order=2)
    n, c, _, _ = shape
    for logits in (None, (n, c, 1, 1)) if name.startswith("i") and "norm" not in name else (None,):
        given = operands(name, shape, logits=logits, dtype=dtype)
        grad = upstream(shape, dtype)
        full = found(emulated, name, given, grad)
        _, *kept = statistics(emulated, name, given)
        for needed in itertools.product((False, True), repeat=len(given)):
            emulated.usual()
            some = gradients(emulated, name, given, grad, *kept, needed=needed)
            assert emulated.usual() == 1
            for i, gradient in some.items():
                assert torch.equal(gradient, full[1 + i])


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["turing", "ampere", "H100"])
@pytest.mark.parametrize("shape", [(5, 7, 3, 8), (2, 3, 24, 24), (2, 2, 64, 64), (1, 2, 104, 96)], ids=size)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_in_whatever_order_threads_run(emulated, name, dtype, shape, chip):
    given, grad = operands(name, shape, dtype=dtype), upstream(shape, dtype)
    results = []
    for order in (0, 1, 2, 2):
        emulated.chip(chip, order)
        results.append(found(emulated, name, given, grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 8), (1, 3, 16, 16), (1, 2, 24, 24), (1, 2, 64, 64), (1, 2, 128, 120)], ids=size
)
@pytest.mark.parametrize("outlier", [0.0, 1e5])
def test_a_large_mean_with_a_small_spread(emulated, shape, outlier):
    emulated.chip("H100")
    name = "instance_norm_modulate"
    given = operands(name, shape)
    given[0] += 1e4
    given[0][..., 0, 0] += outlier
    grad = upstream(shape, torch.float32)
    exact, eager = (expected(name, given, grad, d) for d in (torch.float64, torch.float32))
    emulated.usual()
    outputs = found(emulated, name, given, grad)
    assert emulated.usual() == 2
    for a, b, c in zip(outputs, exact, eager, strict=True):
        assert (a - b).norm() <= max(2 * (c - b).norm(), 1e-6 * b.norm())
    mean, rstd = emulated.ops.instance_norm_modulate(*given, None, EPS)[1:]
    torch.testing.assert_close(mean.double(), given[0].double().mean((2, 3)), rtol=1.2e-7, atol=0)
    variance = given[0].double().var((2, 3), correction=0)
    torch.testing.assert_close(rstd.double(), (variance + EPS).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 2, 24, 24), (1, 2, 72, 80)], ids=size)
@pytest.mark.parametrize("slope", [1.0, 40.0, 1e4])
def test_saturated_switches(emulated, shape, slope):
    emulated.chip("H100")
    given = operands("ida activated", shape)
    given[4] *= slope
    grad = upstream(shape, torch.float32)
    for logit in (-float("inf"), -1e4, -90.0, -30.0, 0.0, 30.0, 90.0, 1e4, float("inf")):
        for where in (shape, (*shape[:2], 1, 1)):
            given[1] = torch.full(where, logit)
            exact, eager = (expected("ida activated", given, grad, d) for d in (torch.float64, torch.float32))
            emulated.usual()
            outputs = found(emulated, "ida activated", given, grad)
            assert emulated.usual() == 2
            for a, b, c in zip(outputs, exact, eager, strict=True):
                assert (a - b).norm() <= max(1e-5 * b.norm(), 3 * (c - b).norm(), 1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 24, 24), (2, 3, 72, 64)], ids=size)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_plane(emulated, name, dtype, shape, value):
    emulated.chip("H100")
    for operand in range(2 if name.startswith(("ida", "info")) else 1):
        given = operands(name, shape, dtype=dtype)
        given[operand][0, 1, 2, 3] = value
        emulated.usual()
        outputs = found(emulated, name, given, upstream(shape, dtype))
        assert emulated.usual() == 2
        assert_stays_in_its_plane(outputs, plain(name, given, torch.float32), value)


def test_distances_beyond_32_bits(emulated):
    emulated.chip("H100")
    torch.use_deterministic_algorithms(False)  # which would fill these tensors
    far = 2**31 + 64
    for shape, strides in {(2, 3, 4, 8): (far, 40, 8, 1), (1, 2, 4, 8): (0, far, 8, 1)}.items():
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        given = operands("instance_norm_modulate", shape, dtype=torch.bfloat16)
        memory = torch.empty(reach, dtype=torch.bfloat16)
        given[0] = memory.as_strided(shape, strides).copy_(given[0])
        taken(emulated, "instance_norm_modulate", given, LIMITS[torch.bfloat16])


def test_the_logistic_function_of_float32_to_a_few_units_in_the_last_place(emulated):
    z = torch.linspace(-80, 80, 100_000)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    # θ = σ(40) is 1 in float32; with x = z, p1 = 1, p2 = 0 the result is z·σ(z).
    y = emulated.ops.info_acon(z.reshape(1, 1, 1, -1), 40 * one, one, zero).flatten().double()
    assert emulated.usual() == 1
    exact = z.double() * torch.sigmoid(z.double())
    units = (y - exact).abs() / exact.abs().clamp_min(1e-37) / torch.finfo(torch.float32).eps
    assert units.max() <= 3
