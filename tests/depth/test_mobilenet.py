"""The regressor and its crop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hida.depth.mobilenet import SIDE, MobileNet, crop


def test_shape_and_size():
    """Half-width MobileNetV1 without its classifier, plus a layer of 62."""
    network = MobileNet()
    widths = [16, 32, 64, 64, 128, 128, *[256] * 6, 512, 512]
    convolutions = 27 * widths[0] + sum(9 * a + a * b for a, b in itertools.pairwise(widths))
    norms = 2 * widths[0] + sum(2 * a + 2 * b for a, b in itertools.pairwise(widths))
    assert sum(p.numel() for p in network.parameters()) == convolutions + norms + 513 * 62
    with torch.inference_mode():
        assert network.eval()(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, 62)


def naive_crop(photo, left, top, right, bottom):
    """Bilinear by pixel centres, black outside the photo; blue, green, red."""
    height, width = photo.shape[:2]
    box = np.zeros((bottom - top, right - left, 3))
    for row in range(bottom - top):
        for column in range(right - left):
            if 0 <= row + top < height and 0 <= column + left < width:
                box[row, column] = photo[row + top, column + left, ::-1]

    def places(length):
        at = ((np.arange(SIDE) + 0.5) * length / SIDE - 0.5).clip(0)
        low = np.minimum(at.astype(int), length - 1)
        return low, np.minimum(low + 1, length - 1), at - low

    y0, y1, fy = places(bottom - top)
    x0, x1, fx = places(right - left)
    fy, fx = fy[:, None, None], fx[None, :, None]
    upper = box[y0][:, x0] * (1 - fx) + box[y0][:, x1] * fx
    lower = box[y1][:, x0] * (1 - fx) + box[y1][:, x1] * fx
    return (upper * (1 - fy) + lower * fy).transpose(2, 0, 1)


@pytest.mark.parametrize(
    "box",
    [
        *[(10, 5, 60, 55), (-20, -30, 40, 30), (40, 30, 140, 130), (-50, -40, 250, 260), (3, 3, 4, 4)],
        *[(-60, 0, -10, 50), (90, 0, 140, 50), (0, 200, 9, 209)],
    ],
)
def test_the_crop_is_bilinear_and_black_outside(box):
    photo = np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8)
    got = crop(torch.from_numpy(photo), *box)
    assert got.shape == (1, 3, SIDE, SIDE)
    # Bytes are rounded after the interpolation, as the network's training saw them.
    np.testing.assert_allclose(got[0].numpy() * 128 + 127.5, naive_crop(photo, *box), atol=1.01)
