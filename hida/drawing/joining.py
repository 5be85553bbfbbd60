"""Lay the drawings of faces over the picture of what surrounds them, each face whole on its own head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hida.data.framing import CROP
from hida.drawing.borders import MIDDLE, RADII, border, smooth
from hida.images.alignment import apply, compose, invert, scale_of, warp

Window = tuple[int, int, int, int]
_BETWEEN = 0.2
"""Over how much of a head's radius one face gives way to another: narrow, or lines of both would show side by side."""
_KEPT = 0.3
"""How far beyond that, in the same unit, a face's strokes are kept: hair reaches out of the ellipse."""
_LARGER, _LOWER = 0.1, 0.15
"""What is larger and what is lower is mostly in front, such as a child on a lap: a face twice as large counts as 2 to
the first times further inside its head, and the lower of two touching heads by the second."""


@dataclass(frozen=True)
class FaceDrawing:
    """How one face was drawn.

    Args:
        sketch: uint8 (side, side), side = 256·k: the square that the face's 256×256 view shows, k times as fine.
        matrix: 2×3, from pixels of the photo to pixels of ``sketch``.
    """

    sketch: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, sketch: np.ndarray, view: np.ndarray) -> FaceDrawing:
        """Return the drawing of a ``view``, the matrix of a plan's face, whose square ``sketch`` of any 256·k shows."""
        return cls(sketch, finer(view, sketch.shape[0] // CROP))

    @property
    def view(self) -> np.ndarray:
        """The matrix of the same square at 256×256."""
        return finer(self.matrix, CROP / self.sketch.shape[0])


def finer(matrix: np.ndarray, times: float) -> np.ndarray:
    """Return the matrix of a view's square with ``times`` as many pixels along each side."""
    # Pixel centres: x' = (x + 0.5)·times − 0.5.
    return compose(matrix, np.array([[times, 0, times / 2 - 0.5], [0, times, times / 2 - 0.5]]))


def covers(view: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether a 256×256 view shows the whole of a picture."""
    right, bottom = size[0] - 1, size[1] - 1
    corners = apply(view, np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]]))
    return bool((corners > -0.5).all() and (corners < CROP - 0.5).all())


def blend_faces(picture: np.ndarray, drawings: Sequence[FaceDrawing], place: np.ndarray) -> np.ndarray:
    """Return ``picture`` with the faces over it.

    A face's drawing counts inside of a line around its head, along which least is seen of the change, but for what
    nearer faces cover: in each pixel that face is nearer of whose head, an ellipse, the pixel is further inside.

    Args:
        picture: uint8 (H, W).
        drawings: of the faces, in any order.
        place: from the photo to the picture.
    """
    mixed = picture.astype(np.float32)
    beside = []
    for drawing, share in zip(drawings, face_shares(picture, drawings, place), strict=True):
        if share is None:
            continue
        window, weight, strokes = share
        inside = np.s_[window[1] : window[3], window[0] : window[2]]
        over = warp(drawing.sketch, _moved(compose(invert(drawing.matrix), place), window), _size(window), fill="white")
        over = over.astype(np.float32)
        mixed[inside] += (over - picture[inside]) * weight
        if strokes is not None:
            beside.append((inside, 255 - (255 - over) * strokes))
    # Hair is pale in the view of the head beside it: where two heads meet, both keep their strokes.
    for inside, kept in beside:
        np.minimum(mixed[inside], kept, out=mixed[inside])
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def face_shares(
    picture: np.ndarray, drawings: Sequence[FaceDrawing], place: np.ndarray
) -> Iterator[tuple[Window, np.ndarray, np.ndarray | None] | None]:
    """Yield how much of each face's drawing is seen in the picture; the arguments are those of :func:`blend_faces`.

    Yields:
        The part of the picture that holds the face's view: left, top, right, bottom; in it how much of the drawing is
        seen, 0 to 1, and how much of its strokes is kept at least, None where no other face is near. None for a face
        that is not in the picture.
    """
    size = picture.shape[1], picture.shape[0]
    views = [compose(invert(place), drawing.view) for drawing in drawings]
    windows = [_window(view, size) for view in views]
    reaches = [_reach(*pair, picture) for pair in zip(drawings, views, strict=True)]
    largest = min((scale_of(view) for view in views), default=1.0)
    for k, window in enumerate(windows):
        if window[0] >= window[2] or window[1] >= window[3]:
            yield None
            continue
        weight = strokes = _seen(reaches[k], views[k], window)
        others = [j for j, other in enumerate(windows) if j != k and _meet(other, window)]
        if others:
            own = _distance(views[k], window, largest)
        for j in others:
            reach, farther = _seen(reaches[j], views[j], window), own - _distance(views[j], window, largest)
            farther += _LOWER * _higher(views[k], views[j])
            weight = weight * (1 - reach * smooth(farther / _BETWEEN + 0.5))
            strokes = strokes * (1 - reach * smooth((farther - _KEPT) / _BETWEEN))
        yield window, weight, strokes if others else None


def _reach(drawing: FaceDrawing, view: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Return how much of a face's drawing counts in each pixel of its view, were it alone: (256, 256)."""
    side = drawing.sketch.shape[0] // CROP
    over = drawing.sketch.reshape(CROP, side, CROP, side).astype(np.float32).mean((1, 3))
    size = CROP, CROP
    under = warp(picture, view, size, fill="replicate").astype(np.float32)
    shown = warp(np.ones(picture.shape, np.float32), view, size, fill="black", resample="bilinear")
    return border(over, np.where(shown > 0.5, under, np.nan))


def _seen(values: np.ndarray, view: np.ndarray, window: Window) -> np.ndarray:
    """Return (256, 256) values of a view in a window of the picture: 0 beyond the view."""
    return warp(values, _moved(invert(view), window), _size(window), fill="black", resample="bilinear")


def _distance(view: np.ndarray, window: Window, largest: float) -> np.ndarray:
    """Return for a window of the picture the distance from a head's middle, about 1 at its outline.

    ``largest`` is the scale of the largest face's view, the smallest of all scales.
    """
    left, top, right, bottom = window
    x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)[:, None]
    across, down = (
        (row[0] * x + row[1] * y + row[2] - middle) / radius
        for row, middle, radius in zip(view.astype(np.float32), MIDDLE, RADII, strict=True)
    )
    return np.hypot(across, down) * np.float32((scale_of(view) / largest) ** _LARGER)


def _higher(one: np.ndarray, two: np.ndarray) -> float:
    """Return by how much one head is higher than another, as they are upright: 1 if it touches it from above."""
    apart = np.diff([apply(invert(view), MIDDLE) for view in (one, two)], axis=0)[0]
    down = one[1, :2] / scale_of(one) + two[1, :2] / scale_of(two)
    return float(apart @ down / max(np.linalg.norm(down), 1e-6) / (RADII[1] / scale_of(one) + RADII[1] / scale_of(two)))


def _window(view: np.ndarray, size: tuple[int, int]) -> Window:
    """Return the part of a picture that holds a view: left, top, right, bottom."""
    edge = CROP - 0.5
    corners = apply(invert(view), [[-0.5, -0.5], [edge, -0.5], [-0.5, edge], [edge, edge]])
    low, high = np.floor(corners.min(0)).astype(int) - 1, np.ceil(corners.max(0)).astype(int) + 2
    (left, top), (right, bottom) = np.maximum(low, 0).tolist(), np.minimum(high, size).tolist()
    return left, top, right, bottom


def _meet(one: Window, two: Window) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _moved(matrix: np.ndarray, window: Window) -> np.ndarray:
    """Return a matrix into the picture as one into a window of it."""
    return matrix - [[0, 0, window[0]], [0, 0, window[1]]]


def _size(window: Window) -> tuple[int, int]:
    return window[2] - window[0], window[3] - window[1]
