"""leaky_norm's kernels: one for each direction; memory in any arrangement reaches them."""

from __future__ import annotations

import pytest
import torch
from operands import NHWC, randoms, upstream_of

# chip, shape, kernels: a block has planes of up to 2048 pixels as a whole, and one chunk of more.
KERNELS = [
    *[("turing", (2, 24, 32, 32), 1), ("turing", (1, 40, 45, 45), 1), ("turing", (2, 8, 46, 45), 2)],
    *[("H100", (33, 40, 1, 1), 1), ("H100", (1, 64, 34, 34), 1), ("small hopper", (5, 64, 46, 45), 2)],
]


def launched(emulated, *call):
    """Return the result of an operator and how many kernels it launched, all of them those for channels_last."""
    emulated.usual(), emulated.launches()
    result = getattr(emulated.operators, call[0])(*call[1:])
    made = emulated.launches()
    assert emulated.usual() == made.count
    assert made.cluster == 1
    return result, made.count


@pytest.mark.parametrize(("chip", "shape", "kernels"), KERNELS)
def test_one_kernel_or_two(emulated, chip, shape, kernels):
    emulated.chip(chip, order=1)
    (x,) = randoms(shape, dtype=torch.bfloat16, layout=NHWC)
    (y, mean, rstd), forward = launched(emulated, "leaky_norm", x, 0.2, 1.0, 1e-5)
    _, backward = launched(emulated, "leaky_norm_backward", upstream_of(y), x, mean, rstd, 0.2, 1.0)
    assert (forward, backward) == (kernels, kernels)


def test_what_is_arranged_in_another_way_is_copied(emulated):
    x, whole = randoms((2, 16, 5, 6), (2, 48, 5, 6), layout=NHWC)
    kept = launched(emulated, "leaky_norm", x, 0.2, 0.2, 1e-5)[0]
    expected = launched(emulated, "leaky_norm_backward", x, x, *kept[1:], 0.2, 0.2)[0]
    whole[:, 3:19] = x
    for given in (whole[:, 3:19], x.transpose(2, 3).to(memory_format=NHWC).transpose(2, 3)):
        found = launched(emulated, "leaky_norm", given, 0.2, 0.2, 1e-5)[0]
        assert all(map(torch.equal, found, kept))
        dx = launched(emulated, "leaky_norm_backward", given.contiguous(), given, *found[1:], 0.2, 0.2)[0]
        assert torch.equal(dx, expected)
        assert all(t.is_contiguous(memory_format=NHWC) for t in (found[0], dx))
