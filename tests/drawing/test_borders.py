"""The line on which a face's drawing gives way: the cheapest loop, around the head, where little is drawn."""

import itertools

import numpy as np
import pytest

from hida.data.framing import CROP
from hida.drawing.borders import MIDDLE, RADII, STEP, border, cheapest_loop

PAPER = np.full((CROP, CROP), 250, np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_a_loop_is_closed_and_as_cheap_as_any_that_begins_where_it_does(seed):
    cost = np.random.default_rng(seed).random((5, 6))
    found = cheapest_loop(cost)
    rows = np.arange(5)
    assert np.abs(found - np.roll(found, 1)).max() <= STEP
    loops = (
        loop
        for loop in itertools.product(range(6), repeat=5)
        if loop[0] == found[0] and np.abs(np.subtract(loop, np.roll(loop, 1))).max() <= STEP
    )
    assert cost[rows, found].sum() == pytest.approx(min(cost[rows, list(loop)].sum() for loop in loops))


def test_the_head_is_inside_and_the_edge_outside():
    noise = np.random.default_rng(0).integers(0, 255, (2, CROP, CROP)).astype(np.float32)
    y, x = np.mgrid[:CROP, :CROP]
    head = np.hypot((x - MIDDLE[0]) / RADII[0], (y - MIDDLE[1]) / RADII[1]) < 0.95
    for over, under in ((PAPER, PAPER), noise):
        share = border(over, under)
        assert share[head].min() > 0.9
        assert max(share[[0, -1]].max(), share[:, [0, -1]].max()) == 0


def test_the_line_keeps_out_of_what_is_drawn_and_of_where_the_drawings_differ():
    over, under = PAPER.copy(), PAPER.copy()
    # On the left something is drawn in both, on the right only the surroundings have it, each in a part of the way.
    over[90:150, 4:24] = under[90:150, 4:24] = np.where(np.arange(20) % 4 < 2, 60, 250)
    under[90:150, 225:] = 120
    share = border(over, under)
    line = (share > 0.1) & (share < 0.9)
    plain = border(PAPER, PAPER)
    usual = (plain > 0.1) & (plain < 0.9)
    for part in (np.s_[95:145, 6:22], np.s_[95:145, 227:]):
        assert usual[part].any()
        assert not line[part].any()


def test_what_is_beyond_the_picture_costs_nothing():
    under = np.random.default_rng(1).integers(0, 255, (CROP, CROP)).astype(np.float32)
    under[:, 200:] = np.nan
    share = border(PAPER, under)
    assert np.isfinite(share).all()
    line = np.abs(share - 0.5) < 0.1
    # At the distance that is liked.
    assert np.flatnonzero(line[128, 200:]).size > 0
    assert abs(255 - (200 + np.flatnonzero(line[128, 200:]).mean()) - 16) < 2
