"""The tone of the skin in a photo, as one number, at a point that somebody has marked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

KEY = "skin_ita"
"""the attribute of a prepared pair"""
_POINTS = ("skin_color", "skin_patch")  # FS2K's files and its README call the point differently
_REACH = 4  # pixels around the point
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def annotated(attributes: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the point (x, y) on the skin that the attributes of a pair name, in its photo's pixels; None if none."""
    for key in _POINTS:
        point = attributes.get(key)
        if isinstance(point, list | tuple) and len(point) == 2 and all(type(v) in (int, float) for v in point):
            return float(point[0]), float(point[1])
    return None


def skin_tone(photo: np.ndarray, point: tuple[float, float]) -> float | None:
    """Compute the individual typology angle at a point: the higher the lighter.

    ITA = atan2(L* − 50, b*), of the median colour of the 9×9 pixels around the point, in CIELAB under D65. It mixes the
    skin with the light that falls on it, and with the camera: a proxy.

    Args:
        photo: (H, W, 3) uint8, sRGB.
        point: (x, y) in its pixels.

    Returns:
        Degrees; None for a point outside of the photo.

    Source: Chardon, Cretois and Hourseau, "Skin colour typology and suntanning pathways", 1991.
    """
    (x, y), (height, width) = (round(v) for v in point), photo.shape[:2]
    if not (0 <= x < width and 0 <= y < height):
        return None
    patch = photo[max(0, y - _REACH) : y + _REACH + 1, max(0, x - _REACH) : x + _REACH + 1].reshape(-1, 3)
    lightness, _, blue_to_yellow = _lab(np.median(patch, axis=0))
    return round(math.degrees(math.atan2(lightness - 50, blue_to_yellow)), 3)


def _lab(colour: np.ndarray) -> np.ndarray:
    """Return CIELAB of an sRGB colour of 0…255 (IEC 61966-2-1; CIE 15)."""
    share = np.asarray(colour, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    t = _TO_XYZ @ linear / _WHITE
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
