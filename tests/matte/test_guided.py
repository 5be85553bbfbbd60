"""Means over squares and the guided filter, against plain loops in float64."""

import numpy as np
import torch

from hida.matte.guided import box_mean, guided_filter


def loop_mean(x, radius):
    found = np.empty_like(x)
    for row, column in np.ndindex(x.shape):
        rows = slice(max(row - radius, 0), row + radius + 1)
        found[row, column] = x[rows, max(column - radius, 0) : column + radius + 1].mean()
    return found


def test_means_of_squares_that_reach_over_the_edge():
    x = np.random.default_rng(0).random((9, 14))
    for radius in (0, 1, 4, 20):
        found = box_mean(torch.from_numpy(x), radius).numpy()
        np.testing.assert_allclose(found, loop_mean(x, radius), rtol=0, atol=1e-12)


def test_the_filter_equals_its_definition():
    rng = np.random.default_rng(1)
    guide, x = rng.random((12, 10)), rng.random((12, 10))
    radius, strength = 2, 1e-2
    mean, target = loop_mean(guide, radius), loop_mean(x, radius)
    a = (loop_mean(guide * x, radius) - mean * target) / (loop_mean(guide**2, radius) - mean**2 + strength)
    b = target - a * mean
    found = guided_filter(torch.from_numpy(guide), torch.from_numpy(x), radius, strength)
    np.testing.assert_allclose(found[0].numpy(), loop_mean(a, radius), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[1].numpy(), loop_mean(b, radius), rtol=0, atol=1e-9)


def test_an_edge_of_the_guide_is_kept_and_others_are_smoothed():
    guide = torch.zeros(40, 40)
    guide[:, 20:] = 1
    blurred = box_mean(guide, 4)
    a, b = guided_filter(guide, blurred, 6, 1e-3)
    assert ((a * guide + b)[:, 20] - (a * guide + b)[:, 19]).min() > 3 * (blurred[:, 20] - blurred[:, 19]).max()
    a, _ = guided_filter(torch.full((40, 40), 0.5), guide, 6, 1e-3)
    assert a.abs().max() < 1e-4
