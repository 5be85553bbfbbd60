"""Sheets: pictures side by side, with headings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:  # commands that lay out no tensors load no torch
    from torch import Tensor

MARGIN = 8
"""Pixels around the pictures of a sheet; more where they are higher than 256, a 32nd of the height."""
_LONGEST = 4  # times the height, or the side: a picture of extreme shape would otherwise make a sheet unusable
_SHAPE = 2.5  # width to height of a sheet that is easy to look at


def to_image(values: Tensor, low: float = -1.0, high: float = 1.0) -> Image.Image:
    """Return (1, H, W) or (3, H, W) values in [low, high] as a grey or RGB picture; NaN is drawn black."""
    scaled = ((values.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
    array = (scaled * 255).nan_to_num().round().byte().numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def sheet(rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], height: int = 256) -> Image.Image:
    """Lay out ``rows`` of pictures of any sizes, each scaled to ``height``, under ``headings``, one for each column.

    A picture wider than four times ``height`` is scaled to that width instead.
    """
    scaled = [[_scaled(p, min(height, _LONGEST * height * p.height / p.width)) for p in row] for row in rows]
    return _lay_out(scaled, [headings, *[()] * len(scaled)][: len(scaled)], height)


def picture_sheet(pictures: Sequence[Image.Image], headings: Sequence[str], side: int = 512) -> Image.Image:
    """Lay out pictures of one shape, each under its own heading, in as many columns as suit their shape.

    Upright and square pictures come side by side, panoramas below each other.

    Args:
        pictures: one or more.
        headings: one for each.
        side: a picture of any shape gets the area of a square of this side, or less if it would be longer than four.
    """
    scaled = []
    for picture in pictures:
        aspect = picture.width / picture.height
        scaled.append(_scaled(picture, side * min(aspect**-0.5, _LONGEST, _LONGEST / aspect)))
    columns = _columns(len(pictures), pictures[0].width / pictures[0].height)
    starts = range(0, len(pictures), columns)
    rows = [scaled[k : k + columns] for k in starts]
    return _lay_out(rows, [headings[k : k + columns] for k in starts], side)


def _columns(count: int, aspect: float) -> int:
    """Return how many of ``count`` pictures to put side by side, so that the sheet is neither long nor tall."""

    def fault(columns: int) -> float:
        rows = math.ceil(count / columns)
        empty = rows * columns - count
        return abs(math.log(columns * aspect / rows / _SHAPE)) + empty / 2

    return min(range(count, 0, -1), key=fault)


def on_white(picture: Image.Image) -> Image.Image:
    """Return a picture as grey or RGB, white where it is transparent."""
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("L" if grey else "RGB")


def _scaled(picture: Image.Image, height: float) -> Image.Image:
    size = max(1, round(picture.width * height / picture.height)), max(1, round(height))
    return on_white(picture).resize(size, Image.Resampling.LANCZOS)


def _lay_out(rows: Sequence[Sequence[Image.Image]], headings: Sequence[Sequence[str]], height: int) -> Image.Image:
    """Paste scaled pictures onto white, each in the middle of its cell; the headings of a row are above it.

    A column is as wide as its widest picture, or as a word of its headings, which are wrapped.
    """
    margin = max(MARGIN, height // 32)
    font = ImageFont.load_default(max(11, height // 20))
    count = max((len(row) for row in rows), default=0)
    widths = [max(row[k].width for row in rows if k < len(row)) for k in range(count)]
    texts = [[_wrapped(text, font, widths[k]) for k, text in enumerate(line[:count])] for line in headings]
    for k in range(count):
        widths[k] = max([widths[k], *(_extent(line[k], font)[0] for line in texts if k < len(line))])
    above = [max((_extent(text, font)[1] + margin // 2 for text in line if text), default=0) for line in texts]
    heights = [max((picture.height for picture in row), default=0) for row in rows]
    lefts = [margin + sum(widths[:k]) + margin * k for k in range(count)]
    size = margin + sum(widths) + margin * count, margin + sum(above) + sum(heights) + margin * len(rows)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    top = margin
    for row, line, room, high in zip(rows, texts, above, heights, strict=True):
        top += room
        for left, width, text in zip(lefts, widths, line, strict=False):
            # From below: a heading of one line is next to its picture, too, where another has two.
            draw.text((left + width / 2, top - margin // 2), text, "black", font, anchor="md", align="center")
        for left, width, picture in zip(lefts, widths, row, strict=False):
            canvas.paste(picture, (left + (width - picture.width) // 2, top + (high - picture.height) // 2))
        top += high + margin
    return canvas


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text with line breaks between words, so that it is no wider than ``width`` if its words are not."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _extent(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    """Return the width and the height of lines of text."""
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font, anchor="la")
    return math.ceil(box[2]), math.ceil(box[3])
