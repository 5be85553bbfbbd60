"""A grey drawing as SVG: the outlines of its tones, from light to dark, as smooth curves over one another.

An outline is where the drawing, taken as a surface, crosses a grey level: it runs between pixels, by interpolation, so
that nothing has to be enlarged or made black and white first. contourpy finds it. It becomes a closed quadratic
B-spline, whose control points are written as whole numbers of eighths of a pixel; its segments meet halfway between
them, so the command "t" of SVG, which mirrors the last control point, says all with one point a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hida.images.sources import ImageError

# The grey levels of the outlines as shares of the paper's: what is lighter than the first is paper, its grain too.
LEVELS = (0.935, 0.88, 0.82, 0.76, 0.69, 0.62, 0.54, 0.46, 0.37, 0.29, 0.2, 0.125)
MAX_SVG = 16_000_000  # bytes
_UNIT = 8  # units of the SVG per pixel
# Tried in turn until the bytes suffice: by how many pixels a curve may miss its outline; below how many square pixels
# one is left out.
_FINENESS = ((0.15, 2.0), (0.3, 6.0), (0.6, 16.0))
_ROUNDS = 5
_OPAQUE = 128  # what is less opaque is no paper
_DARKEST_PAPER = 200
_END = "</g></svg>\n"


def trace(image: Image.Image, limit: int | None = None) -> str:
    """Return a drawing as SVG of the same size: its paper, and a path for each of ``LEVELS`` that it reaches.

    The paper has the commonest light grey of the drawing. Of a picture of mode "LA" it is only where that is opaque.
    The same picture always gives the same text.

    Args:
        image: of mode "L" or "LA".
        limit: the most bytes; ``MAX_SVG`` if left out.

    Raises:
        ImageError: contourpy is not installed, the picture is not grey, or its SVG would be too large.
    """
    if image.mode not in ("L", "LA"):
        raise ImageError("only a drawing in grey becomes an SVG: write this picture as a PNG, a JPEG or a WebP.")
    contour_generator = require_tracer()
    limit = MAX_SVG if limit is None else limit
    grey, paper = _over_white(image), None
    if image.mode == "LA":
        # Where nothing is opaque the surface stays below the level, so that the edge of the paper is found.
        paper = contour_generator(z=_with_rim(255 - np.asarray(image.getchannel("A"), np.float32)))
    tones = contour_generator(z=_with_rim(np.asarray(grey, np.float32)))
    counts = np.asarray(image.getchannel("L").histogram(image.getchannel("A") if paper else None), np.float64)
    white = _DARKEST_PAPER + int(counts[_DARKEST_PAPER:].argmax()) if counts[_DARKEST_PAPER:].any() else 255
    levels = [max(1, round(white * share)) for share in LEVELS]
    fills = _fills(counts, levels)
    for tolerance, smallest in _FINENESS:
        parts = [_head(image.size, None if paper else white)]
        if paper is not None:
            parts.append(_path(white, paper.lines(255 - _OPAQUE + 0.5), tolerance, smallest))
        size = len(_END) + sum(map(len, parts))
        for level, fill in zip(levels, fills, strict=True):
            parts.append(_path(fill, tones.lines(level), tolerance, smallest))
            size += len(parts[-1])
            if size > limit:
                break
        else:
            return "".join((*parts, _END))
    raise ImageError(
        f"the SVG of this drawing ({image.width}×{image.height}) would have more than {limit / 1e6:g} MB: write a PNG, "
        "a JPEG or a WebP, or draw a smaller photo."
    )


def require_tracer() -> Any:
    """Return contourpy's function that begins a tracing.

    Raises:
        ImageError: contourpy is not installed.
    """
    try:
        from contourpy import contour_generator
    except ImportError:
        raise ImageError(
            "writing SVG takes another package: pip install contourpy (or write a PNG, a JPEG or a WebP)."
        ) from None
    return contour_generator


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image
    white = Image.new("L", image.size, 255)
    white.paste(image.getchannel("L"), mask=image.getchannel("A"))
    return white


def _with_rim(surface: np.ndarray) -> np.ndarray:
    """Surround a surface with white, so that every outline is closed."""
    return np.pad(surface, 1, constant_values=255)


def _fills(counts: np.ndarray, levels: Sequence[int]) -> list[int]:
    """Return the grey of each level's path: the mean of what is darker than it and not than the next."""
    fills = []
    for level, below in zip(levels, (*levels[1:], 0), strict=True):
        count = counts[below:level]
        mean = float((np.arange(below, level) * count).sum() / count.sum()) if count.any() else (below + level) / 2
        fills.append(round(mean))
    return fills


def _head(size: tuple[int, int], paper: int | None) -> str:
    width, height = size
    right, bottom = width * _UNIT, height * _UNIT
    sheet = "" if paper is None else f'<path fill="{_colour(paper)}" d="M0 0H{right}V{bottom}H0z"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {right} {bottom}">'
        f'{sheet}<g fill-rule="evenodd">'
    )


def _colour(grey: int) -> str:
    return f"#{grey:02x}{grey:02x}{grey:02x}"


def _path(fill: int, lines: Sequence[np.ndarray], tolerance: float, smallest: float) -> str:
    """Return closed lines as one filled path; nothing if all of them are too small."""
    kept = (line[:-1] - 0.5 for line in lines if len(line) > 3 and _area(line) >= smallest)
    data = "".join(_closed_curve(_thinned(line, tolerance)) for line in kept)
    return f'<path fill="{_colour(fill)}" d="{data}"/>' if data else ""


def _area(line: np.ndarray) -> float:
    """Return the area within a closed line, whose last point is its first."""
    x, y = line.T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:]))) / 2


def _thinned(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Leave out points of a closed line that lie near the straight line between their neighbours.

    In each round, of two points that follow one another, one at most goes.
    """
    for _ in range(_ROUNDS):
        count = len(points)
        if count < 8:
            break
        before, after = points[np.arange(-1, count - 1)], points[np.arange(1, count + 1) % count]
        chord, offset = after - before, points - before
        length = np.hypot(chord[:, 0], chord[:, 1])
        across = np.abs(chord[:, 0] * offset[:, 1] - chord[:, 1] * offset[:, 0])
        goes = (across < tolerance * length) & (np.arange(count) % 2 == 1)
        if not goes.any():
            break
        points = points[~goes]
    return points


def _closed_curve(points: np.ndarray) -> str:
    # Even control points have whole numbers halfway between them: mirroring them adds up no rounding.
    controls = 2 * np.rint(points * (_UNIT / 2)).astype(np.int64)
    controls = controls[(controls != np.roll(controls, 1, 0)).any(1)]
    if len(controls) < 3:
        return ""
    joints = (controls + np.roll(controls, -1, 0)) // 2
    start = joints[-1]
    steps = np.diff(joints, axis=0, prepend=start[None])
    first = [*(controls[0] - start), *steps[0]]
    return f"M{_numbers(start)}q{_numbers(first)}t{_numbers(steps[1:].ravel())}z"


def _numbers(values: Sequence[int] | np.ndarray) -> str:
    """Return numbers as SVG reads them; a minus is a separator."""
    return " ".join(map(str, np.asarray(values).tolist())).replace(" -", "-")
