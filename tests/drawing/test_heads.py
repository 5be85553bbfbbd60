"""Where one head gives way to another: in the middle, but for what is in front, and where least is drawn."""

import numpy as np
import pytest

from hida.data.framing import CROP
from hida.drawing.heads import Meeting
from hida.images.alignment import TEMPLATE, apply, compose, invert, scale_of, similarity

BLANK = np.full((CROP, CROP), 250, np.float32)
WINDOW = (0, 0, 800, 800)
ABOVE = 11.7
"""The mean of a face's points is so many pixels below the middle of its head, at scale 1."""


def view(scale, x, y, angle=0):
    """The view of a face whose head has its middle at (x, y), ``scale`` times the template's size."""
    turn = scale * np.exp(1j * np.deg2rad(angle))
    placed = (TEMPLATE - TEMPLATE.mean(0)) @ (1, 1j) * turn + x + 1j * y + ABOVE * 1j * turn
    return similarity(np.stack([placed.real, placed.imag], 1), TEMPLATE + 3)


def where_it_is(meeting, one, two):
    """How far from the middle of one head, towards that of the other, the line between them is, as a share."""
    share = np.linspace(0, 1, 500)
    x, y = np.rint(np.array([one]).T + np.subtract(two, one)[:, None] * share).astype(int)
    return share[np.argmax(meeting.farther(WINDOW)[y, x] > 0)]


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_of_two_heads_that_touch_the_larger_and_the_lower_reaches_further(angle):
    turn = np.exp(1j * np.deg2rad(angle))

    def reach(one, two):
        """Where the first gives way, as a share of the way, beyond where the outlines would touch."""
        at = [(x + 1j * y) * turn + 400 + 400j for _, x, y in (one, two)]
        views = [
            view(scale, middle.real, middle.imag, angle) for (scale, *_), middle in zip((one, two), at, strict=True)
        ]
        place = [(middle.real, middle.imag) for middle in at]
        return where_it_is(Meeting.of(*views, BLANK, BLANK), *place) - one[0] / (one[0] + two[0])

    assert reach((0.6, -43, 0), (0.6, 43, 0)) == pytest.approx(0, abs=0.02)
    assert reach((0.4, 29, 0), (0.8, -58, 0)) < -0.01
    assert reach((0.5, 30, 25), (0.5, -30, -25)) > 0.01
    assert reach((0.5, -30, -25), (0.5, 30, 25)) < -0.01


def test_the_line_runs_where_less_is_drawn_but_not_through_a_head():
    one, two = view(0.6, 150, 200), view(0.6, 250, 200)
    # The heads' middles are 100 pixels apart, of which each head takes 43.
    at = np.arange(CROP)

    def found(drawn_from, drawn_to):
        stripes = np.where((at >= drawn_from) & (at < drawn_to) & (at % 6 < 3), 40, 250).astype(np.float32)
        drawn = np.tile(stripes, (CROP, 1))
        return where_it_is(Meeting.of(one, two, drawn, drawn), (150, 200), (250, 200)) * 100

    assert found(0, 0) == pytest.approx(50, abs=1)
    middle = (apply(one, [200, 200]))[0]
    # 14 pixels of the view are 8 of the picture.
    assert found(middle - 6, middle + 14) < 49
    assert found(middle - 14, middle + 6) > 51
    # With hair all over it, the other head begins no later.
    assert 30 < found(middle - 6, CROP) < 50
    assert 50 < found(0, middle + 6) < 70


def test_far_from_both_heads_the_line_bends_smoothly():
    noise = np.random.default_rng(0).integers(0, 255, (CROP, CROP)).astype(np.float32)
    meeting = Meeting.of(view(0.6, 150, 200), view(0.6, 250, 200), noise, noise)
    assert np.abs(np.diff(np.append(meeting.shifts, meeting.shifts[0]))).max() <= 0.06
    assert np.abs(meeting.shifts).max() <= 0.4


def test_the_line_is_where_it_is_whatever_the_picture_is_turned_and_scaled_by():
    one, two = view(0.5, 150, 200), view(0.6, 240, 190)
    drawn = np.random.default_rng(1).integers(0, 255, (CROP, CROP)).astype(np.float32)
    place = np.array([[0.0, -1.5, 420.0], [1.5, 0.0, 20.0]])
    moved = Meeting.of(*(compose(invert(place), each) for each in (one, two)), drawn, drawn)
    straight = Meeting.of(one, two, drawn, drawn)
    np.testing.assert_allclose(moved.shifts, straight.shifts, atol=1e-9)
    assert scale_of(moved.one) == pytest.approx(scale_of(one) / 1.5)
    points = np.array([[150, 200], [196, 196], [190, 150], [240, 190]])
    far = np.rint(apply(place, points)).astype(int)
    near = straight.farther(WINDOW)[points[:, 1], points[:, 0]]
    np.testing.assert_allclose(moved.farther(WINDOW)[far[:, 1], far[:, 0]], near, atol=0.01)


def test_what_is_beyond_either_face_costs_nothing():
    drawn = np.random.default_rng(2).integers(0, 255, (CROP, CROP)).astype(np.float32)
    drawn[:, :200] = np.nan
    meeting = Meeting.of(view(0.6, 150, 200), view(0.6, 400, 200), drawn, drawn)
    assert np.isfinite(meeting.shifts).all()


def test_the_line_cuts_off_no_hair_that_the_other_drawing_has_not():
    one, two = view(0.6, 150, 200), view(0.6, 250, 200)
    middle = apply(one, [200, 200])[0]
    at = np.arange(CROP)

    def found(over, other):
        return where_it_is(Meeting.of(one, two, over, other), (150, 200), (250, 200)) * 100

    # Hair where both heads are equally near: a line through it would be dear, on either side of it one is as good.
    hair = np.tile(np.where((np.abs(at - middle) < 12) & (at % 6 < 3), 40, 250).astype(np.float32), (CROP, 1))
    assert found(hair, BLANK) > 51
    assert found(BLANK, hair) < 49
