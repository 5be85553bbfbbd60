"""A drawing that runs out: no straight edge, thinner strokes, its own paper."""

import numpy as np

from hida.drawing.vignette import paper_level, photo_share, run_out
from hida.images.alignment import IDENTITY


def test_a_photo_that_fills_the_picture_is_drawn_to_its_edge():
    assert photo_share((300, 200), IDENTITY, (300, 200)) is None
    assert photo_share((300, 200), np.array([[1, 0, -50.0], [0, 1, -20.0]]), (400, 250)) is None


def test_it_ends_around_the_photos_edge_and_at_different_lengths():
    # The photo ends at x = 320 of a canvas of 400, and nowhere else in it.
    share = photo_share((400, 300), np.array([[1.0, 0, -100], [0, 1, -100]]), (420, 500))
    assert (share[:, :280] == 1).all()
    assert (share[:, 341:] == 0).all()
    lengths = (share > 0.5).sum(1)
    assert lengths.std() > 1.5
    assert np.abs(lengths - 312).max() < 10


def test_its_corners_are_round():
    share = photo_share((400, 400), np.array([[1.0, 0, 100], [0, 1, 100]]), (200, 200))
    assert (share[[103, 103, 296, 296], [103, 296, 103, 296]] == 0).all()
    assert share[103, 200] > 0.2
    assert share[200, 200] == 1


def test_strokes_get_thinner_and_paper_has_one_level():
    picture = np.full((100, 200), 246, np.uint8)
    across = np.abs(np.arange(100) - 50)
    picture[:] = np.where(across < 5, 30 + 43 * across, 246)[:, None]
    share = np.repeat(np.linspace(1, 0, 200, dtype=np.float32)[None], 100, 0)
    result = run_out(picture, share)
    widths = (result < 240).sum(0)
    assert widths[0] == 9
    assert 0 < widths[170] < 7
    assert widths[-1] == 0
    assert (result[across >= 5] == 246).all()
    assert (np.diff(result[50].astype(int)) >= 0).all()


def test_the_papers_level_is_the_most_frequent_light_one():
    levels = np.array([0] * 50 + [247] * 20 + [248] * 30 + [255] * 10, np.uint8)
    assert paper_level(levels) == 248
    assert paper_level(np.zeros(5, np.uint8)) == 255


def test_it_has_the_size_of_drawn_pixels():
    place = np.array([[1.0, 0, 100], [0, 1, 100]])
    one = photo_share((400, 400), place, (200, 200))
    three = photo_share((1200, 1200), 3 * place + [[0, 0, 1], [0, 0, 1]], (200, 200), grain=3)
    assert three.shape == (1200, 1200)
    assert np.abs(three[1::3, 1::3] - one).max() < 0.02
