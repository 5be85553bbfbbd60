"""Surroundings: where people are a small part of a photo, that part is drawn larger, and joined without an edge."""

import numpy as np
import pytest

from hida.drawing.surroundings import CLOSER, laid
from hida.drawing.views import plan, view_photo
from hida.images.alignment import TEMPLATE

SIZE = 4000, 3000


def face(scale, x, y, turned=False):
    placed = (TEMPLATE - TEMPLATE.mean(0)) * scale
    return (placed[:, ::-1] * (-1, 1) if turned else placed) + (x, y)


def test_people_who_are_small_are_drawn_larger_than_what_surrounds_them():
    wide, near = plan(SIZE, [face(0.8, 1000, 1200)]).around
    assert wide.part == (0, 0, *SIZE)
    assert wide.scale == pytest.approx(704 / 3000, rel=1e-3)
    # Two views wide and 3.75 high, of 256/1.25 pixels: 410×768 of the photo, drawn with at most 960 pixels.
    left, top, right, bottom = near.part
    assert (right - left, bottom - top) == (pytest.approx(410, abs=2), pytest.approx(768, abs=2))
    assert near.scale == pytest.approx(960 / 768, abs=0.01)
    assert left < 1000 < right
    assert top < 1200 < bottom


@pytest.mark.parametrize(
    "faces",
    [
        [face(8, 2000, 1000)],  # large
        [face(0.8, 300, 400), face(0.8, 3700, 2600)],  # far apart
    ],
)
def test_people_who_are_large_or_everywhere_have_no_view_of_their_own(faces):
    assert len(plan(SIZE, faces).around) == 1


def test_a_person_who_lies_has_the_body_beside_the_head():
    _, near = plan(SIZE, [face(0.8, 2000, 1500, turned=True)]).around
    left, top, right, bottom = near.part
    assert right - left > 1.5 * (bottom - top)
    assert near.scale > CLOSER * 704 / 3000


def test_drawing_the_photo_itself_gives_the_photo_back_without_an_edge():
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    grey = np.rint(127 + 60 * np.sin(x / 900) + 50 * np.cos(y / 700)).astype(np.uint8)
    photo = np.repeat(grey[:, :, None], 3, 2)
    around = plan(SIZE, [face(0.8, 1000, 1200)]).around
    sketches = [view_photo(photo, view.matrix, view.frame)[:, :, 0] for view in around]
    picture = laid(sketches, around, SIZE)
    assert np.abs(picture.astype(int) - grey).max() <= 4
    # The nearer drawing counts in the middle of its part, and not at its edge.
    white, black = (np.full_like(sketch, level) for sketch, level in zip(sketches, (255, 0), strict=True))
    left, top, right, bottom = around[1].part
    shares = laid([white, black], around, SIZE)
    assert (shares[(top + bottom) // 2, (left + right) // 2], shares[top - 1, left]) == (0, 255)
    assert np.abs(np.diff(shares[top:bottom, left:right].astype(int), axis=1)).max() <= 8
