"""Sheets: pictures side by side in rows, with a heading over each column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN = 8


def to_image(values: Tensor, low: float = -1.0, high: float = 1.0) -> Image.Image:
    """Return (1, H, W) or (3, H, W) values in [low, high] as a grey or RGB picture; NaN is drawn black."""
    scaled = ((values.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
    array = torch.nan_to_num(scaled * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def sheet(rows: Sequence[Sequence[Image.Image]], headings: Sequence[str], height: int = 256) -> Image.Image:
    """Lay out ``rows`` of pictures of any sizes, each scaled to ``height``, under ``headings``."""
    scaled = [[_fit(picture, height) for picture in row] for row in rows]
    columns = range(max((len(row) for row in scaled), default=0))
    widths = [max(row[k].width for row in scaled if k < len(row)) for k in columns]
    font_size = max(11, height // 16)
    font = ImageFont.load_default(font_size)
    top = MARGIN + (font_size * 3 // 2 if headings else 0)
    size = (sum(widths) + MARGIN * (len(widths) + 1), top + len(scaled) * (height + MARGIN))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    left = MARGIN
    for k in columns:
        if k < len(headings):
            draw.text((left + widths[k] / 2, MARGIN), headings[k], fill="black", font=font, anchor="mt")
        for index, row in enumerate(scaled):
            if k < len(row):
                offset = (widths[k] - row[k].width) // 2
                canvas.paste(row[k], (left + offset, top + index * (height + MARGIN)))
        left += widths[k] + MARGIN
    return canvas


def _fit(picture: Image.Image, height: int) -> Image.Image:
    width = max(1, round(picture.width * height / picture.height))
    # A column of extreme aspect would otherwise make the sheet unusable.
    width = min(width, 4 * height)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
