"""What surrounds the faces: how large it is drawn, in one view, or in two where people are a small part of a photo."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hida.data.framing import CROP
from hida.drawing.borders import smooth
from hida.images.alignment import IDENTITY, apply, compose, invert

RIM = 32
"""Drawn pixels of a larger view's own rim that are not used: sketches end there in the training data, some in white
paper. The view reaches beyond the photo by as much."""
LENGTHS = {CROP: CROP, 448: 512, 704: 768, 960: 1024}
"""Up to how many drawn pixels a view of which length shows: all of its own at the generator's own size, all but its
rims beyond. The last is the largest: what surrounds small faces has fewer pixels than they deserve."""
MARGIN_AROUND = 64
"""Drawn pixels around what is wanted that are drawn, too: outlines need their other side."""
CLOSER = 1.3
"""How many times as large the part with people must be drawn in a view of its own to have one."""
BODY = np.array([[-128.0, -64.0], [384.0, 896.0]])
"""Where the body of a person is in the view of the face: twice as wide, and down to the knees of who stands."""
GIVES_WAY = 64
"""Drawn pixels over which the part with people gives way to what surrounds it."""
SHRINK, SHRINK_WHOLE = 0.9, 0.8
"""Down to how much smaller what surrounds faces, and a photo without one, is drawn where that saves 256 rows or columns
of pixels."""


@dataclass(frozen=True)
class Surroundings:
    """The view of what surrounds the faces, and where it is in the picture.

    Args:
        matrix: from the photo to the view.
        frame: (width, height) of the view, multiples of 256.
        inner: (left, top, right, bottom), the pixels of it that are used.
        part: (left, top, right, bottom), those of the picture that they become.
        wanted: drawn pixels to a pixel of the picture that would suit the faces.
    """

    matrix: np.ndarray
    frame: tuple[int, int]
    inner: tuple[int, int, int, int]
    part: tuple[int, int, int, int]
    wanted: float

    @property
    def scale(self) -> float:
        """Drawn pixels to a pixel of the picture."""
        return (self.inner[2] - self.inner[0]) / (self.part[2] - self.part[0])


def surroundings(
    size: tuple[int, int],
    scale: float,
    place: np.ndarray,
    part: tuple[int, int, int, int] | None = None,
    shrink: float = SHRINK,
) -> Surroundings:
    """Choose the view of what surrounds the faces.

    Args:
        size: (width, height) of the picture.
        scale: drawn pixels to a pixel of the picture, as they suit the faces.
        place: from the photo to the picture.
        part: the pixels of the picture that are drawn; all if left out.
        shrink: the least share of ``scale``.
    """
    wanted = scale
    part = (0, 0, *size) if part is None else part
    lengths = part[2] - part[0], part[3] - part[1]
    # A picture smaller than a view is drawn larger, or it would be mostly border.
    least, most = (limit / max(lengths) for limit in (min(LENGTHS), max(LENGTHS)))
    scale = min(max(scale, least), most)
    others = (full / length for length in lengths for full in LENGTHS)
    scales = [scale, *(other for other in others if max(shrink * scale, least) <= other < scale)]
    # The fewest pixels, and of those scales the largest.
    scale = min(scales, key=lambda each: (math.prod(_frame(lengths, each)), -each))
    width, height = (max(1, round(length * scale)) for length in lengths)
    frame = _frame(lengths, scale)
    left, top = (frame[0] - width) // 2, (frame[1] - height) // 2
    # Pixel centres: x' = (x + 0.5)·k − 0.5, with k such that the part's edges meet the inner pixels' edges.
    kx, ky = width / lengths[0], height / lengths[1]
    to_view = np.array([[kx, 0, (0.5 - part[0]) * kx - 0.5 + left], [0, ky, (0.5 - part[1]) * ky - 0.5 + top]])
    return Surroundings(compose(place, to_view), frame, (left, top, left + width, top + height), part, wanted)


def _frame(lengths: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (width, height) of the view that shows so many pixels of a picture at a scale."""
    width, height = (
        next(length for full, length in LENGTHS.items() if round(pixels * scale) <= full) for pixels in lengths
    )
    return width, height


def people(size: tuple[int, int], faces: Sequence[np.ndarray], wide: Surroundings) -> Iterator[Surroundings]:
    """Yield the view of the part of a photo that has people in it, if they would be drawn much larger there.

    Args:
        size: (width, height) of the photo.
        faces: matrices of the faces' views.
        wide: the view of the whole photo.
    """
    (left, top), (right, bottom) = BODY
    bodies = [apply(invert(face), [[left, top], [right, top], [left, bottom], [right, bottom]]) for face in faces]
    low, high = np.min(np.concatenate(bodies), 0), np.max(np.concatenate(bodies), 0)
    first, last = np.clip(np.floor(low), 0, size).astype(int), np.clip(np.ceil(high), 0, size).astype(int)
    if (last > first).all():
        near = surroundings(size, wide.wanted, IDENTITY, (*first.tolist(), *last.tolist()))
        if near.scale >= CLOSER * wide.scale:
            yield near


def part_of(wide: Surroundings, size: tuple[int, int], place: np.ndarray, wanted: np.ndarray) -> Surroundings:
    """Return the view of the part of a picture that is wanted: (H, W), 0 where it is not."""
    margin = math.ceil(MARGIN_AROUND / wide.scale)
    columns, rows = (np.flatnonzero(wanted.max(axis)) for axis in (0, 1))
    left, top = (max(0, int(along[0]) - margin) for along in (columns, rows))
    right, bottom = (
        min(int(along[-1]) + 1 + margin, length) for along, length in zip((columns, rows), size, strict=True)
    )
    return surroundings(size, wide.wanted, place, (left, top, right, bottom))


def laid(drawn: Sequence[np.ndarray], around: Sequence[Surroundings], size: tuple[int, int]) -> np.ndarray:
    """Return a picture of ``size`` with the sketches of the surroundings in their places, white elsewhere."""
    picture = np.full(size[::-1], 255, np.uint8)
    for index, (sketch, view) in enumerate(zip(drawn, around, strict=True)):
        left, top, right, bottom = view.inner
        x0, y0, x1, y1 = view.part
        inner = Image.fromarray(sketch[top:bottom, left:right])
        if inner.size != (x1 - x0, y1 - y0):
            inner = inner.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
        below = picture[y0:y1, x0:x1]
        if index:
            weight = _inside(view, size)
            below[:] = np.rint(below + (np.asarray(inner, np.float32) - below) * weight).clip(0, 255)
        else:
            below[:] = np.asarray(inner)
    return picture


def _inside(view: Surroundings, size: tuple[int, int]) -> np.ndarray:
    """Return how much a part counts in its pixels: less and less towards its edges, but for those of the picture."""
    weights = []
    for low, high, length in zip(view.part[:2], view.part[2:], size, strict=True):
        at = np.arange(high - low, dtype=np.float32) + 0.5
        begin = at if low > 0 else np.full_like(at, np.inf)
        end = at[::-1] if high < length else np.full_like(at, np.inf)
        weights.append(smooth(np.minimum(begin, end) * np.float32(view.scale / GIVES_WAY)))
    return weights[1][:, None] * weights[0]
