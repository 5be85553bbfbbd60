"""The CUDA deform_conv2d on chips of every size, and the workspace that it takes.

What it computes is tested in tests/ops/contract.
"""

from __future__ import annotations

import pytest
from checking import check_deformation
from operands import deformation


@pytest.mark.parametrize("path", ["tiny", "large"])
@pytest.mark.parametrize("chip", ["small", "turing", "hopper"])
def test_however_many_blocks_share_a_sum(emulated, chip, path, monkeypatch):
    monkeypatch.setenv("HIDA_DEFORM_PATH", path)
    emulated.chip(chip)
    for case in ("4² map", "more than a tile"):
        check_deformation(emulated, *deformation(case))
        assert emulated.launches().shared <= 48 << 10


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
