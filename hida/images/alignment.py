"""Bring faces to one place: the similarity that carries three facial points onto a template, and the warp by it.

Coordinates are pixels (x right, y down) with integers at pixel centres; a 2×3 matrix carries source points to
output points: out = matrix[:, :2] @ point + matrix[:, 2].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from hida.errors import HidaError

# The prepared frame, and where its face is: left-image eye, right-image eye, mouth centre. These are the mean
# positions in FS2K's photo1, which comes aligned (eyes (94.7, 107.4) and (152.2, 106.7), mouth (123.6, 169.1)), made
# mirror-symmetric about x = 123.5 with the eyes level at their mean height. No point moves by more than 0.4 px.
FRAME = (250, 250)
TEMPLATE = np.array([[94.75, 107.05], [152.25, 107.05], [123.5, 169.1]])
TEMPLATE.setflags(write=False)

# About half the distance of the eyes. In FS2K's photo1, aligned by a rule that follows turned heads less than ours,
# the farthest of all points is 25.5 px away.
KEEP_WITHIN = 28.0

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
IDENTITY.setflags(write=False)

_FILLS = ("white", "black", "replicate", "paper")
_BORDER = 4  # pixels of a drawing's margin that show its paper
_RESAMPLE = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
_RESAMPLE["bicubic"] = Image.Resampling.BICUBIC


class AlignmentError(HidaError):
    """Points or a matrix that determine no alignment."""


def similarity(points: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """Fit the rotation, uniform scale and shift, never a reflection, that carries ``points`` nearest to ``template``.

    Args:
        points, template: (K, 2) with K ≥ 2.

    Returns:
        The float64 2×3 matrix that minimises the summed squared distance.

    Raises:
        AlignmentError: the points coincide, are not finite, or the two sets differ in shape.

    Source: Umeyama, https://doi.org/10.1109/34.88573, which in two dimensions is one complex division.
    """
    points, template = np.asarray(points, np.float64), np.asarray(template, np.float64)
    if points.shape != template.shape or points.ndim != 2 or points.shape[1] != 2 or len(points) < 2:
        raise AlignmentError(
            f"points {points.shape} cannot be aligned with a template {template.shape}: give the same number of (x, y)."
        )
    source, target = points @ (1, 1j), template @ (1, 1j)
    source_mean, target_mean = source.mean(), target.mean()
    source, target = source - source_mean, target - target_mean
    spread = float(np.sum(np.abs(source) ** 2))
    if not math.isfinite(spread) or spread < 1e-12:
        raise AlignmentError(
            "the facial points coincide or are not finite, which determines no alignment; give others."
        )
    factor = np.sum(np.conj(source) * target) / spread
    shift = target_mean - factor * source_mean
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def placement(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the 2×3 matrix that brings a face with ``points`` (3, 2) in a picture of ``size`` to the frame.

    A picture that already has the frame's size and every point within ``KEEP_WITHIN`` pixels of the template counts
    as aligned by its makers: the identity, so that its pixels stay exact. All else gets :func:`similarity`.
    """
    aligned = tuple(size) == FRAME and np.abs(np.asarray(points) - TEMPLATE).max() <= KEEP_WITHIN
    return IDENTITY.copy() if aligned else similarity(points)


def apply(matrix: np.ndarray, points: ArrayLike) -> np.ndarray:
    """Carry points (..., 2) through a 2×3 matrix."""
    matrix = np.asarray(matrix, np.float64)
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the 2×3 matrix that does ``first`` and then ``second``."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return np.hstack([second[:, :2] @ first[:, :2], (second[:, :2] @ first[:, 2] + second[:, 2])[:, None]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """Return the 2×3 matrix that undoes ``matrix``.

    Raises:
        AlignmentError: none does.
    """
    matrix = np.asarray(matrix, np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :2])) < 1e-12:
        raise AlignmentError("the alignment matrix cannot be inverted: its scale is zero or not finite; give another.")
    inverse = np.linalg.inv(matrix[:, :2])
    return np.hstack([inverse, -(inverse @ matrix[:, 2])[:, None]])


def scale_of(matrix: np.ndarray) -> float:
    """Return the length that one source pixel has in the output."""
    return math.sqrt(abs(np.linalg.det(np.asarray(matrix, np.float64)[:, :2])))


def is_identity(matrix: np.ndarray) -> bool:
    """Tell whether a 2×3 matrix moves nothing at all."""
    return np.array_equal(np.asarray(matrix, np.float64), IDENTITY)


def paper_tone(image: Image.Image | np.ndarray) -> tuple[float, ...]:
    """Return the median of a drawing's outermost pixels, one number per channel: the tone of the paper it is on."""
    pixels = np.asarray(image)
    inner = pixels[_BORDER:-_BORDER, _BORDER:-_BORDER]
    border = np.ones(pixels.shape[:2], bool)
    if inner.size:
        border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    # The lower of two middle values: a tone that occurs in the drawing.
    middle = np.percentile(pixels[border], 50, axis=0, method="lower")
    return tuple(np.atleast_1d(middle).tolist())


@overload
def warp(
    image: Image.Image, matrix: np.ndarray, size: tuple[int, int], fill: str = "white", resample: str = "bicubic"
) -> Image.Image: ...


@overload
def warp(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: str = "white", resample: str = "bicubic"
) -> np.ndarray: ...


def warp(
    image: Image.Image | np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    fill: str = "white",
    resample: str = "bicubic",
) -> Image.Image | np.ndarray:
    """Draw ``image`` carried by the 2×3 similarity ``matrix`` into a frame of ``size`` (width, height).

    The identity into a frame of the image's own size gives a copy, exact in every bit.

    Args:
        image: a Pillow image of mode "L", "RGB" or "F", or an array H×W or H×W×C of uint8 or float.
        matrix: 2×3, from pixels of the image to pixels of the frame.
        size: (width, height) of the frame.
        fill: what is beyond the source: "white" (255, or 1.0 for floats), "black", "replicate", the nearest edge
            pixel, which extends a photo's background without a seam, or "paper", :func:`paper_tone`, which draws no
            lines on where a drawing's strokes reach its edge.
        resample: "bicubic", "bilinear" or "nearest". Where the matrix makes the picture smaller the first two are
            antialiased: it is drawn at a whole multiple of the size and reduced by a bicubic filter.

    Returns:
        A picture of the same kind, dtype and channels (floats stay within their own range).

    Raises:
        ValueError: a mode, dtype, fill or resample of another kind.
        AlignmentError: the matrix cannot be inverted.
    """
    if fill not in _FILLS:
        raise ValueError(f"fill must be one of {_FILLS}, not {fill!r}")
    if resample not in _RESAMPLE:
        raise ValueError(f"resample must be one of {tuple(_RESAMPLE)}, not {resample!r}")
    matrix = np.asarray(matrix, np.float64)
    inverse = invert(matrix)
    if isinstance(image, np.ndarray):
        return _warp_array(image, matrix, inverse, size, fill, resample)
    if image.mode not in ("L", "RGB", "F"):
        raise ValueError(f"warp takes Pillow modes L, RGB and F, not {image.mode}")
    if image.size == tuple(size) and is_identity(matrix):
        return image.copy()
    return _warp_pillow(image, inverse, size, fill, resample)


def _warp_array(
    array: np.ndarray, matrix: np.ndarray, inverse: np.ndarray, size: tuple[int, int], fill: str, resample: str
) -> np.ndarray:
    if array.shape[:2] == (size[1], size[0]) and is_identity(matrix):
        return array.copy()
    if array.dtype == np.uint8 and (array.ndim == 2 or array.shape[2] == 3):
        return np.array(_warp_pillow(array, inverse, size, fill, resample))
    if array.ndim == 3:
        channels = [_warp_array(array[:, :, c], matrix, inverse, size, fill, resample) for c in range(array.shape[2])]
        return np.stack(channels, axis=2)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"warp takes uint8 and float arrays, not {array.dtype}")
    drawn = np.array(_warp_pillow(array.astype(np.float32), inverse, size, fill, resample))
    edge = {"white": 1.0, "black": 0.0}.get(fill, float(array.flat[0]))
    # Bicubic overshoots at edges; a depth or a mask must not leave its range.
    return np.clip(drawn, min(array.min(), edge), max(array.max(), edge)).astype(array.dtype)


def _warp_pillow(
    source: Image.Image | np.ndarray, inverse: np.ndarray, size: tuple[int, int], fill: str, resample: str
) -> Image.Image:
    """Draw by ``inverse``, which carries output pixel centres to source pixel centres.

    ``source`` is a picture of mode "L", "RGB" or "F", or an array of one.
    """
    width, height = size
    smooth = resample != "nearest"
    corner = _cut(source, (0, 0), (1, 1))
    bands = len(corner.getbands())
    white = 1.0 if corner.mode == "F" else 255
    colour = paper_tone(source) if fill == "paper" else (white if fill == "white" else 0,) * bands
    minify = scale_of(inverse)  # source pixels to one output pixel

    # Only the part of the source that can be seen is worth filtering. Where it is cut inside the picture, the cut
    # is beyond the reach of every kernel.
    reach = max(4.0, 4.0 * minify)
    corners = apply(inverse, [[-1, -1], [width, -1], [-1, height], [width, height]])
    low = np.floor(corners.min(axis=0) - reach).astype(int)
    high = np.ceil(corners.max(axis=0) + reach).astype(int) + 1
    extent = source.size if isinstance(source, Image.Image) else source.shape[1::-1]
    start = np.clip(low, 0, np.array(extent) - 1)
    end = np.clip(high, start + 1, extent)
    image = _cut(source, start.tolist(), end.tolist())
    low, high = low - start, high - start
    inverse = inverse - [[0, 0, start[0]], [0, 0, start[1]]]

    # Above 4 source pixels to an output pixel, a box first brings them down to 2..3, which costs little sharpness.
    factor = int(minify / 2) if smooth and minify > 4 else 1
    if factor > 1:
        image = image.reduce(factor)
        # Pixel centres: x' = (x + 0.5) / factor - 0.5.
        inverse /= factor
        inverse[:, 2] += 0.5 / factor - 0.5
        low, high = low // factor, -(-high // factor)
    if fill == "replicate":
        image = _extend(image, low, high)
        inverse[:, 2] -= low
    # Drawn finely enough that no source pixel is skipped, then filtered down: x = (fine + 0.5) / supersample - 0.5.
    supersample = math.ceil(minify / factor - 1e-6) if smooth and minify > 1 else 1
    if supersample > 1:
        inverse[:, 2] += inverse[:, :2] @ np.full(2, 0.5 / supersample - 0.5)
        inverse[:, :2] /= supersample

    # Pillow maps output centre (x + 0.5, y + 0.5) to source coordinates whose pixel centres are at halves.
    linear = inverse[:, :2]
    shift = inverse[:, 2] + 0.5 - linear @ (0.5, 0.5)
    coefficients = (*linear[0], shift[0], *linear[1], shift[1])
    drawn = image.transform(
        (width * supersample, height * supersample),
        Image.Transform.AFFINE,
        coefficients,
        _RESAMPLE[resample],
        fillcolor=colour[0] if bands == 1 else colour,
    )
    return drawn.resize((width, height), Image.Resampling.BICUBIC) if supersample > 1 else drawn


def _cut(source: Image.Image | np.ndarray, start: Sequence[int], end: Sequence[int]) -> Image.Image:
    """Cut [start, end), each (x, y), out of a picture or its array."""
    if isinstance(source, Image.Image):
        return source.crop((start[0], start[1], end[0], end[1]))
    return Image.fromarray(source[start[1] : end[1], start[0] : end[0]])


def _extend(image: Image.Image, low: np.ndarray, high: np.ndarray) -> Image.Image:
    """Cut [low, high) out of ``image`` with its edge pixels continued beyond it."""
    columns = np.clip(np.arange(low[0], high[0]), 0, image.width - 1)
    rows = np.clip(np.arange(low[1], high[1]), 0, image.height - 1)
    return Image.fromarray(np.asarray(image)[rows[:, None], columns[None, :]])
