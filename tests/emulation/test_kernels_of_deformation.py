"""The CUDA deform_conv2d on chips of every size, and the workspace that it takes.

What it computes is tested in tests/ops/contract.
"""

from __future__ import annotations

import pytest
import torch
from backends import slow
from checking import assert_same, check_deformation, deform, outcome
from operands import NHWC, deformation, pair, randoms

# Few pixels: N, C_in, C_out, height, width, side of the kernel, groups, deformable groups.
FEW_PIXELS = {
    "a pixel": (33, 24, 16, 1, 1, 3, 1, 2),
    "2², halves of the depth": (16, 160, 48, 2, 2, 3, 1, 2),
    "4², tiles in twos": (16, 80, 72, 4, 4, 3, 1, 2),
    "8², pixels and channels in lots": (1, 160, 8, 8, 8, 3, 1, 1),
    "odd sizes, groups that cross": (4, 36, 26, 3, 5, 3, 2, 3),
    "25 taps, odd channels": (1, 10, 6, 7, 7, 5, 2, 1),
}
AUTOCAST = (torch.bfloat16, torch.float32, torch.float32, torch.float32, torch.float32)


@pytest.mark.parametrize("path", ["tiny", "large"])
@pytest.mark.parametrize("chip", ["small", "turing", "hopper"])
def test_however_many_blocks_share_a_sum(emulated, chip, path, monkeypatch):
    monkeypatch.setenv("HIDA_DEFORM_PATH", path)
    emulated.chip(chip)
    for case in ("4² map", "more than a tile"):
        check_deformation(emulated, *deformation(case))
        assert emulated.launches().shared <= 48 << 10


@pytest.mark.parametrize(
    "dtypes", [AUTOCAST, [torch.float32] * 5, *slow([torch.float16] * 5)], ids=["autocast", "float", "half"]
)
@pytest.mark.parametrize("case", FEW_PIXELS)
def test_few_pixels_take_three_launches_each_way(emulated, case, dtypes):
    n, c, c_out, h, w, side, groups, deformable = FEW_PIXELS[case]
    points = deformable * side**2
    shapes = (n, c, h, w), (n, 2 * points, h, w), (c_out, c // groups, side, side), (c_out,), (n, points, h, w)
    layout = torch.contiguous_format if dtypes is AUTOCAST else NHWC
    x, offset, weight, bias, mask = (t.to(d) for t, d in zip(randoms(*shapes, layout=layout), dtypes, strict=True))
    tensors, steps = [x, offset, weight.contiguous(), bias, mask], (pair(1), pair(side // 2), pair(1))
    emulated.chip("turing")
    found = check_deformation(emulated, tensors, steps)
    assert emulated.launches().count == 6
    emulated.chip("turing", order=2)
    assert_same(outcome(deform(emulated.ops, steps), tensors), found)


@pytest.mark.parametrize(
    "case", ["more than a tile", "groups that cross deformable groups", "several tiles of channels"]
)
def test_however_little_workspace(emulated, case, monkeypatch):
    monkeypatch.setenv("HIDA_DEFORM_PATH", "large")
    for bytes_ in (1, 400_000):
        monkeypatch.setenv("HIDA_DEFORM_WORKSPACE", str(bytes_))
        check_deformation(emulated, *deformation(case, batch=3))


@pytest.mark.parametrize("dtype", [0, 2], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("batch", "channels", "side"), [(16, 64, 128), (16, 128, 64), (64, 64, 128), (16, 64, 256)])
def test_workspace_is_less_than_a_twentieth_of_the_columns(emulated, batch, channels, side, last, dtype):
    emulated.chip("H100")
    columns = 9 * batch * channels * side**2 * (4 if dtype == 0 else 2)
    for bytes_, images in emulated.deform_plan(batch, channels, channels, side, dtype, last).values():
        assert bytes_ < columns / 20
        assert 1 <= images <= batch
        assert images == batch or not last  # nothing is rearranged; dx has lots of its own
