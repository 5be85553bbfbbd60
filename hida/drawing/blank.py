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


def blankness(photo: np.ndarray) -> np.ndarray | None:
    """Return how blank the paper is left in a view, because the photo shows one colour there and nothing else.

    The generator has never seen such a place without a face, and hatches it, most of all towards the view's edges.

    Args:
        photo: uint8 (H, W, 3), H and W multiples of 4.

    Returns:
        (H, W) in [0, 1], 1 for blank; None if nothing is.
    """
    small = Image.fromarray(photo).convert("L").reduce(REDUCED)
    low, high = (np.asarray(small.filter(kind(WINDOW))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    flat = high - low <= FLAT
    # A bar from edge to edge is a frame, however dark.
    bars = flat.all(1, keepdims=True) | flat.all(0, keepdims=True)
    flat &= bars | (low >= DARKEST)
    if not flat.any():
        return None
    soft = Image.fromarray((flat * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(2))
    return np.asarray(soft.resize(photo.shape[1::-1], Image.Resampling.BILINEAR), np.float32) / 255


def leave_blank(sketch: np.ndarray, share: np.ndarray | None) -> np.ndarray:
    """Return a sketch, uint8 (H, W), with its own paper where it is left blank; ``share`` is its :func:`blankness`."""
    if share is None:
        return sketch
    paper = np.float32(np.quantile(sketch, 0.8))
    return np.rint(sketch + (paper - sketch) * share).astype(np.uint8)
