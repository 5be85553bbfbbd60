"""Views: every photo pixel is drawn, faces land in their place, and composition undoes the cutting."""

import numpy as np
import pytest

from hida.data.framing import CROP
from hida.drawing.views import CANVAS, MARGIN, RIM, compose_picture, plan, shift, view_depth, view_photo
from hida.images.alignment import TEMPLATE, apply, compose, similarity


def smooth(width, height):
    """A photo whose grey values are a slow function of position, so that resampling hardly changes it."""
    y, x = np.mgrid[:height, :width]
    grey = 127 + 60 * np.sin(x / width * 3) + 50 * np.cos(y / height * 2)
    return np.repeat(np.rint(grey).astype(np.uint8)[:, :, None], 3, 2)


def face_points(scale, angle, x, y):
    """The template turned, scaled and moved, as a photo would show it."""
    turn = scale * np.exp(1j * np.deg2rad(angle))
    placed = (TEMPLATE - TEMPLATE.mean(0)) @ (1, 1j) * turn + x + 1j * y
    return np.stack([placed.real, placed.imag], 1)


def test_an_aligned_photo_is_one_view_cut_without_resampling():
    photo = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    drawn = plan((250, 250), TEMPLATE)
    assert len(drawn.views) == 1
    np.testing.assert_array_equal(drawn.face, shift(MARGIN, MARGIN))
    view = view_photo(photo, drawn.face)
    np.testing.assert_array_equal(view[3:253, 3:253], photo)
    picture = np.asarray(compose_picture(drawn, [view[:, :, 0]]))
    np.testing.assert_array_equal(picture, photo[:, :, 0])


@pytest.mark.parametrize("angle", [0, 30, -75, 180])
def test_the_face_stands_upright_in_its_place(angle):
    points = face_points(0.8, angle, 300, 200)
    drawn = plan((640, 480), points)
    np.testing.assert_allclose(apply(drawn.face, points), TEMPLATE + MARGIN, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "points"),
    [
        ((640, 480), face_points(0.8, 20, 300, 200)),
        ((480, 640), face_points(2.0, 0, 240, 300)),
        ((900, 200), face_points(0.4, -10, 450, 100)),
        ((512, 512), None),
        ((1300, 700), None),
        ((300, 17), None),
        ((1, 1), None),
        ((40, 60), face_points(0.1, 0, 20, 30)),
    ],
)
def test_drawing_the_photo_itself_gives_the_photo_back(size, points):
    photo = smooth(*size)
    drawn = plan(size, points)
    views = [view_photo(photo, matrix, drawn.side) for matrix in drawn.views]
    assert all(view.shape == (drawn.side, drawn.side, 3) for view in views)
    picture = compose_picture(drawn, [view[:, :, 0] for view in views])
    assert picture.size == size
    assert picture.mode == "L"
    difference = np.abs(np.asarray(picture).astype(int) - photo[:, :, 0])
    assert np.quantile(difference, 0.99) <= 4
    assert difference.mean() < 1.5


def test_a_photo_without_surroundings_is_white_far_from_the_face():
    drawn = plan((640, 480), face_points(0.4, 0, 320, 240), surroundings=False)
    assert len(drawn.views) == 1
    picture = np.asarray(compose_picture(drawn, [np.zeros((CROP, CROP), np.uint8)]))
    assert picture[[0, -1, 240], [0, -1, 320]].tolist() == [255, 255, 0]


def test_large_photos_cost_a_bounded_number_of_views():
    drawn = plan((10000, 8000), face_points(0.2, 0, 5000, 3000))
    assert len(drawn.views) <= 1 + 7 * 7
    assert max(drawn.canvas) <= CANVAS
    assert len(plan((9000, 7000), None).views) <= 16
    # Up to the bound nothing is enlarged or reduced.
    assert plan((1500, 900), None).canvas == (1500, 900)


def test_tiles_have_the_scale_of_the_face():
    drawn = plan((380, 380), face_points(0.5, 0, 190, 190))
    assert np.hypot(*drawn.face[:, 0]) == pytest.approx(2.0)
    assert drawn.canvas == (760, 760)


def test_the_rims_of_tiles_are_not_used():
    drawn = plan((1536, 1500), None)
    tile = np.zeros((drawn.side, drawn.side), np.uint8)
    tile[RIM:-RIM, RIM:-RIM] = 200
    picture = np.asarray(compose_picture(drawn, [tile] * len(drawn.views)))
    assert (picture == 200).all()


@pytest.mark.parametrize(
    ("size", "side", "count"),
    [((200, 100), 256, 1), ((512, 400), 512, 1), ((513, 200), 512, 2), ((1536, 1536), 512, 16)],
)
def test_without_a_face_one_piece_up_to_512_pixels_and_large_tiles_beyond(size, side, count):
    drawn = plan(size, None)
    assert (drawn.side, len(drawn.views)) == (side, count)


def test_depth_beyond_the_photo_is_far_and_stays_in_range():
    depth = np.ones((100, 100), np.float32)
    view = view_depth(depth, compose(similarity(TEMPLATE), shift(78, 78)))
    assert (view.min(), view.max(), view[100, 100], view[0, 0]) == (0, 1, 1, 0)
