"""Lay the drawings of faces over the picture of what surrounds them, each face whole on its own head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hida.data.framing import CROP
from hida.drawing.borders import border, smooth
from hida.drawing.heads import Meeting, Window
from hida.images.alignment import apply, compose, invert, scale_of, warp

_BETWEEN = 0.08
"""Over how much of a head's radius one face gives way to another: narrow, or lines of both would show side by side."""
_KEPT = 0.3
"""How far beyond that, in the same unit, a face's strokes are kept: hair reaches out of the ellipse."""


_RIM, _PAPER, _BLANK, _MOST = 40, 200, 0.95, 1.06
"""Pixels of a 256×256 view's rim in which papers are compared; how light most of it must be; how light what counts as
blank, by that; by how much a drawing is made lighter or darker at most."""


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


def on_its_paper(picture: np.ndarray, drawings: Sequence[FaceDrawing], place: np.ndarray) -> list[FaceDrawing]:
    """Return the drawings of faces with paper as light as the picture's: the generator's differs from view to view.

    The border between both would be seen in style 3, whose papers are up to 9 levels apart. Compared is what is blank
    in both in the rim of a face's view; black stays black. The arguments are those of :func:`blend_faces`.
    """
    levelled = []
    for drawing in drawings:
        over, under = _reduced(drawing), _under(picture, compose(invert(place), drawing.view))
        rim = np.ones(over.shape, bool)
        rim[_RIM:-_RIM, _RIM:-_RIM] = False
        both = np.stack([over, under])[:, rim & np.isfinite(under)]
        ratio = 1.0
        # In a rim full of hair there is no telling.
        if both.size and (middle := np.median(both, 1)).min() > _PAPER:
            blank = both[:, (both > _BLANK * middle[:, None]).all(0)]
            ratio = float(np.divide(*np.median(blank, 1)[::-1])) if blank.size else 1.0
        levels = np.arange(256) * np.clip(ratio, 1 / _MOST, _MOST)
        levelled.append(FaceDrawing(np.rint(levels).clip(0, 255).astype(np.uint8)[drawing.sketch], drawing.matrix))
    return levelled


def blend_faces(
    picture: np.ndarray, drawings: Sequence[FaceDrawing], place: np.ndarray, others: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Return ``picture`` with the faces over it.

    A face's drawing counts inside of a line around its head, along which least is seen of the change, but for what
    nearer faces cover: in each pixel that face is nearer of whose head, an ellipse, the pixel is further inside.

    Args:
        picture: uint8 (H, W).
        drawings: of the faces, in any order.
        place: from the photo to the picture.
        others: matrices from the photo to the views that other faces of it would have: their heads, too, give way to no
            face that is farther, and stay as the picture has them.
    """
    mixed = picture.astype(np.float32)
    beside = []
    as_they_are = [FaceDrawing(warp(picture, compose(invert(place), view), (CROP, CROP)), view) for view in others]
    for drawing, share in zip(drawings, face_shares(picture, [*drawings, *as_they_are], place), strict=False):
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
    overs = [_reduced(drawing) for drawing in drawings]
    reaches = [_reach(*pair, picture) for pair in zip(overs, views, strict=True)]
    meetings = {}
    for pair in combinations(range(len(views)), 2):
        if _meet(*(windows[k] for k in pair)):
            one, two = sorted(pair, key=lambda k: -scale_of(views[k]))
            meetings[one, two] = _meeting(*((views[k], overs[k], reaches[k]) for k in (one, two)))
    for k, window in enumerate(windows):
        if window[0] >= window[2] or window[1] >= window[3]:
            yield None
            continue
        weight = strokes = _seen(reaches[k], views[k], window)
        near = [(sum(pair) - k, pair, meeting) for pair, meeting in meetings.items() if k in pair]
        for j, pair, meeting in near:
            reach = _seen(reaches[j], views[j], window)
            farther = meeting.farther(window) * (1 if k == pair[0] else -1)
            weight = weight * (1 - reach * smooth(farther / _BETWEEN + 0.5))
            strokes = strokes * (1 - reach * smooth((farther - _KEPT) / _BETWEEN))
        yield window, weight, strokes if near else None


def _meeting(*faces: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Meeting:
    """Return how two faces meet, the smaller one first.

    Args:
        faces: of each, the matrix from the picture to its view, its drawing and how much of it counts, (256, 256).
    """
    (one, over, reach), (two, other, other_reach) = faces
    back, size = compose(invert(two), one), (CROP, CROP)
    seen = (reach > 0) & (warp(other_reach, back, size, fill="black", resample="bilinear") > 0)
    return Meeting.of(one, two, *(np.where(seen, drawn, np.nan) for drawn in (over, warp(other, back, size))))


def _reduced(drawing: FaceDrawing) -> np.ndarray:
    """Return a face's drawing at 256×256, float32."""
    side = drawing.sketch.shape[0] // CROP
    return drawing.sketch.reshape(CROP, side, CROP, side).astype(np.float32).mean((1, 3))


def _reach(over: np.ndarray, view: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Return how much of a face's drawing counts in each pixel of its view, were it alone: (256, 256)."""
    return border(over, _under(picture, view))


def _under(picture: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Return what of the picture is in a face's view: float32 (256, 256), NaN beyond the picture."""
    under = warp(picture, view, (CROP, CROP), fill="replicate").astype(np.float32)
    shown = warp(np.ones(picture.shape, np.float32), view, (CROP, CROP), fill="black", resample="bilinear")
    return np.where(shown > 0.5, under, np.nan)


def _seen(values: np.ndarray, view: np.ndarray, window: Window) -> np.ndarray:
    """Return (256, 256) values of a view in a window of the picture: 0 beyond the view."""
    return warp(values, _moved(invert(view), window), _size(window), fill="black", resample="bilinear")


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
