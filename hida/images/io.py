"""Read whatever a user calls a picture as an upright 8-bit RGB image, or say in one sentence why not."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from hida.errors import HidaError
from hida.files import atomic_path

ImageSource = Union[str, "os.PathLike[str]", Image.Image, np.ndarray]

# Pillow's own hard limit (2 * 89,478,485): half a gigabyte once decoded as RGB.
MAX_PIXELS = 178_956_970

# Suffixes that a folder scan takes for pictures; reading itself goes by content.
_JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
IMAGE_SUFFIXES = frozenset(
    {*_JPEG_SUFFIXES, ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".jp2"}
)

_WHITE = (255, 255, 255)
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


class ImageError(HidaError):
    """A picture that cannot be read, with the reason."""


def read_image(source: ImageSource) -> Image.Image:
    """Read ``source`` as an upright Pillow image of mode "RGB".

    EXIF orientation is applied, transparency is laid over white, CMYK, Lab and palettes are converted, 16-bit and
    float pictures are scaled instead of clipped, and of an animation the first frame is taken, with a warning.

    Args:
        source: a path (the content decides the format, not the suffix), a Pillow image, or an array H×W, H×W×1, H×W×3
            (RGB) or H×W×4 (RGBA) of uint8, of uint16, or of floats in [0, 1].

    Raises:
        ImageError: nothing there, a folder, an empty file, not a picture, truncated, above ``MAX_PIXELS`` (read from
            the header, before anything is decoded), or an array of another shape, type or range.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if isinstance(source, Image.Image):
        return _decode(source, "the image given")
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"a {type(source).__name__} is not a picture: give a path, a Pillow image or an H×W(×3) numpy array."
        )
    path = Path(source)
    if path.is_dir():
        raise ImageError(f"'{path}' is a folder, not a picture: give a file in it.")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ImageError(f"'{path}' cannot be read ({error.strerror or error}): check the path.") from None
    if size == 0:
        raise ImageError(f"'{path}' is empty (0 bytes): copy or download it again.")
    try:
        with Image.open(path) as image:
            return _decode(image, f"'{path}'")
    except UnidentifiedImageError:
        raise ImageError(f"'{path}' is not a picture in a known format: give a JPEG, PNG, WebP, TIFF or BMP.") from None
    except Image.DecompressionBombError as error:
        # Pillow refuses some sizes while opening; its message holds the only trace of the size.
        pixels = re.search(r"\d+", str(error))
        raise _too_large(f"'{path}'", f"{int(pixels[0]):,}" if pixels else "too many") from None
    except OSError as error:
        if error.strerror:
            raise ImageError(f"'{path}' cannot be read ({error.strerror}): check the file.") from None
        raise ImageError(f"'{path}' is truncated or damaged ({error}): copy or download it again.") from None
    except (ValueError, SyntaxError, EOFError, OverflowError) as error:
        raise ImageError(f"'{path}' is damaged ({error}): copy or download it again.") from None


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


def _too_large(name: str, pixels: str) -> ImageError:
    return ImageError(
        f"{name} has {pixels} pixels, above the limit of {MAX_PIXELS:,}: scale it down first (it was not decoded)."
    )


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Load ``image`` completely (open and verify pass on truncated files; only load tells) and make it RGB."""
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name} has no pixels ({image.width}×{image.height}): give another picture.")
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width}×{image.height} = {image.width * image.height:,}")
    # MPO is the container of phone cameras (a still and its previews), not an animation.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        warnings.warn(f"{name} holds {getattr(image, 'n_frames', 1)} frames: the first is used.", stacklevel=3)
        image.seek(0)
    try:
        image.load()
    except MemoryError:
        raise ImageError(f"{name} ({image.width}×{image.height}) does not fit in memory: scale it down.") from None
    except Exception as error:  # decoders raise what they like on damaged data
        raise ImageError(f"{name} is truncated or damaged ({error}): copy or download it again.") from None
    # EXIF is often malformed; a picture without a readable orientation is taken as it is.
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:
        upright = image
    return _to_rgb(upright)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        image = Image.fromarray(_to_eight_bits(np.asarray(image), integers=image.mode != "F"))
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # None is for a conversion in place
        return converted
    if image.has_transparency_data:
        # RGBa (premultiplied) and PA reach RGBA directly; alpha 255 leaves a pixel exactly as it was.
        colour = image.convert("RGBA")
        white = Image.new("RGB", image.size, _WHITE)
        white.paste(colour, mask=colour.getchannel("A"))
        return white
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _to_eight_bits(values: np.ndarray, integers: bool) -> np.ndarray:
    """Scale a one-channel picture of more than 8 bits to uint8.

    The container does not say its range, so the smallest usual one that holds all values is taken: 16 bits for
    integers; [0, 1], [0, 255] or 16 bits for floats; otherwise the values' own minimum to maximum.
    """
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    elif integers or high > 255:
        scaled = values / 257.0
    else:
        scaled = values if high > 1 else values * 255.0
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ImageError(f"an array of shape {array.shape} is not a picture: give H×W, H×W×1, H×W×3 or H×W×4.")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise _too_large("the array", f"{array.shape[1]}×{array.shape[0]} = {array.shape[0] * array.shape[1]:,}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint16:
        array = np.rint(array / 257.0).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        # A little overshoot is what resampling leaves; anything more is another scale. NaN fails both.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ImageError(f"a float array must be in [0, 1], this one spans [{low:.4g}, {high:.4g}]: rescale it.")
        array = np.clip(np.rint(array.astype(np.float64) * 255.0), 0, 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"an array of {array.dtype} is not a picture: give uint8, uint16 or floats in [0, 1].")
    return Image.fromarray(np.ascontiguousarray(array))
