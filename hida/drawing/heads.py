"""Which of two faces is nearer in each pixel of a picture, and where between two heads one gives way to the other.

The face is nearer in whose head, an ellipse, the pixel is further inside. Where heads touch, the line on which both are
equally near runs through whatever is there; beside it there mostly is one on which less is drawn, along a cheek instead
of through the hair. It is found as the line around a face is (:mod:`hida.drawing.borders`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hida.data.framing import CROP
from hida.drawing.borders import MIDDLE, PAPER, RADII, SMOOTHED, cheapest_loop, directions, seen, smoothed, turns
from hida.images.alignment import IDENTITY, apply, compose, invert, scale_of

Window = tuple[int, int, int, int]
_LARGER, _LOWER = 0.1, 0.15
"""What is larger and what is lower is mostly in front, such as a child on a lap: a face twice as large counts as 2 to
the first times further inside its head, and the lower of two touching heads by the second."""
_SHIFTS = np.arange(-20, 21) * 0.02
"""By how much of a head's radius the line may be away from where both faces are equally near."""
_AWAY, _INTRUDING = 40.0, 4000.0
"""Costs of a pixel of the line: of being away by a radius, and of being as deep as that in either head."""
_LOST = 2.0
"""Cost of each level of ink, above so many as are paper, that the line would take from either head and the other's
drawing has not: of hair, mostly."""


@dataclass(frozen=True)
class Meeting:
    """Two faces whose views overlap.

    Args:
        one, two: matrices from the picture to the faces' views; the first face is the smaller one.
        shifts: by how much the first must be farther to give way, in radii of a head, for each of the directions from
            the middle of its head.
    """

    one: np.ndarray
    two: np.ndarray
    shifts: np.ndarray

    @classmethod
    def of(cls, one: np.ndarray, two: np.ndarray, over: np.ndarray, other: np.ndarray) -> Meeting:
        """Choose the line between two faces, the smaller one first.

        Args:
            over, other: float32 (256, 256), the drawings of both in the first face's view; NaN where not both may be
                seen.
        """
        there, whole = compose(invert(one), two), (0, 0, CROP, CROP)
        away = _farther(IDENTITY, there, whole)
        # How deep it is in the head that it is deeper in, as the one in front counts.
        deep = np.maximum(0, 1 - (_distance(IDENTITY, whole) + _distance(there, whole) - np.abs(away)) / 2)
        cost = np.where(np.isnan(over), 0, np.nan_to_num(seen(np.minimum(over, other))) + _INTRUDING * deep)
        # Out from the middle of its head the first face is farther and farther: where it is by each shift.
        rays = directions(MIDDLE, np.arange(CROP // 2))
        outward = np.maximum.accumulate(away[rays], 1)
        reached = outward[:, None] >= _SHIFTS[:, None]
        at = reached.argmax(2)
        costs, lost, taken = (
            np.where(reached.any(2), np.take_along_axis(np.nan_to_num(values)[rays], at, 1), 0)
            for values in (cost, (other - over - PAPER).clip(0), (over - other - PAPER).clip(0))
        )
        equal = len(_SHIFTS) // 2
        # Nearer to the first head than where both are equally near it loses what is between, beyond it the second.
        costs[:, :equal] += _LOST * lost[:, equal:0:-1].cumsum(1)[:, ::-1]
        costs[:, equal + 1 :] += _LOST * taken[:, equal:-1].cumsum(1)
        path = cheapest_loop(costs + _AWAY * np.abs(_SHIFTS))
        return cls(one, two, smoothed(_SHIFTS[path], 2 * SMOOTHED))

    def farther(self, window: Window) -> np.ndarray:
        """Return by how much the first face is farther in each pixel of a window of the picture; 0 on the line.

        Args:
            window: left, top, right, bottom.

        Returns:
            float32 (height, width), in radii of a head.
        """
        return _farther(self.one, self.two, window) - turns(self.shifts, *_across(self.one, window))


def _farther(one: np.ndarray, two: np.ndarray, window: Window) -> np.ndarray:
    """Return by how much the first of two faces is farther in each pixel of a window, in radii of a head."""
    more = np.float32((scale_of(one) / scale_of(two)) ** _LARGER)
    return _distance(one, window) * more - _distance(two, window) + np.float32(_LOWER * _higher(one, two))


def _across(view: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return where each pixel of a window is in a view, from the middle of its head: x, y."""
    left, top, right, bottom = window
    x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)[:, None]
    across, down = (
        row[0] * x + row[1] * y + row[2] - np.float32(middle)
        for row, middle in zip(view.astype(np.float32), MIDDLE, strict=True)
    )
    return across, down


def _distance(view: np.ndarray, window: Window) -> np.ndarray:
    """Return for a window of the picture the distance from a head's middle, about 1 at its outline."""
    across, down = _across(view, window)
    return np.hypot(across / np.float32(RADII[0]), down / np.float32(RADII[1]))


def _higher(one: np.ndarray, two: np.ndarray) -> float:
    """Return by how much one head is higher than another, as they are upright: 1 if it touches it from above."""
    apart = np.diff([apply(invert(view), MIDDLE) for view in (one, two)], axis=0)[0]
    down = one[1, :2] / scale_of(one) + two[1, :2] / scale_of(two)
    return float(apart @ down / max(np.linalg.norm(down), 1e-6) / (RADII[1] / scale_of(one) + RADII[1] / scale_of(two)))
