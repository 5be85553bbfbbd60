"""Sheets of pictures and the conversion from tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hida.images.sheet import MARGIN, on_white, picture_sheet, sheet, to_image


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
    drawn = sheet(rows, (), height=32)
    assert drawn.width == 3 * MARGIN + 4 * 32 + 1
    dark = np.flatnonzero(np.asarray(drawn)[-MARGIN - 32 - MARGIN - 1, :, 0] < 128)  # the last line of the first row
    assert (dark[0], dark[-1] + 1) == (MARGIN + 2 * 32 - 16, MARGIN + 2 * 32 + 16)  # in the middle of its column


def boxes(drawn, colours):
    """Return (left, top, right, bottom) of every colour on a sheet."""
    values = np.asarray(drawn)
    found = [np.argwhere((values == colour).all(2)) for colour in colours]
    return [(int(at[0, 1]), int(at[0, 0]), int(at[-1, 1]) + 1, int(at[-1, 0]) + 1) for at in found]


RED, GREEN, BLUE, GOLD = (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 180, 0)


@pytest.mark.parametrize(
    ("size", "count", "columns"),
    [
        ((100, 100), 4, 4),  # a strip
        ((75, 100), 4, 4),
        ((150, 100), 4, 2),  # two rows of two
        ((100, 100), 2, 2),
        ((600, 100), 2, 1),  # a panorama and its sketch below
        ((1000, 100), 4, 1),
        ((10, 100), 4, 4),
        ((100, 100), 1, 1),
    ],
)
def test_pictures_of_any_shape_keep_it_and_have_even_margins(size, count, columns):
    colours = [RED, GREEN, BLUE, GOLD][:count]
    drawn = picture_sheet([Image.new("RGB", size, colour) for colour in colours], ["x"] * count, side=256)
    found = boxes(drawn, colours)
    assert len({left for left, *_ in found}) == columns
    assert len({(right - left, bottom - top) for left, top, right, bottom in found}) == 1
    left, top, right, bottom = found[0]
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.02)
    assert (right - left) * (bottom - top) == pytest.approx(256**2, rel=0.02) or max(right - left, bottom - top) == 1024
    last = found[-1]
    assert left == drawn.width - max(box[2] for box in found) == drawn.height - last[3] == MARGIN
    if columns > 1:
        assert found[1][0] - right == MARGIN


def test_long_headings_are_wrapped_and_a_long_word_widens_its_column():
    pictures = [Image.new("RGB", (20, 200), RED), Image.new("RGB", (200, 200), GREEN)]
    drawn = sheet([pictures], ("33.3 % 1, 33.3 % 2, 33.3 % 3, 10 % 4", "unbreakable" * 9), height=200)
    first, second = boxes(drawn, (RED, GREEN))
    assert second[2] - second[0] == 200
    assert drawn.width > 600  # nine words at least 40 pixels wide
    ink = np.argwhere(np.asarray(drawn)[: first[1], :, 0] < 128)
    assert ink[:, 1].min() >= MARGIN // 2
    assert ink[:, 1].max() < drawn.width - MARGIN // 2
    gaps = np.flatnonzero(
        np.diff(np.flatnonzero((np.asarray(drawn)[: first[1], : first[2] + MARGIN, 0] < 128).any(1))) > 1
    )
    assert len(gaps) >= 3  # several lines above the narrow picture
    assert ink[:, 0].max() < first[1]


def test_what_is_transparent_is_white_paper():
    clear = Image.new("LA", (8, 8), (0, 0))
    assert on_white(clear).getcolors() == [(64, 255)]
    assert on_white(clear).mode == "L"
    assert on_white(Image.new("RGBA", (8, 8), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert sheet([[clear]], (), height=8).getcolors() == [((8 + 2 * MARGIN) ** 2, (255, 255, 255))]


@pytest.mark.parametrize("rows", [[], [[]]])
def test_no_pictures(rows):
    assert sheet(rows, ("a",)).width >= 1
