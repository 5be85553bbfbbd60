"""Depth at every level's size, and styles as weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hida.models.conditions import depth_pyramid, every, style_weights
from hida.ops import OpError


def test_nearest_takes_every_kth_pixel():
    depth = torch.rand(2, 1, 32, 16)
    levels = depth_pyramid(depth, 3, "nearest")
    for level, step in zip(levels, (8, 4, 2), strict=True):
        torch.testing.assert_close(level, depth[:, :, ::step, ::step], rtol=0, atol=0)
        assert torch.equal(every(step, depth), level)


def test_gaussian_halves_with_the_binomial_kernel():
    depth = torch.rand(1, 1, 8, 16, dtype=torch.float64)
    plane, expected = depth[0, 0].numpy(), []
    weights = np.array([1, 4, 6, 4, 1]) / 16
    for _ in range(3):
        padded = np.pad(plane, 2, mode="edge")
        rows = sum(w * padded[k : k + plane.shape[0]] for k, w in enumerate(weights))
        plane = sum(w * rows[:, k : k + plane.shape[1]] for k, w in enumerate(weights))[::2, ::2]
        expected.append(plane)
    for level, exact in zip(depth_pyramid(depth, 3, "gaussian"), expected[::-1], strict=True):
        np.testing.assert_allclose(level[0, 0].numpy(), exact, rtol=1e-12)


def test_gaussian_keeps_a_constant_down_to_two_pixels():
    levels = depth_pyramid(torch.full((1, 1, 256, 256), 0.3), 7, "gaussian")
    assert [level.shape[-1] for level in levels] == [2, 4, 8, 16, 32, 64, 128]
    assert all(torch.allclose(level, torch.tensor(0.3)) for level in levels)


def test_numbers_become_rows_of_the_identity():
    weights = style_weights(torch.tensor([2, 0, 1, 7]), 4, 3)
    assert weights.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_weights_pass_as_they_are():
    mixture = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    assert style_weights(mixture, 1, 3) is mixture


@pytest.mark.parametrize(
    "style",
    [
        torch.zeros(3),
        torch.zeros(2, 3, dtype=torch.long),
        torch.zeros(2, 2),
        torch.zeros(1, dtype=torch.long),
        torch.tensor(1),
        1,
        None,
    ],
)
def test_another_shape_or_type_is_refused(style):
    with pytest.raises(OpError, match="style must be"):
        style_weights(style, 2, 3)
