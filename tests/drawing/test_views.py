"""Views: every photo pixel is drawn, faces land in their place, and composition undoes the cutting."""

import numpy as np
import pytest

from hida.drawing.joining import FaceDrawing
from hida.drawing.surroundings import LENGTHS, RIM
from hida.drawing.views import (
    KEPT,
    MARGIN,
    Viewed,
    compose_picture,
    only,
    plan,
    portrait,
    shift,
    view_depth,
    view_photo,
)
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


def shown(drawn, photo):
    """What the views show of a photo, in grey: of its surroundings and of every face."""
    around = [view_photo(photo, view.matrix, view.frame)[:, :, 0] for view in drawn.around]
    return around, [view_photo(photo, matrix)[:, :, 0] for matrix in drawn.faces]


def joined(drawn, around, faces):
    """The picture of views that are drawn at 256 pixels."""
    return compose_picture(drawn, around, list(map(FaceDrawing.of, faces, drawn.faces)))


def test_an_aligned_photo_is_one_view_cut_without_resampling():
    photo = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    drawn = plan((250, 250), [TEMPLATE])
    assert drawn.around == ()
    np.testing.assert_array_equal(drawn.faces[0], shift(MARGIN, MARGIN))
    view = view_photo(photo, drawn.faces[0])
    np.testing.assert_array_equal(view[3:253, 3:253], photo)
    picture = np.asarray(joined(drawn, [], [view[:, :, 0]]))
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
    picture = joined(drawn, *shown(drawn, photo))
    assert picture.size == size
    assert picture.mode == "L"
    difference = np.abs(np.asarray(picture).astype(int) - photo[:, :, 0])
    assert np.quantile(difference, 0.99) <= 4
    assert difference.mean() < 1.5


@pytest.mark.parametrize("faces", [[], [face_points(8, 0, 5000, 3000)]])
def test_large_photos_are_drawn_in_a_bounded_view(faces):
    drawn = plan((10000, 8000), faces)
    # 960 pixels and the rims would fit across; a little less saves 256 rows.
    assert drawn.around[0].frame == (1024, 768)
    assert drawn.around[0].inner == (72, 32, 952, 736)


def test_what_surrounds_a_face_has_its_scale():
    drawn = plan((340, 250), [face_points(0.5, 0, 170, 125)])
    assert np.hypot(*drawn.faces[0][:, 0]) == pytest.approx(2.0)
    assert drawn.around[0].scale == pytest.approx(2.0)
    # 680×500 pixels, and 32 for every rim, in multiples of 256.
    assert drawn.around[0].frame == (768, 768)
    # 460 pixels would need 768: a little smaller they fit into 512.
    assert plan((230, 230), [face_points(0.5, 0, 115, 115)]).around[0].frame == (512, 512)
    assert plan((230, 230), [face_points(0.5, 0, 115, 115)]).around[0].scale == pytest.approx(448 / 230)


def test_what_surrounds_several_faces_has_a_scale_between_theirs_nearer_to_the_large():
    scales = []
    for sizes in ((1.0,), (0.5,), (1.0, 0.5), (1.0, 0.5, 0.5), (1.0, 1.0, 0.5)):
        faces = [face_points(size, 0, 150 + 150 * k, 176) for k, size in enumerate(sizes)]
        drawn = plan((440, 352), faces)
        scales.append(drawn.around[0].scale)
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
    picture = joined(drawn, *shown(drawn, turned))
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


def test_the_rims_of_large_views_are_not_used():
    drawn = plan((960, 700), [])
    sketch = np.zeros(drawn.around[0].frame[::-1], np.uint8)
    sketch[RIM:-RIM, RIM:-RIM] = 200
    assert (np.asarray(joined(drawn, [sketch], [])) == 200).all()


@pytest.mark.parametrize(
    ("size", "frame", "scale"),
    [
        ((200, 100), (256, 256), 1.28),
        ((384, 200), (256, 256), 2 / 3),
        ((512, 400), (512, 512), 448 / 512),
        ((700, 400), (768, 512), 1),
        ((3000, 3000), (1024, 1024), 0.32),
    ],
)
def test_without_a_face_one_view_of_as_many_pixels_as_the_photo_has(size, frame, scale):
    (around,) = plan(size, []).around
    assert (around.frame, around.scale) == (frame, pytest.approx(scale))
    assert set(frame) <= set(LENGTHS.values())


def test_no_more_than_is_wanted_is_drawn_and_the_rest_is_white():
    photo = smooth(900, 600)
    whole = plan((900, 600), [face_points(1, 0, 450, 300)])
    wanted = np.zeros((600, 900), np.uint8)
    wanted[250:450, 420:500] = 1
    drawn = only(whole, wanted)
    assert whole.around[0].frame == (1024, 768)
    # 80×200 pixels, and 64 drawn ones on each side of them; these have the scale that suits the face, not the whole's.
    assert drawn.around[0].part == (356, 186, 564, 514)
    assert drawn.around[0].frame == (256, 512)
    picture = np.array(joined(drawn, shown(drawn, photo)[0], []))
    assert np.abs(picture[186:514, 356:564].astype(int) - photo[186:514, 356:564, 0]).mean() < 1.5
    picture[186:514, 356:564] = 255
    assert (picture == 255).all()
    # Where nobody is, all is drawn.
    assert only(whole, np.zeros_like(wanted)) is whole


def test_depth_beyond_the_photo_is_far_and_stays_in_range():
    depth = np.ones((100, 100), np.float32)
    view = view_depth(depth, compose(similarity(TEMPLATE), shift(78, 78)))
    assert (view.min(), view.max(), view[100, 100], view[0, 0]) == (0, 1, 1, 0)


def test_a_view_is_made_once_and_only_a_few_are_kept():
    photo = smooth(60, 40)
    viewed = Viewed(photo)
    first = viewed.view(shift(1, 2))
    np.testing.assert_array_equal(first, view_photo(photo, shift(1, 2)))
    assert viewed.view(shift(1, 2)) is first
    assert viewed.view(shift(1, 2), (512, 512)).shape == (512, 512, 3)
    for k in range(KEPT):
        viewed.view(shift(k, 0))
    assert viewed.view(shift(1, 2)) is not first
