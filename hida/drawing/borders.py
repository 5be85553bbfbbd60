"""Where the drawing of a face gives way to what surrounds it: along a closed line on which least is seen of it.

A wide blend would show the strokes of both, double, and pale. A narrow one does not, and no line is seen if it runs
where both drawings agree and where little is drawn. Around the head there is a path of least such cost; it is found as
in image quilting (Efros and Freeman, SIGGRAPH 2001), by dynamic programming, here in directions from the middle.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hida.data.framing import CROP

NEAREST, FARTHEST = 2, 44
"""How far from the edge of a 256×256 view the line may run, in its pixels; heads begin at 23 from its upper edge."""
LIKED = 16
"""How far it runs if nothing speaks for another distance."""
WIDTH = 12
"""Pixels over which one drawing gives way to the other; fewer where the edge is nearer than half of that."""
DIRECTIONS = 512
"""From the middle of the view; the line is about 750 pixels long."""
STEP = 3
"""Pixels by which its distance from the edge may change from one direction to the next."""
SMOOTHED = 2
"""Over how many directions to each side it is smoothed: one of steps of whole pixels would look cut with scissors."""
STEEP, AWAY, INTRUDING = 12.0, 0.2, 255.0
"""Costs of a pixel of the line: of a level of gradient, of a pixel off the distance that is liked, and of being in the
head. A level of difference costs 1. The gradient counts most: a border is seen less in blank paper than in hair, even
if both drawings agree about the hair."""
LOST, PAPER = 0.3, 20
"""Cost of each level of ink that a pixel of the face has beyond the line and its surroundings have not, above so many
levels: of hair that the line would cut off."""
MIDDLE, RADII = (126.5, 118.0), (72.0, 95.0)
"""The head in a 256×256 view: an ellipse from the hair to the chin."""
AROUND = 1.05
"""The line runs no nearer to the head than so many times its radii."""


def border(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Return how much of a face's drawing is seen in each pixel of its view.

    Args:
        over: float32 (256, 256), the drawing.
        under: (256, 256), what surrounds the face, there; NaN beyond the picture.

    Returns:
        float32 (256, 256): 1 inside, 0 at the edge, and a smooth fall around the chosen line.
    """
    across, down = ((np.arange(CROP) - at) / radius for at, radius in zip(MIDDLE, RADII, strict=True))
    cost = np.nan_to_num(_blurred(np.abs(over - under)) + np.maximum(seen(over), seen(under)))
    cost += INTRUDING * (np.hypot(across, down[:, None]) < AROUND)
    distances = np.arange(NEAREST, FARTHEST + 1)
    # Around a square: the points of one distance from its edge.
    middle = (CROP - 1) / 2
    rays = directions((middle, middle), middle - distances, square=True)
    lost = np.nan_to_num(under - over - PAPER).clip(0)[rays].cumsum(1)
    path = cheapest_loop(cost[rays] + AWAY * np.abs(distances - LIKED) + LOST * lost)
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32) - np.float32(middle)
    chosen = turns(smoothed(distances[path], SMOOTHED), x, y)
    inside = middle - np.maximum(np.abs(x), np.abs(y))
    return smooth((inside - chosen) / np.minimum(WIDTH, 2 * chosen) + 0.5)


def directions(middle: tuple[float, float], radii: np.ndarray, square: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pixels at ``radii`` from a ``middle`` (x, y): (DIRECTIONS, len(radii)) each.

    Args:
        square: a radius is the half side of a square, not of a circle.
    """
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    parts = np.stack([np.sin(angles), np.cos(angles)])
    if square:
        parts /= np.abs(parts).max(0)
    y, x = (np.rint(at + np.outer(part, radii)).astype(int) for at, part in zip(middle[::-1], parts, strict=True))
    return y.clip(0, CROP - 1), x.clip(0, CROP - 1)


def turns(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return for points around a middle the values, of which there is one for each direction, in theirs: float32."""
    turn = np.arctan2(y, x) / (2 * np.pi) % 1 * DIRECTIONS
    return np.interp(turn, np.arange(DIRECTIONS + 1), np.append(values, values[0])).astype(np.float32)


def smoothed(loop: np.ndarray, reach: int) -> np.ndarray:
    """Return means of a loop's values over so many to each side."""
    count = 2 * reach + 1
    return np.convolve(np.pad(loop, reach, mode="wrap"), np.full(count, 1 / count), "valid")


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


def seen(drawing: np.ndarray) -> np.ndarray:
    """Return what a line through each pixel of a (256, 256) drawing costs because of what is drawn there."""
    return STEEP * _blurred(np.hypot(*np.gradient(drawing)))


def _blurred(values: np.ndarray) -> np.ndarray:
    """Return means over 5×5 pixels."""
    for _ in range(2):
        wide = np.pad(values, ((2, 2), (0, 0)), mode="edge")
        values = np.mean([wide[k : k + len(values)] for k in range(5)], axis=0).T
    return values
