"""Which squares of a photo are drawn, and how the drawn squares become one picture of the photo's size.

The generator knows one thing: a face in its place in a 256×256 frame. A photo is therefore drawn as *views*: the
face upright at its place, and around it overlapping tiles at the face's own scale, so that strokes have the same
width everywhere. Without a face the photo is drawn as it is: in one piece up to 512 pixels, in overlapping tiles of
512 beyond, which see more of it than the smaller ones and leave fewer seams. Coordinates are pixels with integers at
pixel centres; a view's matrix carries the photo's to its.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hida.data.framing import CROP
from hida.images.alignment import (
    FRAME,
    IDENTITY,
    TEMPLATE,
    apply,
    compose,
    invert,
    is_identity,
    placement,
    scale_of,
    warp,
)

MARGIN = (CROP - FRAME[0]) // 2
"""The generator's frame is the aligned 250×250 one with 3 more pixels on each side."""
CANVAS = 896
"""Longest side, in drawn pixels, of what surrounds the face: at most 49 tiles."""
LARGE = 2 * CROP
"""Side of the views of a photo without a face."""
WHOLE_CANVAS = 1536
"""Longest side, in drawn pixels, of a photo without a face: at most 16 large tiles."""
RIM = 32
"""Drawn pixels of a tile's own rim that are not used: sketches end there in the training data, some in white paper.
The tiles reach beyond the photo by as much."""
OVERLAP = 128
"""Drawn pixels that neighbouring tiles share at least: both rims, and the blend between them."""
FEATHER = 40
"""Drawn pixels over which the face's view gives way to what surrounds it."""


@dataclass(frozen=True)
class Plan:
    """The views of one photo.

    Args:
        size: (width, height) of the photo.
        face: matrix of the face's view, or None.
        tiles: matrices of the other views.
        canvas: (width, height) that the tiles share; 0×0 without tiles.
        to_canvas: matrix from the photo to the canvas.
        side: of every view, in pixels.
    """

    size: tuple[int, int]
    face: np.ndarray | None
    tiles: tuple[np.ndarray, ...]
    canvas: tuple[int, int]
    to_canvas: np.ndarray
    side: int = CROP

    @property
    def views(self) -> tuple[np.ndarray, ...]:
        """The matrices of all views: the tiles, then the face."""
        return (*self.tiles, *(() if self.face is None else (self.face,)))

    @property
    def grain(self) -> float:
        """Pixels of the photo for each pixel that is drawn: of the face, or of a photo without one."""
        return 1 / scale_of(self.to_canvas if self.face is None else self.face)


def face_points(plan: Plan) -> list[np.ndarray]:
    """Return for each face that has a view about where its eyes and its mouth are in the photo, (3, 2)."""
    return [] if plan.face is None else [apply(invert(plan.face), TEMPLATE + MARGIN)]


def plan(size: tuple[int, int], points: np.ndarray | None, surroundings: bool = True) -> Plan:
    """Choose the views of a photo of ``size`` whose face has ``points`` (3, 2), or None to draw it as a whole.

    ``surroundings`` False leaves paper white outside the face's view.
    """
    if points is None:
        longest = max(size)
        # A photo little larger than a small view is not worth a large one, in which it would be enlarged.
        side = CROP if longest <= 1.5 * CROP else LARGE
        return _tiled(size, None, side / longest if longest <= LARGE else min(1.0, WHOLE_CANVAS / longest), side)
    face = compose(placement(points, size), shift(MARGIN, MARGIN))
    if _covers(face, size) or not surroundings:
        return Plan(size, face, (), (0, 0), IDENTITY)
    return _tiled(size, face, min(scale_of(face), CANVAS / max(size)))


def _tiled(size: tuple[int, int], face: np.ndarray | None, scale: float, side: int = CROP) -> Plan:
    # A photo smaller than one view is drawn larger, or it would be mostly border.
    scale = max(scale, CROP / max(size))
    width, height = (max(1, round(length * scale)) for length in size)
    canvas = width, height
    # Pixel centres: x' = (x + 0.5)·k − 0.5, with k such that the photo's edges meet the canvas's.
    kx, ky = canvas[0] / size[0], canvas[1] / size[1]
    to_canvas = np.array([[kx, 0, kx / 2 - 0.5], [0, ky, ky / 2 - 0.5]])
    lefts, tops = (_starts(length, side) for length in canvas)
    tiles = tuple(compose(to_canvas, shift(-left, -top)) for top in tops for left in lefts)
    return Plan(size, face, tiles, canvas, to_canvas, side)


def _starts(length: int, side: int) -> list[float]:
    """Return where tiles of ``side`` begin along a length: evenly spread, centred if one is enough."""
    if length <= side:
        return [float(-((side - length) // 2))]
    room = length + 2 * RIM
    count = math.ceil((room - OVERLAP) / (side - OVERLAP))
    return [float(round(k * (room - side) / (count - 1)) - RIM) for k in range(count)]


def shift(x: float, y: float) -> np.ndarray:
    """Return the matrix that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def compose_picture(plan: Plan, drawn: list[np.ndarray]) -> Image.Image:
    """Join the drawn views into a grey picture of the photo's size.

    ``drawn`` holds uint8 squares of ``plan.side``, in the order of ``plan.views``.
    """
    if plan.tiles:
        picture = _resized(_joined(plan, drawn), plan)
    else:
        picture = np.full((plan.size[1], plan.size[0]), 255, np.uint8)
    if plan.face is None:
        return Image.fromarray(picture)
    back = invert(plan.face)
    # Without tiles and with the whole photo inside the view there is nothing to give way to.
    if _covers(plan.face, plan.size):
        return Image.fromarray(warp(drawn[-1], back, plan.size, fill="replicate"))
    over = warp(drawn[-1], back, plan.size, fill="white").astype(np.float32)
    weight = warp(_feather(), back, plan.size, fill="black", resample="bilinear")
    mixed = picture + (over - picture) * weight
    return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


def _covers(face: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether the face's view shows the whole photo."""
    right, bottom = size[0] - 1, size[1] - 1
    corners = apply(face, np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]]))
    return bool((corners > -0.5).all() and (corners < CROP - 0.5).all())


def _joined(plan: Plan, drawn: list[np.ndarray]) -> np.ndarray:
    """Blend the tiles on the canvas, each pixel weighted by its distance to its tile's rim."""
    width, height = plan.canvas
    side = plan.side
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]).astype(np.float32)
    # Never quite zero: where one tile is enough, its rim is all there is.
    ramp = np.clip((distance - RIM) / (OVERLAP - 2 * RIM), 1e-4, 1)
    window = ramp[:, None] * ramp
    total, weights = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    to_photo = invert(plan.to_canvas)
    for matrix, tile in zip(plan.tiles, drawn, strict=False):
        left, top = (round(-value) for value in compose(to_photo, matrix)[:, 2])
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
        inner = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        total[y0:y1, x0:x1] += tile[inner] * window[inner]
        weights[y0:y1, x0:x1] += window[inner]
    return np.rint(total / weights).clip(0, 255).astype(np.uint8)


def _resized(canvas: np.ndarray, plan: Plan) -> np.ndarray:
    if (canvas.shape[1], canvas.shape[0]) == plan.size:
        return canvas
    return np.asarray(Image.fromarray(canvas).resize(plan.size, Image.Resampling.BICUBIC))


def _feather() -> np.ndarray:
    """Return (256, 256) weights: 1 inside, a smooth fall to 0 at the edge."""
    distance = np.minimum(np.arange(CROP), np.arange(CROP)[::-1]).astype(np.float32)
    ramp = np.clip(distance / FEATHER, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return ramp[:, None] * ramp


def view_photo(photo: np.ndarray, matrix: np.ndarray, side: int = CROP) -> np.ndarray:
    """Return the square view of an H×W×3 uint8 photo; beyond its edge the edge continues."""
    if is_identity(matrix) and photo.shape[:2] == (side, side):
        return photo
    return warp(photo, matrix, (side, side), fill="replicate")


def view_depth(depth: np.ndarray, matrix: np.ndarray, side: int = CROP) -> np.ndarray:
    """Return the square view of an H×W depth map in [0, 1]; beyond its edge it is far."""
    return np.clip(warp(depth.astype(np.float32), matrix, (side, side), fill="black", resample="bilinear"), 0, 1)


def view_weights(weights: np.ndarray, matrix: np.ndarray, side: int = CROP) -> np.ndarray:
    """Return the square view of H×W×S style weights; beyond their edge the edge continues."""
    planes = [np.ascontiguousarray(plane, np.float32) for plane in weights.transpose(2, 0, 1)]
    return np.stack([warp(plane, matrix, (side, side), fill="replicate", resample="bilinear") for plane in planes], 2)
