"""Where the drawing of a face gives way to what surrounds it: along a closed line on which least is seen of it.

A wide blend would show the strokes of both, double, and pale. A narrow one does not, and no line is seen if it runs
where both drawings agree and where little is drawn. Around the head there is a path of least such cost; it is found as
in image quilting (Efros and Freeman, SIGGRAPH 2001), by dynamic programming, here in directions from the middle.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hida.data.framing import CROP

NEAREST, FARTHEST = 7, 44
"""How far from the edge of a 256×256 view the line may run, in its pixels; heads begin at 23 from its upper edge."""
LIKED = 16
"""How far it runs if nothing speaks for another distance."""
WIDTH = 12
"""Pixels over which one drawing gives way to the other."""
DIRECTIONS = 384
"""From the middle of the view; the line is about 750 pixels long."""
STEP = 3
"""Pixels by which its distance from the edge may change from one direction to the next."""
PLAIN, AWAY, INTRUDING = 0.5, 0.02, 255.0
"""Costs of a pixel of the line: of a level of gradient, of a pixel off the distance that is liked, and of being in the
head. A level of difference costs 1."""
LOST, PAPER = 0.04, 20
"""Cost of each level of ink that a pixel of the face has beyond the line and its surroundings have not, above so many
levels: of hair that the line would cut off."""
MIDDLE, RADII = (126.5, 118.0), (72.0, 95.0)
"""The head in a 256×256 view: an ellipse from the hair to the chin."""
AROUND = 1.08
"""The line runs no nearer to the head than so many times its radii."""


def border(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Return how much of a face's drawing is seen in each pixel of its view.

    Args:
        over: float32 (256, 256), the drawing.
        under: (256, 256), what surrounds the face, there; NaN beyond the picture.

    Returns:
        float32 (256, 256): 1 inside, 0 at the edge, and a smooth fall around the chosen line.
    """
    steep = np.maximum(_steepness(over), _steepness(under))
    seen = _blurred(np.abs(over - under) + PLAIN * steep)
    across, down = ((np.arange(CROP) - at) / radius for at, radius in zip(MIDDLE, RADII, strict=True))
    cost = np.nan_to_num(seen) + INTRUDING * (np.hypot(across, down[:, None]) < AROUND)
    distances = np.arange(NEAREST, FARTHEST + 1)
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    # Around a square: the points of one distance from its edge.
    reach = 1 / np.maximum(np.abs(np.cos(angles)), np.abs(np.sin(angles)))
    middle = (CROP - 1) / 2
    radius = (middle - distances) * reach[:, None]
    x, y = (np.rint(middle + radius * part(angles)[:, None]).astype(int) for part in (np.cos, np.sin))
    lost = np.nan_to_num(under - over - PAPER).clip(0)[y, x].cumsum(1)
    path = NEAREST + cheapest_loop(cost[y, x] + AWAY * np.abs(distances - LIKED) + LOST * lost)
    # A line of steps of whole pixels would look cut with scissors.
    path = np.convolve(np.pad(path, 2, mode="wrap"), np.full(5, 1 / 5), "valid")
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32) - np.float32(middle)
    turn = np.arctan2(y, x) / (2 * np.pi) % 1 * DIRECTIONS
    chosen = np.interp(turn, np.arange(DIRECTIONS + 1), np.append(path, path[0]))
    inside = middle - np.maximum(np.abs(x), np.abs(y))
    return smooth((inside - chosen) / WIDTH + 0.5).astype(np.float32)


def cheapest_loop(cost: np.ndarray) -> np.ndarray:
    """Return for each row of (rows, columns) costs a column, so that their sum is low and no step is longer than STEP.

    The last row is beside the first. Where the loop begins is where the best path passes that has gone around before.
    """
    start = _cheapest(np.concatenate([cost, cost]))[len(cost)]
    closed = np.concatenate([cost, cost[:1]])
    closed[[0, -1]] = np.inf
    closed[[0, -1], start] = cost[0, start]
    return _cheapest(closed)[:-1]


def _cheapest(cost: np.ndarray) -> np.ndarray:
    rows, columns = cost.shape
    total = np.full((rows, columns + 2 * STEP), np.inf)
    total[0, STEP:-STEP] = cost[0]
    before = sliding_window_view(total, 2 * STEP + 1, axis=1)
    for row in range(1, rows):
        total[row, STEP:-STEP] = before[row - 1].min(1) + cost[row]
    path = np.zeros(rows, int)
    path[-1] = total[-1, STEP:-STEP].argmin()
    for row in range(rows - 1, 0, -1):
        path[row - 1] = path[row] - STEP + before[row - 1, path[row]].argmin()
    return path


def smooth(values: np.ndarray) -> np.ndarray:
    """Return 0 below 0, 1 above 1, and a smooth rise between."""
    ramp = np.clip(values, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _steepness(picture: np.ndarray) -> np.ndarray:
    return np.hypot(*np.gradient(picture))


def _blurred(values: np.ndarray) -> np.ndarray:
    """Return means over 5×5 pixels."""
    return sliding_window_view(np.pad(values, 2, mode="edge"), (5, 5)).mean((2, 3))
