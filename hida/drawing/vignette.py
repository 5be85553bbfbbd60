"""Let a drawing run out into paper where its photo ends, as a sketch that is not carried on to the edge.

There is no straight edge: strokes end at different lengths, lighter and thinner, around a frame with round corners. A
photo's edge is continued beyond it before it is drawn, so that the photo itself is seen almost whole.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from hida.drawing.borders import smooth
from hida.images.alignment import apply, compose, invert, scale_of

INSIDE, OUTSIDE = 20, 20
"""Drawn pixels inside of the photo's edge from where on strokes get lighter, and beyond it to where the longest end."""
RAGGED, STROKES, TUFTS = 20, 4, 20
"""By how much strokes differ in length, how far apart those that differ are, and tufts of them, in drawn pixels."""
CORNER = 60
"""Radius of the corners in drawn pixels, about the distance of the eyes."""
NARROW = 8
"""Where the picture reaches beyond the photo by no more drawn pixels, it is drawn to its edge."""
THIN = 120
"""How many levels of ink a stroke loses at its end: its edges, which have less, go first, so that it gets thin."""
DARKEST = 200
"""The darkest that paper can be."""


def photo_share(
    size: tuple[int, int], place: np.ndarray, photo: tuple[int, int], grain: float = 1.0
) -> np.ndarray | None:
    """Return how much is drawn in each pixel of a picture: 1 well inside of the photo, 0 beyond it.

    Args:
        size: (width, height) of the picture.
        place: from the photo to the picture.
        photo: (width, height) of the photo.
        grain: pixels of the picture to a drawn one.

    Returns:
        float32 (height, width); None if the photo fills the picture.
    """
    # Nothing here is finer than drawn pixels.
    width, height = canvas = tuple(max(2, round(length / grain)) for length in size)
    kx, ky = np.divide(canvas, size)
    place = compose(place, np.array([[kx, 0, kx / 2 - 0.5], [0, ky, ky / 2 - 0.5]]))
    scale = scale_of(place)
    back = invert(place).astype(np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    corners = apply(back, [[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    near, ends = [], False
    for axis, length in enumerate(photo):
        at = back[axis, 0] * x + back[axis, 1] * y + back[axis, 2]
        within = np.full((height, width), CORNER, np.float32)
        for distance, low in (
            ((at + 0.5) * scale, (corners[:, axis].min() + 0.5) * scale),
            ((length - 0.5 - at) * scale, (length - 0.5 - corners[:, axis].max()) * scale),
        ):
            if low < -NARROW:
                within, ends = np.minimum(within, distance), True
        near.append(CORNER - within)
    if not ends:
        return None
    distance = CORNER - np.hypot(*near)
    # Strokes run out towards the edge, from the middle: those of one direction have one length.
    direction = np.arctan2(y - height / 2, x - width / 2)
    around = np.pi * min(canvas)
    distance -= RAGGED / 2 * sum(_lengths(direction, around / apart) for apart in (STROKES, TUFTS))
    share = smooth((distance + OUTSIDE) / (INSIDE + OUTSIDE)).astype(np.float32)
    return share if canvas == size else np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BILINEAR))


def _lengths(direction: np.ndarray, count: float) -> np.ndarray:
    """Return values between 0 and 1 that vary smoothly with the direction, ``count`` times around."""
    values = np.random.default_rng(0).random(max(3, round(count)), np.float32)
    turn = (direction / (2 * np.pi) % 1) * np.float32(len(values))
    return np.interp(turn, np.arange(len(values) + 1), np.append(values, values[0])).astype(np.float32)


def run_out(picture: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return a drawing that runs out into its own paper.

    Args:
        picture: uint8 (H, W).
        share: (H, W), how much of it is drawn, of :func:`photo_share`.
    """
    paper = paper_level(picture[share > 0.9])
    ink = paper - picture.astype(np.float32)
    thinner = np.maximum(ink - THIN * (1 - share) ** 2, np.minimum(ink, 0))
    return np.rint(paper - thinner * share).clip(0, 255).astype(np.uint8)


def paper_level(pixels: np.ndarray) -> int:
    """Return the level of the paper between strokes, which is the most frequent of the light ones."""
    counts = np.bincount(pixels.ravel(), minlength=256)[DARKEST:]
    return DARKEST + int(counts.argmax()) if counts.any() else 255
