"""Faces over their surroundings: each keeps its own head, whatever the order and the fineness of the drawings."""

import numpy as np
import pytest

from hida.data.framing import CROP
from hida.drawing.joining import FaceDrawing, blend_faces, finer, on_its_paper
from hida.images.alignment import IDENTITY, TEMPLATE, apply, compose, invert, similarity

PAPER = np.full((400, 600), 255, np.uint8)


def view(scale, x, y, angle=0):
    """The view of a face whose eyes and mouth have their mean at (x, y), ``scale`` times the template's size."""
    turn = scale * np.exp(1j * np.deg2rad(angle))
    placed = (TEMPLATE - TEMPLATE.mean(0)) @ (1, 1j) * turn + x + 1j * y
    return similarity(np.stack([placed.real, placed.imag], 1), TEMPLATE + 3)


def flat(matrix, level, times=1):
    return FaceDrawing.of(np.full((CROP * times,) * 2, level, np.uint8), matrix)


def inner(matrix):
    """Points of the photo on a face: eyes, mouth, forehead, cheeks, chin, in its view."""
    return apply(invert(matrix), [(98, 110), (155, 110), (127, 172), (127, 70), (85, 140), (168, 140), (127, 195)])


@pytest.mark.parametrize(
    "views",
    [
        (view(0.6, 200, 200), view(0.6, 290, 200)),  # side by side, touching
        (view(0.6, 300, 120), view(0.6, 310, 250)),  # one above the other
        (view(0.9, 250, 170), view(0.45, 330, 290, 15)),  # a child before a parent's shoulder
        (view(0.5, 150, 200, -20), view(0.55, 230, 210), view(0.5, 310, 190, 10)),
    ],
)
def test_every_face_is_drawn_by_its_own_view_alone(views):
    levels = [10 + 60 * k for k in range(len(views))]
    picture = blend_faces(PAPER, [flat(*pair) for pair in zip(views, levels, strict=True)], IDENTITY)
    backwards = blend_faces(PAPER, [flat(*pair) for pair in zip(views[::-1], levels[::-1], strict=True)], IDENTITY)
    assert np.abs(picture.astype(int) - backwards).max() <= 1
    for matrix, level in zip(views, levels, strict=True):
        for x, y in np.rint(inner(matrix)).astype(int):
            # Strokes of a neighbour may be kept, but only beyond the face.
            assert picture[y, x] == level, (level, x, y)


def test_the_heads_of_faces_without_views_stay_as_the_picture_has_them():
    one, two = view(0.6, 200, 200), view(0.6, 290, 200)
    x, y = np.rint(inner(two)).astype(int).T
    alone = blend_faces(PAPER, [flat(one, 0)], IDENTITY)
    beside = blend_faces(PAPER, [flat(one, 0)], IDENTITY, [two])
    assert (alone[y, x] < 255).any()
    assert (beside[y, x] == 255).all()
    x, y = np.rint(inner(one)).astype(int).T
    assert (beside[y, x] == 0).all()


def test_faces_far_apart_are_blended_as_if_they_were_alone():
    views = view(0.3, 100, 200), view(0.3, 480, 200, 30)
    together = blend_faces(PAPER, [flat(matrix, 90) for matrix in views], IDENTITY)
    alone = np.minimum(*(blend_faces(PAPER, [flat(matrix, 90)], IDENTITY) for matrix in views))
    np.testing.assert_array_equal(together, alone)


def test_faces_are_drawn_on_the_paper_of_the_picture():
    picture = np.full((400, 600), 234, np.uint8)
    picture[:, 300:] = np.where(np.arange(300) % 7 < 2, 90, 234)  # strokes count in neither
    sketch = np.full((CROP * 2,) * 2, 227, np.uint8)
    sketch[200:260, 200:300] = 0
    # One face is cut off by the edge of the picture.
    views = view(0.5, 150, 200), view(0.5, 320, 200, 10), view(0.5, 10, 200)
    drawings = [FaceDrawing.of(sketch, matrix) for matrix in views]
    for drawing in on_its_paper(picture, drawings, IDENTITY):
        assert np.unique(drawing.sketch).tolist() == [0, 234]
    # The face has no blank rim, or is outside of the picture: it stays; papers much apart are brought nearer only.
    dark = FaceDrawing.of(
        np.where(np.arange(CROP) % 2, 255, 30).astype(np.uint8) * np.ones((CROP, 1), np.uint8), views[0]
    )
    outside = FaceDrawing.of(sketch, view(0.1, -900, -900))
    for drawing in (dark, outside):
        np.testing.assert_array_equal(on_its_paper(picture, [drawing], IDENTITY)[0].sketch, drawing.sketch)
    assert on_its_paper(picture, [flat(views[0], 210)], IDENTITY)[0].sketch.max() == 223


@pytest.mark.parametrize("times", [2, 4])
def test_a_finer_drawing_is_at_the_same_place(times):
    ramp = np.add.outer(np.arange(CROP), np.arange(CROP)).astype(np.float32)
    coarse = np.rint(ramp / ramp.max() * 200).astype(np.uint8)
    at = (np.arange(CROP * times) + 0.5) / times - 0.5
    fine = np.rint(np.add.outer(at, at) / ramp.max() * 200).clip(0, 255).astype(np.uint8)
    matrix = view(0.7, 300, 210, 25)
    drawings = FaceDrawing.of(coarse, matrix), FaceDrawing.of(fine, matrix)
    np.testing.assert_allclose(drawings[1].view, matrix, atol=1e-12)
    one, two = (blend_faces(PAPER, [drawing], IDENTITY).astype(int) for drawing in drawings)
    assert np.abs(one - two).max() <= 3


def test_pixel_centres_of_finer_views_cover_the_same_square():
    for times in (2, 3):
        outer = finer(IDENTITY, times)
        np.testing.assert_allclose(apply(outer, [[-0.5, -0.5], [255.5, 255.5]]), [[-0.5] * 2, [256 * times - 0.5] * 2])
        np.testing.assert_allclose(finer(outer, 1 / times), IDENTITY, atol=1e-12)


def test_the_place_moves_faces_with_the_picture():
    matrix, place = view(0.5, 200, 150, 10), np.array([[0.0, 1.0, 40.0], [-1.0, 0.0, 380.0]])
    drawing = FaceDrawing.of(np.random.default_rng(2).integers(0, 255, (CROP, CROP), np.uint8), matrix)
    moved = FaceDrawing.of(drawing.sketch, compose(invert(place), matrix))
    np.testing.assert_array_equal(blend_faces(PAPER, [drawing], place), blend_faces(PAPER, [moved], IDENTITY))
