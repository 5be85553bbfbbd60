"""Leave the paper blank where a photo shows nothing."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

FLAT = 4
"""Grey levels by which a photo may differ within a window that shows nothing: less than any cloth, more than what a
JPEG makes of one colour."""
DARKEST = 60
"""Grey level below which what is flat is drawn all the same: black cloth, of which a photo shows no more."""
REDUCED, WINDOW = 4, 9
"""The window's side is so many times so many drawn pixels: a line is drawn by what is nearer to it."""


def leave_blank(sketch: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Return the sketch of a view with the paper blank where the photo shows one colour and nothing else.

    The generator has never seen such a place without a face, and hatches it, most of all towards the view's edges.

    Args:
        sketch: uint8 (H, W), H and W multiples of 4.
        photo: uint8 (H, W, 3), the view.
    """
    small = Image.fromarray(photo).convert("L").reduce(REDUCED)
    low, high = (np.asarray(small.filter(kind(WINDOW))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    flat = high - low <= FLAT
    # A bar from edge to edge is a frame, however dark.
    bars = flat.all(1, keepdims=True) | flat.all(0, keepdims=True)
    flat &= bars | (low >= DARKEST)
    if not flat.any():
        return sketch
    soft = Image.fromarray((flat * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(2))
    weight = np.asarray(soft.resize(sketch.shape[::-1], Image.Resampling.BILINEAR), np.float32) / 255
    paper = np.float32(np.quantile(sketch, 0.8))
    return np.rint(sketch + (paper - sketch) * weight).astype(np.uint8)
