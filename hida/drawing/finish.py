"""What is done to a drawn sketch: darker or lighter masses, heavier or finer strokes, clean paper, its colour."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageColor, ImageFilter

from hida.drawing.joining import smooth
from hida.errors import HidaError

Background = Literal["keep", "white", "transparent"]
LARGEST = 3.0
"""Of ``tone`` and ``line``: beyond it everything is black or white."""
WALL = 200
"""Grey of the wall that a person is drawn in front of. The generator draws outlines against it that busy backgrounds
take away; against white it would lose white hair and collars."""
PERSON = 0.1, 0.9
"""Where the matte begins and is complete for the photo: little of the old background remains."""
CUT_OUT = 0.25, 0.6
"""The same for the sketch: a little outside of the person, where the wall was drawn as paper, so that outlines are
whole."""
LEAST_WALL, DARKEST_PAPER = 0.002, 200
"""Share of a picture that the wall needs to show the paper's grey, and the darkest that it can be."""
COARSE = 8
"""Masses are what is left when so many drawn pixels become one; strokes are about two wide."""


@dataclass(frozen=True)
class Finish:
    """How a drawn sketch is finished; the defaults leave it as it is.

    Args:
        background: "keep"; "white", which leaves the paper clean around the people; "transparent", which cuts them out.
        paper: the colour of the paper, such as "#f4ecd8" or "ivory"; None is white, and a grey picture.
        tone: darkness of the masses, from 0 to 3.
        line: weight of the strokes, from 0 to 3.

    Raises:
        HidaError: naming the argument that is of no use.
    """

    background: Background = "keep"
    paper: str | None = None
    tone: float = 1.0
    line: float = 1.0

    def __post_init__(self) -> None:
        if self.background not in get_args(Background):
            raise HidaError(f"background is {self.background!r}; give one of {', '.join(get_args(Background))}.")
        for name, value in (("tone", self.tone), ("line", self.line)):
            number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 <= value <= LARGEST:
                raise HidaError(f"{name} is {value!r}; give a number from 0 to {LARGEST:g}, 1 changes nothing.")
        if self.paper is not None:
            _colour(self.paper)


def _colour(paper: str) -> tuple[int, int, int]:
    try:
        red, green, blue, *alpha = ImageColor.getrgb(paper)
    except (AttributeError, TypeError, ValueError):
        alpha = [0]
    if alpha:
        near = f"#{paper}" if re.fullmatch(r"[0-9A-Fa-f]{3}|[0-9A-Fa-f]{6}", str(paper)) else None
        near = near or next(iter(difflib.get_close_matches(str(paper).lower(), ImageColor.colormap, 1)), None)
        hint = f"did you mean {near}?" if near else "give one such as #f4ecd8 or ivory."
        raise HidaError(f"paper is {paper!r}, which is no colour; {hint}")
    return red, green, blue


def before_wall(photo: np.ndarray, matte: np.ndarray | None) -> np.ndarray:
    """Return the people of a photo in front of a plain wall.

    Args:
        photo: (H, W, 3) uint8.
        matte: (H, W) uint8, 255 inside of people; None leaves the photo as it is.
    """
    if matte is None:
        return photo
    image = Image.fromarray(photo)
    image = Image.composite(image, Image.new("RGB", image.size, (WALL,) * 3), _between(matte, PERSON))
    return np.asarray(image)


def finish(sketch: Image.Image, how: Finish, matte: np.ndarray | None = None, grain: float = 1.0) -> Image.Image:
    """Return a finished sketch.

    Args:
        sketch: grey.
        matte: (H, W) uint8 of the sketch's size, 255 inside of people; None keeps all of it.
        grain: pixels of the sketch for each pixel that the generator drew, which tells strokes from masses.

    Returns:
        A picture of mode "L", with a colour of the paper "RGB"; with a transparent background "LA" and "RGBA". Where
        it is transparent it has the colour of the paper.
    """
    if matte is not None:
        sketch = _bleached(sketch, matte)
    if how.tone != 1 or how.line != 1:
        sketch = _weighted(sketch, how.tone, how.line, COARSE * grain)
    alpha = None
    if how.background != "keep":
        alpha = Image.new("L", sketch.size, 255) if matte is None else _between(matte, CUT_OUT)
    if alpha is not None and how.background == "white":
        sketch = Image.composite(sketch, Image.new("L", sketch.size, 255), alpha)
    elif alpha is not None:
        # What cannot be seen need not be stored.
        hidden = alpha.point([255] + [0] * 255)
        sketch = Image.composite(Image.new("L", sketch.size, 255), sketch, hidden)
    if how.paper is not None:
        ramps = [[round(level * channel / 255) for level in range(256)] for channel in _colour(how.paper)]
        sketch = Image.merge("RGB", [sketch.point(ramp) for ramp in ramps])
    if how.background == "transparent" and alpha is not None:
        sketch.putalpha(alpha)
    return sketch


def _between(matte: np.ndarray, ends: tuple[float, float]) -> Image.Image:
    """Return a matte that rises smoothly from 0 to 255 between two levels, given on [0, 1]."""
    low, high = ends
    table = np.rint(255 * smooth((np.arange(256) / 255 - low) / (high - low))).astype(np.uint8)
    return Image.fromarray(table[matte])


def _bleached(sketch: Image.Image, matte: np.ndarray) -> Image.Image:
    """Return the sketch with its own paper white, which shows where the wall was drawn: no edge is seen against it."""
    wall = np.asarray(sketch)[(matte == 0) & _near(matte)]
    # What is quite white was mostly not drawn.
    drawn = wall[(wall >= DARKEST_PAPER) & (wall < 255)]
    if drawn.size < max(LEAST_WALL * matte.size, 0.1 * wall.size):
        return sketch
    paper = float(np.median(drawn))
    return sketch.point([min(255, round(level * 255 / paper)) for level in range(256)])


def _near(matte: np.ndarray) -> np.ndarray:
    """Return (H, W): whether people are near."""
    image = Image.fromarray(matte)
    small = image.reduce(max(1, max(image.size) // 64)).point([0] + [255] * 255).filter(ImageFilter.MaxFilter(5))
    return np.asarray(small.resize(image.size, Image.Resampling.NEAREST)) > 0


def _weighted(sketch: Image.Image, tone: float, line: float, coarse: float) -> Image.Image:
    """Return the sketch with ``tone`` times its masses and ``line`` times its strokes, of the darkness on paper.

    Masses are its low frequencies, where there is as much ink; strokes are the rest.
    """
    ink = 255 - np.asarray(sketch, np.float32)
    width, height = (max(1, round(length / max(1.0, coarse))) for length in sketch.size)
    few = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    # Beside a mass there is no ink, and none comes there: a low-pass alone would leave a shadow, or a halo.
    masses = np.clip(np.asarray(few.resize(sketch.size, Image.Resampling.BICUBIC)), 0, ink)
    weighted = 255 - tone * masses - line * (ink - masses)
    return Image.fromarray(np.rint(weighted).clip(0, 255).astype(np.uint8))
