"""Read whatever a user calls a picture as an upright 8-bit RGB image, or say in one sentence why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from hida.errors import warn
from hida.files import atomic_path
from hida.images.colour import Colours, lab_to_srgb
from hida.images.opening import (
    MAX_BYTES,
    MAX_PIXELS,
    ImageError,
    load,
    reported,
    require_room,
    stored_bytes,
)
from hida.images.samples import Picture, is_deep, own_numbers
from hida.images.sources import Source, is_source

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "ImageError", "ImageSource", "image_files", "read_image", "write_png"]

ImageSource = Source | Image.Image | np.ndarray

# Suffixes that a folder scan takes for pictures, those of opening.FORMATS and HEIF; reading itself goes by content.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c"}
    | {".heic", ".heif", ".hif", ".heics", ".heifs"}
)

_WHITE = (255, 255, 255)
_TILE = 1 << 20  # pixels that are converted at a time, so that no second copy of a picture is needed
_GREY = ("1", "L", "LA", "La")


def read_image(source: ImageSource) -> Image.Image:
    """Read ``source`` as an upright Pillow image of mode "RGB", its colours those of sRGB.

    EXIF orientation is applied, colour profiles are converted (one that is broken is ignored, with a warning),
    transparency is laid over white, CMYK, Lab and palettes are converted, and 16-bit and float pictures are scaled
    instead of clipped. Of an animation the first frame is taken, with a warning; of a Pillow image the frame where it
    stands, and the image is not changed.

    Args:
        source: a path (the content decides the format, not the suffix), the bytes of a file, a binary file, a Pillow
            image, or an array H×W, H×W×1, H×W×3 (RGB) or H×W×4 (RGBA) of uint8, of uint16, or of floats in [0, 1].

    Raises:
        ImageError: nothing there, a folder, an empty file, no picture of :data:`hida.images.opening.FORMATS`,
            truncated, above ``MAX_PIXELS`` or the limit on memory, or an array of another shape, type or range.
    """
    if isinstance(source, np.ndarray):
        with reported("the array"):
            return to_rgb(Picture(_from_array(source), "the array", own=True))
    if not isinstance(source, Image.Image) and not is_source(source):
        raise ImageError(
            f"a picture cannot be of the type {type(source).__name__}: give a path, the bytes of a file, a Pillow "
            "image or an H×W(×3) numpy array."
        )
    return to_rgb(load(source))


def to_rgb(picture: Picture, managed: bool = True) -> Image.Image:
    """Return a decoded picture as RGB over white; ``picture`` is used up.

    Args:
        managed: whether to convert its colours to sRGB; without it they stay the numbers of the file.

    Raises:
        ImageError: Pillow cannot convert it.
    """
    with reported(picture.name):
        image = picture.image
        if managed and picture.profiled:
            warn(f"the colour profile of {picture.name} is not used (JPEG 2000): its colours are taken as sRGB.")
        mode = "L" if image.mode in _GREY or is_deep(image) else "CMYK" if image.mode == "CMYK" else "RGB"
        colours = Colours(image if managed and image.mode != "LAB" else Image.new(mode, (1, 1)), mode, picture.name)
        if is_deep(image):
            image = picture.image = _to_eight_bits(picture, colours)
            return image.convert("RGB")
        clear = image.has_transparency_data
        if image.mode == "RGB" and not clear:
            # A decoder may hold more than the pixels. Only the largest pictures go without a copy.
            if not picture.own or 2 * stored_bytes(image.mode, image.size) <= MAX_BYTES:
                image = image.copy()
            colours.convert(image)
            # Neither its profile nor its camera applies to it any longer.
            image.info, image.format = {}, None
            return image
        result = Image.new("RGB", image.size)
        for box in tiles(image.size):
            tile = image.crop(box)
            if picture.clear is not None:
                tile.info["transparency"] = picture.clear
            result.paste(_tile_to_rgb(tile, mode, colours, clear), box)
        return result


def tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes of pieces that cover a picture of ``size``."""
    width, height = min(size[0], _TILE), max(1, _TILE // size[0])
    for top in range(0, size[1], height):
        for left in range(0, size[0], width):
            yield left, top, min(left + width, size[0]), min(top + height, size[1])


def _tile_to_rgb(tile: Image.Image, mode: str, colours: Colours, clear: bool) -> Image.Image:
    if tile.mode == "LAB":
        converted = ImageCms.applyTransform(tile, lab_to_srgb())
        assert converted is not None  # None is for a conversion in place
        return converted
    if not clear:
        return colours.convert(tile if tile.mode == mode else tile.convert(mode))
    # RGBa (premultiplied) and PA reach RGBA directly; alpha 255 leaves a pixel exactly as it was.
    layers = tile.convert("LA" if tile.mode == "La" else "RGBA").convert("RGBA")
    colour = layers.convert("RGB")
    white = Image.new("RGB", tile.size, _WHITE)
    white.paste(colours.convert(colour.getchannel("R") if mode == "L" else colour), mask=layers.getchannel("A"))
    return white


def require_shape(name: str, size: tuple[int, int], photo: tuple[int, int]) -> None:
    """Check that a map can be scaled to a photo without being stretched, but for what tools round.

    Args:
        name: of the map, for the message.
        size, photo: (width, height) of both.

    Raises:
        ImageError: their sides differ in ratio by more than a pixel of the map, and than 2 %.
    """
    (width, height), (wide, high) = size, photo
    if abs(width * high - height * wide) > max(wide, high, 0.02 * width * high):
        raise ImageError(
            f"{name} is {width}×{height} and would be stretched to the photo's {wide}×{high}; give one of the photo's "
            "size or shape."
        )


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """List the pictures directly in ``folder`` by suffix (any case), hidden files left out, sorted by name."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def write_png(path: str | os.PathLike[str], image: np.ndarray | Image.Image, compress_level: int = 6) -> None:
    """Write a PNG whole or not at all.

    Args:
        path: the file to write; an existing one is replaced.
        image: uint8 H×W, H×W×3 or H×W×4, uint16 H×W (a 16-bit grey PNG), or a Pillow image.
        compress_level: 0 (none) to 9.

    Raises:
        ImageError: an array of another shape or dtype.
    """
    if isinstance(image, np.ndarray):
        eight = image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4)))
        sixteen = image.dtype == np.uint16 and image.ndim == 2
        if not (eight or sixteen) or 0 in image.shape:
            raise ImageError(
                f"an array {image.shape} of {image.dtype} does not fit a PNG: give uint8 H×W, H×W×3 or H×W×4, "
                "or uint16 H×W."
            )
        image = Image.fromarray(np.ascontiguousarray(image))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", compress_level=compress_level)


def _to_eight_bits(picture: Picture, colours: Colours) -> Image.Image:
    """Scale a one-channel picture of more than 8 bits to 8.

    The container does not say its range, so the smallest usual one that holds all values is taken: 16 bits for
    integers, 32 for those without a sign; [0, 1], [0, 255] or 16 bits for floats; otherwise the values' own minimum to
    maximum.
    """
    image, boxes = picture.image, list(tiles(picture.image.size))
    low, high = 0.0, 65535.0
    if not image.mode.startswith("I;16"):
        extremes = [(tile.min(), tile.max()) for tile in (_finite(picture, box) for box in boxes)]
        low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    offset, scale = 0.0, 255.0
    if picture.unsigned and high > 65535:
        scale = 255.0 / 0xFFFFFFFF
    elif low < 0 or high > 65535:
        offset, scale = low, 255.0 / max(high - low, 1e-12)
    elif image.mode != "F" or high > 255:
        scale = 255.0 / picture.white
    elif high > 1:
        scale = 1.0
    clear = image.info.get("transparency")
    grey = Image.new("L", image.size)
    for box in boxes:
        values = _finite(picture, box)
        levels = (values - offset) * scale
        levels = colours.convert_grey(255 - levels if picture.inverted else levels)
        if isinstance(clear, int):
            levels[values == clear] = 255
        grey.paste(Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)), box)
    return grey


def _finite(picture: Picture, box: tuple[int, int, int, int]) -> np.ndarray:
    values = np.asarray(picture.image.crop(box))
    values = (values.view(np.uint32) if picture.unsigned else values).astype(np.float64)
    return values if np.isfinite(values).all() else np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def stored_values(picture: Picture) -> np.ndarray:
    """Return the numbers of a one-channel picture as its file has them, (H, W); ``picture`` is used up.

    Palettes give their indices, 8 bits and less uint8, 16 bits uint16, others int32, uint32 or float32. Where 0 is
    white, 16 bits and floats are returned inverted, as Pillow does with 8.

    Raises:
        ImageError: Pillow cannot decode it.
    """
    with reported(picture.name):
        image = picture.image
        first = np.asarray(image.crop((0, 0, 1, 1)).convert("L") if image.mode == "1" else image.crop((0, 0, 1, 1)))
        values = np.empty((image.height, image.width), first.dtype.newbyteorder("="))
        for box in tiles(image.size):
            left, top, right, bottom = box
            tile = image.crop(box)
            values[top:bottom, left:right] = np.asarray(tile.convert("L") if tile.mode == "1" else tile)
        values = own_numbers(picture, values)
        if picture.inverted:
            largest = picture.white if values.dtype == np.uint16 else max(1, values.max(initial=0))
            np.subtract(largest, values, out=values)
        return values


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape} is not a picture: give H×W, H×W×1, H×W×3 or H×W×4.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    size = array.shape[1], array.shape[0]
    mode = "L" if array.ndim == 2 else "RGB" if array.shape[2] == 3 else "RGBA"
    floats = np.issubdtype(array.dtype, np.floating)
    if not floats and array.dtype != np.uint8 and array.dtype.newbyteorder("=") != np.uint16:
        raise ImageError(f"an array of {array.dtype} is not a picture: give uint8, uint16 or floats in [0, 1].")
    require_room("the array", mode, size)
    if floats:
        low, high = float(array.min()), float(array.max())
        # A little overshoot is what resampling leaves; anything more is another scale. NaN fails both.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ImageError(f"a float array must be in [0, 1], this one spans [{low:.4g}, {high:.4g}]: rescale it.")
    image = Image.new(mode, size)
    for box in tiles(size):  # at a time, so that no second copy of a large one is needed
        values = array[box[1] : box[3], box[0] : box[2]]
        if array.dtype != np.uint8:
            values = values.astype(np.float64)
            values = np.clip(np.rint(values * 255.0 if floats else values / 257.0), 0, 255).astype(np.uint8)
        image.paste(Image.fromarray(np.ascontiguousarray(values)), box)
    return image
