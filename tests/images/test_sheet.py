"""Sheets of pictures and the conversion from tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hida.images.sheet import MARGIN, sheet, to_image


def test_values_map_linearly_onto_grey_levels():
    picture = to_image(torch.tensor([[[-1.0, 0.0, 1.0, 3.0, float("nan"), -9.0]]]))
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0, 128, 255, 255, 0, 0]]
    assert np.asarray(to_image(torch.tensor([[[0.0, 0.2, 1.0]]]), 0.0)).tolist() == [[0, 51, 255]]


def test_bytes_survive_the_way_to_a_tensor_and_back():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert (np.asarray(to_image(torch.from_numpy(values).float() / 127.5 - 1)) == values[0]).all()


def test_three_channels_become_rgb():
    picture = to_image(torch.tensor([1.0, -1.0, 1.0])[:, None, None].expand(3, 4, 5).half().requires_grad_())
    assert (picture.mode, picture.size) == ("RGB", (5, 4))
    assert picture.getpixel((0, 0)) == (255, 0, 255)


def test_a_sheet_puts_every_picture_in_its_cell():
    colours = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (0, 0, 0)]]
    rows = [[Image.new("RGB", (20, 40), colour) for colour in row] for row in colours]
    drawn = sheet(rows, (), height=80)
    assert drawn.size == (3 * MARGIN + 2 * 40, MARGIN + 2 * (80 + MARGIN))
    for i in range(2):
        for j in range(2):
            centre = (MARGIN + j * (40 + MARGIN) + 20, MARGIN + i * (80 + MARGIN) + 40)
            assert drawn.getpixel(centre) == colours[i][j]
    assert drawn.getpixel((2, 2)) == (255, 255, 255)


def test_a_heading_stands_above_its_column():
    drawn = np.asarray(sheet([[Image.new("L", (64, 64), 255)] * 2], ("first", ""), height=64))
    dark = np.argwhere(drawn[:, :, 0] < 128)
    assert len(dark)
    assert dark[:, 1].max() < MARGIN + 64  # in the first column
    assert dark[:, 0].max() < drawn.shape[0] - 64 - MARGIN  # above the pictures


def test_ragged_rows_and_extreme_shapes():
    rows = [[Image.new("L", (10, 10))], [Image.new("L", (4000, 10)), Image.new("L", (1, 500))]]
    drawn = sheet(rows, ("a", "b", "c"), height=32)
    assert drawn.width == 3 * MARGIN + 4 * 32 + 1
    dark = np.flatnonzero(np.asarray(drawn)[-MARGIN - 32 - MARGIN - 1, :, 0] < 128)  # the last line of the first row
    assert (dark[0], dark[-1] + 1) == (MARGIN + 2 * 32 - 16, MARGIN + 2 * 32 + 16)  # in the middle of its column


@pytest.mark.parametrize("rows", [[], [[]]])
def test_no_pictures(rows):
    assert sheet(rows, ("a",)).width >= 1
