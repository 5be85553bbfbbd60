"""The kernels of info_acon, ida and instance_norm_modulate for any strides and dtypes: which run, on which chip.

What they compute is tested in tests/ops/contract; here on the paths that its cases do not take.
"""

from __future__ import annotations

import itertools

import oracle
import pytest
import torch
from checking import check, exact_outcome, function, outcome, relative_error
from operands import NAMES, NHWC, adaptation

REGISTERS = [(2, 3, 5, 7), (2, 5, 1, 1), (3, 5, 4, 8), (2, 3, 16, 16), (1, 2, 32, 40), (1, 2, 33, 37), (1, 2, 64, 64)]
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


def launched(emulated) -> tuple[int, int, bool]:
    launches = emulated.launches()
    return launches.count, launches.cluster, launches.shared > 0


@pytest.mark.parametrize("shape", REGISTERS, ids=str)
@pytest.mark.parametrize("name", ["with residual", "ida activated"])
def test_small_planes_stay_in_registers(emulated, name, shape):
    outcome(function(emulated.ops, name), adaptation(name, shape))
    assert emulated.launches() == (2, 1, 0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["ida activated", "with residual"])
def test_larger_planes_on_every_path(emulated, name, path):
    chip, shape, forward, backward = PATHS[path]
    emulated.chip(chip, order=2)
    given = adaptation(name, shape)
    given[1] = given[1].half()  # of one dtype, planes of a cluster are for other kernels
    check(emulated, name, given)
    emulated.launches()
    emulated.usual()
    leaves = [t.requires_grad_() for t in given]
    y = function(emulated.ops, name)(*leaves)
    assert launched(emulated) == forward
    torch.autograd.grad(y, leaves, torch.ones_like(y))
    if name == "with residual" and backward[0] > 1:
        backward = (backward[0] - 1, *backward[1:])  # there are no sums of chunks to add up
    assert launched(emulated) == backward
    assert emulated.usual() == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_large_mean_with_a_small_spread_on_every_path(emulated, path):
    chip, shape, *_ = PATHS[path]
    emulated.chip(chip)
    given = adaptation("instance_norm_modulate", shape)
    given[0] += 1e4
    given[1] = given[1].half()
    found = outcome(emulated.ops.instance_norm_modulate, given)
    exact, plain = (exact_outcome(oracle.instance_norm_modulate, given, d) for d in (torch.float64, torch.float32))
    for a, b, c in zip(found, exact, plain, strict=True):
        limit = emulated.limit("adaptation", a.dtype)
        assert relative_error(a, b) <= max(2 * relative_error(c, b), limit)


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("float16", "float32", "bfloat16")])
@pytest.mark.parametrize("shape", [(2, 2, 96, 88), (1, 2, 91, 73)])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_kept_in_a_cluster(emulated, name, shape, dtypes):
    emulated.chip("hopper", order=1)
    kinds = itertools.cycle(getattr(torch, d) for d in dtypes)
    check(emulated, name, [t.to(kind) for t, kind in zip(adaptation(name, shape), kinds, strict=False)])


@pytest.mark.parametrize("chip", ["small", "hopper"])
@pytest.mark.parametrize("shape", [(2, 35, 9, 7), (1, 5, 20, 25), (1, 33, 40, 33), (2, 8, 64, 64)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nhwc_on_every_chip(emulated, name, shape, chip):
    emulated.chip(chip, order=1)
    check(emulated, name, adaptation(name, shape, layout=NHWC))
