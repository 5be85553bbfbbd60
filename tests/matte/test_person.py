"""The matte of a photo: its people whole, nothing else, however large or turned."""

import warnings

import numpy as np
import pytest
import torch

from hida.matte import NoPersonWarning, person_matte
from hida.matte.person import _near_people

POINTS = np.array([[203.0, 101.0], [247.0, 103.0], [224.0, 145.0]])
"""Eyes and mouth of the astronaut."""


@pytest.fixture(scope="module")
def astronaut():
    return pytest.importorskip("skimage.data", reason="scikit-image brings the astronaut's photo").astronaut()


@pytest.fixture(scope="module")
def matte(astronaut):
    return person_matte(astronaut, [POINTS])


def test_the_person_and_nothing_else(matte):
    assert (matte.shape, matte.dtype) == ((512, 512), np.uint8)
    assert matte[70:160, 195:255].min() > 220  # the face
    assert matte[300:420, 150:250].min() > 240  # the suit
    assert matte[:60, :60].max() < 10
    assert matte[150:250, 400:500].max() < 25  # the shuttle


def test_a_turned_photo_has_the_turned_matte(astronaut, matte):
    x, y = POINTS.T
    for quarters, points in (1, np.stack((y, 511 - x), 1)), (2, 511 - POINTS), (3, np.stack((511 - y, x), 1)):
        turned = person_matte(np.rot90(astronaut, quarters), [points])
        np.testing.assert_array_equal(turned, np.rot90(matte, quarters))


def test_a_small_person_is_looked_at_closely(astronaut, matte):
    photo = np.full((1500, 1800, 3), (90, 120, 90), np.uint8)
    photo[988:, 1000:1512] = astronaut
    found = person_matte(photo, [POINTS + np.array([1000, 988])])
    assert np.mean((found[988:1400, 1000:1512] > 127) != (matte[:412] > 127)) < 0.03  # 0.43 from afar
    assert found[:800].max() < 10


def test_a_photo_without_a_person():
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    with pytest.warns(NoPersonWarning, match="no person was found"):
        assert person_matte(photo) is None
    with warnings.catch_warnings():  # where a face was found there is one
        warnings.simplefilter("error")
        assert person_matte(photo, [np.array([[30.0, 25], [50, 25], [40, 45]])])[30:38, 36:44].min() > 200


def test_parts_are_people_if_they_have_a_face_or_are_large():
    rough = torch.zeros(128, 128)
    rough[10:30, 10:30] = 1  # a child's head
    rough[60:120, 60:120] = 0.9  # somebody from behind
    rough[10:18, 90:98] = 0.8  # a lamp
    near = _near_people(rough, [np.array([20.0, 20.0])])
    assert near[10:30, 10:30].min() == 1
    assert near[60:120, 60:120].min() == 1
    assert near[10:18, 90:98].max() == 0
    assert _near_people(rough, [])[10:18, 90:98].max() == 0
    assert _near_people(rough, [np.array([94.0, 14.0])])[10:18, 90:98].min() == 1
