"""A decoded picture, and what its samples mean, which Pillow forgets when it decodes."""

from __future__ import annotations

from dataclasses import dataclass

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
    inverted: bool = False
    """whether 0 is white (which Pillow undoes for 8 bits only)"""
    clear: object = None
    """the transparent colour, where it is not that of the image's ``info``"""


def is_deep(image: Image.Image) -> bool:
    """Tell whether a picture is one of numbers of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


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
    if image.mode == "L":
        picture.step = _FEW_BITS.get(raw, 1)
    # Pillow leaves the transparent colour of a PNG in the file's own bits.
    clear = image.info.get("transparency")
    if picture.step > 1 and isinstance(clear, int):
        picture.clear = clear * picture.step
    elif image.mode == "RGB" and ";16" in raw and isinstance(clear, tuple):
        picture.clear = tuple(value >> 8 for value in clear)
