"""Blank paper: what is one colour in a photo is, in the sketch, and all else stays."""

import numpy as np
import pytest

from hida.drawing.blank import blankness, leave_blank


def photo_of(left, right):
    """A photo whose left half has one grey level, and whose right half has others, from two to the next."""
    grey = np.full((256, 512), left, np.uint8)
    grey[:, 256:] = np.random.default_rng(0).integers(*right, (64, 64)).repeat(4, 0).repeat(4, 1)
    return np.repeat(grey[:, :, None], 3, 2)


def tufts():
    sketch = np.full((256, 512), 240, np.uint8)
    sketch[::16] = 30
    return sketch


@pytest.mark.parametrize(("level", "right"), [(200, (100, 240)), (255, (0, 255)), (61, (0, 200))])
def test_one_colour_is_blank_and_the_rest_is_untouched(level, right):
    result = leave_blank(tufts(), blankness(photo_of(level, right)))
    assert (result[:, :220] == 240).all()
    np.testing.assert_array_equal(result[:, 256:], tufts()[:, 256:])


@pytest.mark.parametrize(("level", "right"), [(30, (100, 240)), (0, (0, 200))])
def test_black_cloth_is_drawn(level, right):
    photo = photo_of(level, right)
    photo[:8] = np.random.default_rng(3).integers(0, 256, (8, 512, 3))
    np.testing.assert_array_equal(leave_blank(tufts(), blankness(photo)), tufts())


def test_a_black_bar_from_edge_to_edge_is_none():
    photo = np.random.default_rng(1).integers(0, 256, (256, 512, 3), np.uint8)
    photo[128:] = 0
    result = leave_blank(tufts(), blankness(photo))
    assert (result[160:] == 240).all()
    np.testing.assert_array_equal(result[:128], tufts()[:128])


def test_soft_shading_and_noise_are_no_single_colour():
    ramp = np.repeat(np.linspace(70, 255, 512)[None], 256, 0)
    noise = np.random.default_rng(2).normal(150, 12, (256, 512))
    for grey in (ramp, noise):
        photo = np.repeat(grey.astype(np.uint8)[:, :, None], 3, 2)
        np.testing.assert_array_equal(leave_blank(tufts(), blankness(photo)), tufts())
