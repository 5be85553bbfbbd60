"""Views: every photo pixel is drawn, faces land in their place, and composition undoes the cutting."""

import numpy as np
import pytest

from hida.drawing.joining import FaceDrawing
from hida.drawing.views import CANVAS, MARGIN, RIM, compose_picture, plan, portrait, shift, view_depth, view_photo
from hida.images.alignment import TEMPLATE, apply, compose, scale_of, similarity, warp


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


def joined(drawn, views):
    """The picture of views that are drawn at 256 pixels."""
    around = len(drawn.tiles)
    return compose_picture(drawn, views[:around], list(map(FaceDrawing.of, views[around:], drawn.faces)))


def test_an_aligned_photo_is_one_view_cut_without_resampling():
    photo = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    drawn = plan((250, 250), [TEMPLATE])
    assert len(drawn.views) == 1
    np.testing.assert_array_equal(drawn.faces[0], shift(MARGIN, MARGIN))
    view = view_photo(photo, drawn.faces[0])
    np.testing.assert_array_equal(view[3:253, 3:253], photo)
    picture = np.asarray(joined(drawn, [view[:, :, 0]]))
    np.testing.assert_array_equal(picture, photo[:, :, 0])


@pytest.mark.parametrize("angle", [0, 30, -75, 180])
def test_the_face_stands_upright_in_its_place(angle):
    points = face_points(0.8, angle, 300, 200)
    drawn = plan((640, 480), [points])
    np.testing.assert_allclose(apply(drawn.faces[0], points), TEMPLATE + MARGIN, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "faces"),
    [
        ((640, 480), [face_points(0.8, 20, 300, 200)]),
        ((480, 640), [face_points(2.0, 0, 240, 300)]),
        ((900, 200), [face_points(0.4, -10, 450, 100)]),
        ((640, 480), [face_points(1.2, 5, 200, 240), face_points(0.5, -20, 360, 200), face_points(0.6, 0, 500, 300)]),
        ((250, 250), [TEMPLATE, face_points(0.4, 0, 40, 60)]),
        ((512, 512), []),
        ((1300, 700), []),
        ((300, 17), []),
        ((1, 1), []),
        ((40, 60), [face_points(0.1, 0, 20, 30)]),
    ],
)
def test_drawing_the_photo_itself_gives_the_photo_back(size, faces):
    photo = smooth(*size)
    drawn = plan(size, faces)
    views = [view_photo(photo, matrix, drawn.side) for matrix in drawn.views]
    assert all(view.shape == (drawn.side, drawn.side, 3) for view in views)
    picture = joined(drawn, [view[:, :, 0] for view in views])
    assert picture.size == size
    assert picture.mode == "L"
    difference = np.abs(np.asarray(picture).astype(int) - photo[:, :, 0])
    assert np.quantile(difference, 0.99) <= 4
    assert difference.mean() < 1.5


def test_large_photos_cost_a_bounded_number_of_views():
    drawn = plan((10000, 8000), [face_points(0.2, 0, 5000, 3000)])
    assert len(drawn.views) <= 1 + 7 * 7
    assert max(drawn.canvas) <= CANVAS
    assert len(plan((9000, 7000), []).views) <= 16
    # Up to the bound nothing is enlarged or reduced.
    assert plan((1500, 900), []).canvas == (1500, 900)


def test_tiles_have_the_scale_of_the_face():
    drawn = plan((380, 380), [face_points(0.5, 0, 190, 190)])
    assert np.hypot(*drawn.faces[0][:, 0]) == pytest.approx(2.0)
    assert drawn.canvas == (760, 760)


def test_tiles_of_several_faces_have_a_scale_between_theirs_nearer_to_the_large():
    scales = []
    for sizes in ((1.0,), (0.5,), (1.0, 0.5), (1.0, 0.5, 0.5), (1.0, 1.0, 0.5)):
        faces = [face_points(size, 0, 150 + 150 * k, 200) for k, size in enumerate(sizes)]
        drawn = plan((440, 400), faces)
        scales.append(scale_of(drawn.to_canvas))
        np.testing.assert_allclose([scale_of(view) for view in drawn.faces], 1 / np.array(sizes))
    large, small, two, more_small, more_large = scales
    assert (large, small) == (pytest.approx(1), pytest.approx(2, rel=0.02))
    assert 1 < more_large < two < more_small < 2
    assert two < 2**0.5


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_portrait_is_the_upright_photo_around_the_head(quarters):
    """Against the photo itself, turned by numpy: a portrait of the photo as its own drawing."""
    photo = smooth(700, 900)
    middle = (350.5, 399.5)
    turned = np.ascontiguousarray(np.rot90(photo, quarters))
    points = face_points(0.8, 0, *middle)
    for _ in range(quarters):
        # np.rot90: (x, y) of a picture of some width goes to (y, width - 1 - x).
        width = 700 if _ % 2 == 0 else 900
        points = np.stack([points[:, 1], width - 1 - points[:, 0]], 1)
    size = turned.shape[1], turned.shape[0]
    drawn = portrait(size, [points], 500)
    assert drawn.size == (400, 500)
    picture = joined(drawn, [view_photo(turned, matrix)[:, :, 0] for matrix in drawn.views])
    assert (picture.size, picture.mode) == ((400, 500), "L")
    eyes = face_points(0.8, 0, *middle)[:2]
    apart = np.hypot(*(eyes[1] - eyes[0]))
    scale = 500 / (7.5 * apart)
    x, y = eyes.mean(0)
    to_picture = np.array([[scale, 0, 199.5 - scale * x], [0, scale, 199.5 - scale * y]])
    expected = warp(photo[:, :, 0].copy(), to_picture, (400, 500), fill="replicate")
    difference = np.abs(np.asarray(picture).astype(int) - expected)
    assert np.quantile(difference, 0.99) <= 4


@pytest.mark.parametrize(("middle", "sides"), [((100, 90), "lt"), ((900, 850), "rb"), ((500, 500), "")])
def test_a_portrait_moves_into_the_photo_as_far_as_the_eyes_may(middle, sides):
    points = face_points(0.8, 0, *middle)
    drawn = portrait((1000, 1000), [points], 750)
    # The scale does not change, and the eyes are a little nearer to the side where the photo ends.
    assert scale_of(drawn.place) == pytest.approx(100 / (0.8 * 57.5))
    x, y = apply(drawn.place, points[:2]).mean(0) / drawn.size
    assert x == pytest.approx({"l": 0.4, "r": 0.6}.get(sides[:1], 0.5), abs=2e-3)
    assert y == pytest.approx({"t": 0.3, "b": 0.46}.get(sides[1:], 0.4), abs=2e-3)


def test_the_rims_of_tiles_are_not_used():
    drawn = plan((1536, 1500), [])
    tile = np.zeros((drawn.side, drawn.side), np.uint8)
    tile[RIM:-RIM, RIM:-RIM] = 200
    picture = np.asarray(joined(drawn, [tile] * len(drawn.views)))
    assert (picture == 200).all()


@pytest.mark.parametrize(
    ("size", "side", "count"),
    [((200, 100), 256, 1), ((512, 400), 512, 1), ((513, 200), 512, 2), ((1536, 1536), 512, 16)],
)
def test_without_a_face_one_piece_up_to_512_pixels_and_large_tiles_beyond(size, side, count):
    drawn = plan(size, [])
    assert (drawn.side, len(drawn.views)) == (side, count)


def test_depth_beyond_the_photo_is_far_and_stays_in_range():
    depth = np.ones((100, 100), np.float32)
    view = view_depth(depth, compose(similarity(TEMPLATE), shift(78, 78)))
    assert (view.min(), view.max(), view[100, 100], view[0, 0]) == (0, 1, 1, 0)
