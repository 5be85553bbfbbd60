"""Portraits: head and shoulders fill them, a tilted head stays tilted, and what the photo lacks is paper."""

import numpy as np
import pytest

from hida.data.framing import CROP
from hida.drawing.joining import FaceDrawing
from hida.drawing.views import compose_picture, picture_matte, portrait
from hida.images.alignment import TEMPLATE, apply


def face_points(scale, angle, x, y):
    """The template turned, scaled and moved, as a photo would show it."""
    turn = scale * np.exp(1j * np.deg2rad(angle))
    placed = (TEMPLATE - TEMPLATE.mean(0)) @ (1, 1j) * turn + x + 1j * y
    return np.stack([placed.real, placed.imag], 1)


def hatched(width, height):
    """Strokes on grey paper."""
    return np.where(np.add.outer(np.arange(height), np.arange(width)) // 20 % 3 > 0, 240, 60).astype(np.uint8)


def test_a_portrait_runs_out_into_paper_where_the_photo_ends_and_has_no_face_that_is_outside():
    faces = [face_points(1, 0, 90, 90), face_points(0.3, 0, 160, 30)]
    drawn = portrait((180, 180), [*faces, face_points(0.3, 0, 3000, 100)], 900)
    assert drawn.chosen == (0, 1)
    faces = [FaceDrawing.of(hatched(CROP, CROP), view) for view in drawn.faces]
    picture = np.asarray(compose_picture(drawn, [hatched(*drawn.around[0].frame)], faces))
    top, bottom = apply(drawn.place, [[90, -21], [90, 200]]).round().astype(int)[:, 1]
    assert 0 < top < bottom < 900
    assert (picture[:top] == 240).all()
    assert (picture[bottom:] == 240).all()
    assert picture[420:480, 330:390].min() < 90
    # A matte runs out with it, and is whole inside.
    matte = picture_matte(np.full((180, 180), 255, np.uint8), drawn)
    assert matte[450, 360] == 255
    assert not matte[:top].any()


@pytest.mark.parametrize(
    ("angle", "kept"), [(0, 0), (20, 20), (-25, -25), (30, 15), (-37.5, 0), (45, 0), (-46, 0), (65, -25), (180, 0)]
)
def test_a_portrait_keeps_the_tilt_of_a_head_and_turns_what_a_camera_must_have_tilted(angle, kept):
    points = face_points(1, angle, 500, 500)
    left, right = apply(portrait((1000, 1000), [points], 750).place, points)[:2]
    assert np.rad2deg(np.arctan2(*(right - left)[::-1])) == pytest.approx(kept, abs=1e-6)


def test_a_photo_that_shows_less_is_in_the_middle_of_its_portrait_and_fills_it_where_it_can():
    # A head alone: as near as a portrait gets, the same paper above and below.
    drawn = portrait((180, 180), [face_points(1, 0, 92, 94)], 750)
    (left, top), (right, bottom) = apply(drawn.place, [[-0.5, -0.5], [179.5, 179.5]])
    assert (bottom - top) / 750 == pytest.approx(180 / 57.5 / (0.64 * 7.5))
    assert left + right == pytest.approx(599, abs=0.1)
    assert top + bottom == pytest.approx(749, abs=0.1)
    # With shoulders, photo and portrait end together.
    drawn = portrait((280, 350), [face_points(1, 0, 141, 175)], 750)
    np.testing.assert_allclose(apply(drawn.place, [[-0.5, -0.5], [279.5, 349.5]]), [[-0.5, -0.5], [599.5, 749.5]], 1e-6)
