"""A depth map of the user's own, from a file or an array."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from hida.depth.npy import read_array
from hida.errors import HidaError, about
from hida.images.io import require_shape, stored_values, tiles
from hida.images.opening import PictureSource, load, reported, require_room
from hida.images.samples import is_deep
from hida.images.sources import is_source


def require_depth_source(source: object) -> None:
    """Check that a value is something that a depth map can be read from, whatever is in it.

    Raises:
        HidaError: if it is not.
    """
    if not isinstance(source, (Image.Image, np.ndarray)) and not is_source(source):
        raise HidaError(
            f"a depth map cannot be of the type {type(source).__name__}; give a path, the bytes of a file, a Pillow "
            "image or an H×W array."
        )


def depth_from_file(source: PictureSource | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Read a depth map as float32 (height, width) in [0, 1] for ``size`` = (width, height); bright is near.

    Integers are scaled by their type's range; floats within [0, 1] are kept, others scaled by their own minimum and
    maximum. A map of another size is resized bilinearly. A picture is turned as its EXIF says, like the photo; a colour
    profile of it is ignored.

    Args:
        source: a grey picture of 8 or 16 bits (PNG, TIFF, …: a file, its bytes, or a Pillow image), a ``.npy`` file, or
            an array (H, W), (H, W, 1) or (1, H, W).
        size: (width, height).

    Raises:
        HidaError: it cannot be read, is coloured, is not one map, or holds values that are not finite.
    """
    require_depth_source(source)
    name = f"the depth map {os.fspath(source)}" if isinstance(source, (str, os.PathLike)) else "the depth map"
    try:
        if isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() == ".npy":
            return _depth(read_array(Path(source)), 0, size, name)
        if not isinstance(source, np.ndarray):
            with about("" if isinstance(source, (str, os.PathLike)) else name):
                read = _read(source, name)
            return _depth(*read, size, name)
        array = source
        if array.ndim in (2, 3):  # bounded as one that is read
            sides = sorted(array.shape)[-2:]
            require_room(name, "F", (sides[1], sides[0]), more=9)
        return _depth(array, 0, size, name)
    except MemoryError:
        raise HidaError(f"{name} does not fit in memory; scale it and the photo down.") from None


def _depth(values: np.ndarray, white: int, size: tuple[int, int], name: str) -> np.ndarray:
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[:, :, 0]
    if values.ndim != 2 or values.size == 0:
        raise HidaError(f"{name} has the shape {values.shape}; give one value per pixel, H×W.")
    depth = _to_unit(values, white, name)
    if depth.shape != (size[1], size[0]):
        require_shape(name, (depth.shape[1], depth.shape[0]), size)
        resized = Image.fromarray(depth).resize((int(size[0]), int(size[1])), Image.Resampling.BILINEAR)
        depth = np.clip(np.asarray(resized), 0, 1)
    return depth


def _to_unit(values: np.ndarray, white: int, name: str) -> np.ndarray:
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if np.issubdtype(values.dtype, np.unsignedinteger):
        return _scaled(values, 0.0, float(white or np.iinfo(values.dtype).max))
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.signedinteger)):
        raise HidaError(f"{name} holds values of type {values.dtype}; give integers or floats.")
    low, high = float(values.min()), float(values.max())  # what is too large for float64 is not finite then
    if not (np.isfinite(low) and np.isfinite(high)):
        raise HidaError(f"{name} holds values that are not finite; fill them first, 0 for the background.")
    if low < 0 or high > 1:
        if high == low:
            raise HidaError(f"{name} is {low:g} everywhere, outside [0, 1], so near and far are equal; give another.")
        return _scaled(values, low, high)
    return _scaled(values, 0.0, 1.0)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.empty(values.shape, np.float32)
    rows = max(1, (1 << 20) // values.shape[1])  # at a time: no copy of a large map in float64
    for top in range(0, len(values), rows):
        # Halves, so that the difference of any two numbers is finite.
        halves = 0.5 * values[top : top + rows].astype(np.float64)
        scaled[top : top + rows] = (halves - 0.5 * low) / (0.5 * high - 0.5 * low)
    return scaled


def _read(source: PictureSource, name: str) -> tuple[np.ndarray, int]:
    """Return the numbers of a picture, and the largest that its format allows; 0 where their type says that."""
    picture = load(source, more=9)
    if picture.image.mode == "L":
        return np.asarray(picture.image), 0
    if is_deep(picture.image):
        values = stored_values(picture)
        if values.dtype.kind == "f":
            return values, 0
        values = _sixteen_bits(values)
        return values, (picture.maxval or picture.white) if values.dtype == np.uint16 else 0
    # A grey map is often saved as three equal channels, or with an alpha that says nothing.
    grey = np.empty((picture.image.height, picture.image.width), np.uint8)
    with reported(picture.name):
        for box in tiles(picture.image.size):
            channels = np.asarray(picture.image.crop(box).convert("RGB"))
            if (channels != channels[:, :, :1]).any():
                raise HidaError(f"{name} is a colour picture; give a grey one, where bright is near.")
            grey[box[1] : box[3], box[0] : box[2]] = channels[:, :, 0]
    return grey, 0


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Return 16-bit values as such: Pillow gives some files of them as 32-bit integers."""
    if values.dtype == np.uint16:
        return values
    fits = values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max
    if fits:
        return values.astype(np.uint16)
    return values if values.dtype == np.uint32 else values.astype(np.float64)
