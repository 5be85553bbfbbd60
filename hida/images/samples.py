"""A decoded picture, and what its samples mean, which Pillow forgets when it decodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_FEW_BITS = {"L;2": 85, "L;2I": 85, "L;2R": 85, "L;2IR": 85, "L;4": 17, "L;4I": 17, "L;4R": 17, "L;4IR": 17}


@dataclass
class Picture:
    """A decoded picture, upright, in its own mode."""

    image: Image.Image
    name: str
    own: bool
    """whether nobody else has the image, so that it may be changed"""
    step: int = 1
    """by how much Pillow multiplied samples of few bits"""
    white: int = 65535
    """the largest sample of a picture of more than 8 bits"""
    maxval: int = 0
    """the largest sample of a PGM or PPM that Pillow scaled to 8 or 16 bits; 0 of any other picture"""
    profiled: bool = False
    """whether the file has a colour profile that Pillow does not read"""
    unsigned: bool = False
    """whether the numbers are of 32 bits without a sign, which Pillow takes for the sign"""
    inverted: bool = False
    """whether 0 is white (which Pillow undoes for 8 bits only)"""
    clear: object = None
    """the transparent colour, where it is not that of the image's ``info``"""


def is_deep(image: Image.Image) -> bool:
    """Tell whether a picture is one of numbers of more than 8 bits."""
    return is_deep_mode(image.mode)


def is_deep_mode(mode: str) -> bool:
    """Tell whether a mode of Pillow is one of numbers of more than 8 bits."""
    return mode.startswith("I") or mode == "F"


def own_numbers(picture: Picture, values: np.ndarray) -> np.ndarray:
    """Return decoded values as the file has them; ``values`` may be changed."""
    if picture.unsigned:
        values = values.view(np.uint32)
    if picture.step > 1:
        values //= picture.step
    if picture.maxval:
        largest = 65535 if is_deep(picture.image) else 255
        # Rounds the quotient: no two samples were scaled to one number.
        for row in values:
            row[...] = (row.astype(np.int64) * (2 * picture.maxval) + largest) // (2 * largest)
    return values


def note_samples(picture: Picture) -> None:
    """Note what is known of the samples before decoding only."""
    image = picture.image
    tiles = getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else ""
    raw = str(raw[0] if isinstance(raw, tuple) and raw else raw)
    tags = getattr(image, "tag_v2", None)
    if tags is not None and is_deep(image):
        picture.inverted = tags.get(262) == 0
        if image.mode.startswith("I;16") and tags.get(258) == (12,):
            picture.white = 4095
        # SampleFormat; unsigned is the default.
        picture.unsigned = image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    if image.mode == "L":
        picture.step = _FEW_BITS.get(raw, 1)
    if image.format == "PPM" and tiles and tiles[0][0] in ("ppm", "ppm_plain") and isinstance(tiles[0][3], tuple):
        picture.maxval = int(tiles[0][3][-1])
    # Pillow leaves the transparent colour of a PNG in the file's own bits.
    clear = image.info.get("transparency")
    if picture.step > 1 and isinstance(clear, int):
        picture.clear = clear * picture.step
    elif image.mode == "RGB" and ";16" in raw and isinstance(clear, tuple):
        picture.clear = tuple(value >> 8 for value in clear)
