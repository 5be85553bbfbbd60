"""Fine drawings: taken where the photo shows more, in the coarse drawing's tone, with the fine one's strokes."""

import numpy as np
import pytest
from PIL import Image

from hida.drawing.detail import TONE, choose_scale, draw_finely
from hida.drawing.views import Viewed
from hida.errors import HidaError

VIEW = np.array([[1.0, 0, 0], [0, 1, 0]])
HAIR_AND_EYE = (28, 52, 90, 170), (106, 112, 94, 108)


def scaled(times):
    """The view of a face of which the photo has ``times`` pixels to a drawn one."""
    return np.array([[1 / times, 0, 0.5 / times - 0.5], [0, 1 / times, 0.5 / times - 0.5]])


def low_pass(sketch, sigma):
    """Means over squares of the coarse view's pixels, then a Gaussian, in float64."""
    k = sketch.shape[0] // 256
    small = sketch.astype(float).reshape(256, k, 256, k).mean((1, 3))
    reach = round(4 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for _ in range(2):
        padded = np.pad(small, ((reach, reach), (0, 0)), mode="reflect")
        small = sum(w * padded[i : i + 256] for i, w in enumerate(weights)).T
    return small


def drawing(side, width, paper=250):
    """Lines on the left, a dark mass on the right: ``width`` and the mass's darkness are the scale's."""
    sketch = np.full((side, side), paper, np.uint8)
    for k in range(3):
        at = side * (k + 1) // 10
        sketch[side // 8 : -side // 8, at : at + width] = 90
    if side == 256:
        sketch[60:200, 150:220] = 30
    else:
        sketch[side // 4 : 3 * side // 4 : 7, side * 6 // 10 : side * 8 // 10] = 60
    return sketch


@pytest.mark.parametrize("scale", [2, 4])
def test_the_tone_is_that_of_the_coarse_drawing(scale):
    coarse = drawing(256, 3)

    def draw(matrix, side):
        blotches = np.random.default_rng(side).integers(-40, 40, (side, side))
        return [np.clip(drawing(side, 2) + blotches, 0, 255).astype(np.uint8)]

    fine = draw_finely(draw, VIEW, [coarse], scale)[0]
    assert fine.shape == (256 * scale,) * 2
    assert np.abs(low_pass(fine, 4) - low_pass(coarse, 4)).max() <= 2
    # Beside the middle of the face, where the coarse drawing has no teeth, it holds more closely.
    assert np.abs(low_pass(fine, TONE) - low_pass(coarse, TONE))[:, :60].max() <= 4


def test_what_only_the_fine_drawing_has_is_left_out_and_its_lines_are_as_thin():
    def draw(matrix, side):
        sketch = drawing(side, 2)
        sketch[side * 45 // 100 : side // 2, side * 42 // 100 : side // 2] = 120  # a blotch
        return [sketch]

    fine = draw_finely(draw, VIEW, [drawing(256, 2)], 2)[0]
    assert fine[235:250, 222:250].min() > 240
    row = fine[256, :180]
    dark = row < 128
    assert dark.any()
    assert dark.sum() <= 3 * 3  # of the 3 × 4 pixels of the coarse lines


def runs(dark):
    """Lengths of the runs of True in a row."""
    ends = np.flatnonzero(np.diff(np.concatenate(([0], dark.astype(int), [0]))))
    return ends[1::2] - ends[::2]


def test_dark_hair_is_strands_and_dark_eyes_are_not():
    """Hair above the forehead, combed downwards, and an eye, of which the fine drawing has nothing."""
    coarse = np.full((256, 256), 250, np.uint8)
    coarse[20:60, 80:180] = np.where(np.arange(100) % 6 < 4, 30, 70)
    coarse[104:114, 90:112] = 30

    def draw(matrix, side):
        return [np.full((side, side), 250, np.uint8)]

    fine = draw_finely(draw, VIEW, [coarse], 4)[0]
    hair, eye = (fine[4 * top : 4 * bottom, 4 * left : 4 * right] for top, bottom, left, right in HAIR_AND_EYE)
    assert np.percentile(np.concatenate([runs(row < 128) for row in hair[::8]]), 90) <= 20  # of 400
    assert np.abs(hair.mean() - coarse[28:52, 90:170].mean()) <= 3
    assert (eye < 128).all()


def test_views_are_drawn_at_their_scale():
    asked = []

    def draw(matrix, side):
        asked.append((matrix, side))
        return [np.full((side, side), 250, np.uint8)]

    draw_finely(draw, scaled(4), [np.full((256, 256), 250, np.uint8)], 4)
    assert [side for _, side in asked] == [512, 1024]
    np.testing.assert_allclose(asked[1][0], VIEW, atol=1e-12)
    assert draw_finely(draw, VIEW, [np.zeros((256, 256), np.uint8)], 1)[0].max() == 0
    assert len(asked) == 2


def cloud(side):
    """A picture whose energy falls as 1/f², as that of sharp photos does."""
    noise = np.random.default_rng(0).normal(size=(side, side))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    radius[0, 0] = 1
    grey = np.fft.irfft2(np.fft.rfft2(noise) / radius, (side, side))
    grey = np.clip(128 + 40 * grey / grey.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, 2)


def enlarged(photo, times):
    small = Image.fromarray(photo).resize((photo.shape[1] // times,) * 2, Image.Resampling.LANCZOS)
    return np.asarray(small.resize(photo.shape[:2], Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("times", "shrunk", "detail", "expected"),
    [
        (4, 1, "auto", 4),
        (2, 1, "auto", 2),
        (1, 1, "auto", 1),
        (1, 1, "fine", 1),
        (4, 2, "auto", 2),
        (4, 4, "auto", 1),
        (4, 4, "fine", 4),
        (4, 1, "coarse", 1),
    ],
)
def test_a_face_is_drawn_as_finely_as_the_photo_shows_it(times, shrunk, detail, expected):
    photo = cloud(256 * times)
    photo = enlarged(photo, shrunk) if shrunk > 1 else photo
    assert choose_scale(Viewed(photo), scaled(times), detail) == expected


def test_a_small_picture_of_a_large_photo_needs_no_finer_strokes_than_it_can_show():
    photo = cloud(1024)
    assert choose_scale(Viewed(photo), scaled(4), "auto", place=0.5) == 2
    assert choose_scale(Viewed(photo), scaled(4), "fine", place=0.25) == 1


def test_an_unknown_detail_is_named():
    from hida.drawing.detail import require_detail

    with pytest.raises(HidaError, match="detail is 'finest'; give one of coarse, fine, auto"):
        require_detail("finest")
