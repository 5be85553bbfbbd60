"""The one way in for pictures: which formats are opened, how much memory one may take, and what is wrong with a file.

Nothing else in this package calls ``Image.open``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError, features

from hida.errors import HidaError, first_line, warn
from hida.images import heif, repair
from hida.images.colour import LARGEST
from hida.images.samples import Picture, is_deep_mode, note_samples
from hida.images.sources import ImageError, Source, opened

# Formats of plain pictures, by Pillow's names. Left out are those that other programs decode (PostScript: Ghostscript),
# and those of layers, icons and films. MPO, the container of phone cameras, is opened as JPEG. HEIF is besides these:
# Pillow needs another package for it.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")

# Pillow's own hard limit (2 * 89,478,485).
MAX_PIXELS = 178_956_970
# What a picture may take while it is decoded and converted.
MAX_BYTES = 1_000_000_000

_COUNTED = 1 << 18  # bytes of a file whose frames are counted
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # by Pillow's names for what it was built with
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes per pixel; others: 4
# Bytes per pixel while decoding, measured at 9 to 25 megapixels.
_WEBP, _AVIF, _JPEG2000_CHANNEL, _PPM_IN_PYTHON = 17, 16, 7, 16
# Scans of a JPEG, and the pixels that all of them go over; encoders make some ten, and 10^9 pixels take about a second.
_SCANS, _SCANNED = 500, 3e9
_BMP_RLE = 64  # decoded by a loop in Python, so that the limit is one of time

PictureSource = Source | Image.Image
_quietly = threading.Lock()


def load(source: PictureSource, more: int = 0) -> Picture:
    """Decode a picture and turn it as its EXIF says; its colours and values stay as they are.

    Of an animation the first frame is taken, with a warning; of a Pillow image the frame where it stands.

    Args:
        source: a path (the content decides the format, not the suffix), the bytes of a file, a binary file (one in
            which nobody can seek is read to its end), or a Pillow image, which is not changed.
        more: bytes per pixel that the caller will need besides, which count for the limit.

    Raises:
        ImageError: nothing there, no file, empty, no picture of ``FORMATS`` or HEIF (a Pillow image: unless it is
            decoded), truncated or damaged, HEIF without the package that reads it, above ``MAX_PIXELS`` or
            ``MAX_BYTES`` (estimated from the header, before anything is decoded).
    """
    if isinstance(source, Image.Image):
        picture = Picture(source, "the image given", own=False)
        with reported(picture.name):
            decoded, file = _is_decoded(source), getattr(source, "fp", None)
            if source.format not in (*FORMATS, "MPO", heif.FORMAT) and not decoded:
                raise UnidentifiedImageError  # its decoder may be another program
            require_room(picture.name, source.mode, source.size, more)
            if file is not None and not decoded:
                place = file.tell()
                _require_decodable(source, file, picture.name)
                file.seek(place)
            note_samples(picture)
            source.load()
            return _upright(picture)
    with opened(source) as (file, name, held), reported(name):
        image = _open(file, name)
        frames = _frames(image, file)
        if (frames != "1" and image.format != heif.FORMAT) or image.format == "GIF":
            image = _open(file, name)  # to count moved its reader
        require_room(name, image.mode, image.size, more)
        _require_decodable(image, file, name, held)
        picture = Picture(image, name, own=True)
        picture.profiled = image.format == "JPEG2000" and repair.jpeg2000_has_profile(file)
        note_samples(picture)
        try:
            _load(image)
        except OSError:
            if image.format not in ("JPEG", "MPO"):
                raise
            del image
            picture.image = Image.new("L", (1, 1))  # what was decoded is freed
            complete = repair.jpeg_with_end(file, lambda part: _open_and_load(part, name))
            if complete is None:
                raise
            picture.image = complete
        if frames != "1":
            which = "pictures: the main one" if image.format == heif.FORMAT else "frames: the first"
            warn(f"{name} holds {frames} {which} is used.")
        return _upright(picture)


def is_transparent(path: str | os.PathLike[str]) -> bool:
    """Tell by its header whether a picture has transparent places.

    Raises:
        ImageError: as :func:`load` does.
    """
    with opened(path) as (file, name, _), reported(name):
        return _open(file, name).has_transparency_data


def tiff_tag(path: str | os.PathLike[str], tag: int) -> Any:
    """Return a tag of a TIFF's header; None of other formats, and where the tag is missing.

    Raises:
        ImageError: as :func:`load` does.
    """
    with opened(path) as (file, name, _), reported(name):
        tags = getattr(_open(file, name), "tag_v2", {})
        return tags.get(tag)


@contextlib.contextmanager
def reported(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence: on damaged data they raise what they like."""
    try:
        yield
    except HidaError:
        raise
    except MemoryError:
        raise ImageError(f"{name} does not fit in memory: scale it down.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture in a known format: "
            "give a JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF, JPEG 2000 or HEIC."
        ) from None
    except Image.DecompressionBombError as error:
        # Pillow refuses some sizes while opening; its message holds the only trace of the size.
        pixels = re.search(r"\d+", str(error))
        raise too_large(name, f"{int(pixels[0]):,}" if pixels else "too many") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"{name} cannot be read ({error.strerror}): check the file.") from None
        reason = first_line(error)
        raise ImageError(f"{name} is truncated or damaged ({reason}): copy or download it again.") from None


@functools.lru_cache(1)
def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow can decode: it may have been built without some."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    return tuple(name for name in known if name not in _FEATURES or features.check(_FEATURES[name]))


@contextlib.contextmanager
def _without_bomb_warning() -> Iterator[None]:
    """Keep Pillow from speaking of an attack below its hard limit, where our own limits hold."""
    with _quietly, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _open(file: BinaryIO, name: str) -> Image.Image:
    if heif.file_is_heif(file):
        return heif.open_heif(file, name)
    profile = None
    if file.read(len(repair.PNG)) == repair.PNG:
        file, profile = repair.png_without_texts(file, LARGEST)
    try:
        with _without_bomb_warning():
            image = Image.open(file, formats=_formats())
    except UnidentifiedImageError:
        kind = repair.kind_of_beginning(file)
        if kind is None:
            raise
        if kind not in _formats():
            raise ImageError(
                f"{name} is a picture in the format {kind}, which this Pillow was built without: "
                "pip install --upgrade pillow, or save the picture as a JPEG."
            ) from None
        raise OSError("no more than its beginning can be read") from None
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def _load(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    # TIFF's decoder asks once more. The lock would keep threads from decoding at the same time.
    with _without_bomb_warning() if limit and image.width * image.height > limit else contextlib.nullcontext():
        image.load()


def _is_decoded(image: Image.Image) -> bool:
    """Tell whether the pixels of a Pillow image are there, so that to load it decodes nothing."""
    if image.format == heif.FORMAT and getattr(image, "fp", None) is not None:
        return False
    try:
        return not getattr(image, "tile", None) and image.im is not None
    except (AssertionError, ValueError):  # how Pillow says that there are none yet, or no longer
        return image.format is None


def _open_and_load(file: BinaryIO, name: str) -> Image.Image:
    image = _open(file, name)
    _load(image)
    return image


def _frames(image: Image.Image, file: BinaryIO) -> str:
    """Return the number of frames in words."""
    if image.format == "MPO":  # the container of phone cameras: a still and its previews
        return "1"
    if not getattr(image, "is_animated", False):
        return "1"
    # To count them the whole file is read.
    return str(image.n_frames) if file.seek(0, os.SEEK_END) < _COUNTED else "several"  # type: ignore[attr-defined]


def too_large(name: str, pixels: str, limit: int = MAX_PIXELS) -> ImageError:
    """Return the error of a picture of too many pixels."""
    return ImageError(
        f"{name} has {pixels} pixels, above the limit of {limit:,}: scale it down first (it was not decoded)."
    )


def require_room(name: str, mode: str, size: tuple[int, int], more: int = 0) -> None:
    """Check that a picture may be converted to RGB, decoded as it is: what was in memory before counts as if read.

    Args:
        name: of the picture, for the message.
        mode, size: as Pillow has them.
        more: bytes per pixel that the caller will need besides.

    Raises:
        ImageError: it has no pixels, or above ``MAX_PIXELS`` or ``MAX_BYTES``.
    """
    width, height = size
    if width == 0 or height == 0:
        raise ImageError(f"{name} has no pixels ({width}×{height}): give another picture.")
    if width * height > MAX_PIXELS:
        raise too_large(name, f"{width}×{height} = {width * height:,}", MAX_PIXELS)
    held, grey, colour = stored_bytes(mode, size), stored_bytes("L", size), stored_bytes("RGB", size)
    # RGB of our own is not copied; numbers of more than 8 bits become grey first.
    converted = 0 if mode == "RGB" else max(held + grey, grey + colour) - held if is_deep_mode(mode) else colour
    _limit(held + max(converted, width * height * more), name, mode, size)


def _require_decodable(image: Image.Image, file: BinaryIO, name: str, held: int = 0) -> None:
    needed = max(stored_bytes(image.mode, image.size), _decoding(image, file, name))
    _limit(needed + held, name, image.mode, image.size)


def stored_bytes(mode: str, size: tuple[int, int]) -> int:
    """Return the bytes that Pillow stores a picture in: rows of whole words, and a pointer to each."""
    return size[1] * (8 + (size[0] * _STORED.get(mode, 4) + 3) // 4 * 4)


def _limit(needed: float, name: str, mode: str, size: tuple[int, int]) -> None:
    if needed > MAX_BYTES:
        raise ImageError(
            f"{name} ({size[0]}×{size[1]}, {mode}) would take {needed / 1e9:.1f} GB of memory, above the limit of "
            f"{MAX_BYTES / 1e9:g} GB: scale it down first."
        )


def _decoding(image: Image.Image, file: BinaryIO, name: str) -> float:
    """Return the bytes that decoding takes at most, the decoded picture included."""
    pixels, stored = image.width * image.height, stored_bytes(image.mode, image.size)
    decoder = getattr(image, "tile", None)
    decoder = decoder[0][0] if decoder else ""
    if image.format == "WEBP":
        return pixels * _WEBP
    if image.format == "AVIF":
        return pixels * _AVIF
    if image.format == heif.FORMAT:
        return heif.decoding_bytes(image, file)
    if image.format == "JPEG2000":
        return pixels * _JPEG2000_CHANNEL * len(image.getbands())
    if decoder in ("ppm", "ppm_plain"):
        return pixels * _PPM_IN_PYTHON
    if decoder == "bmp_rle":
        return pixels * _BMP_RLE
    if decoder == "jpeg":
        factors = [(h, v) for _, h, v, _ in getattr(image, "layer", [])] or [(1, 1)] * 4
        first, scans = repair.jpeg_scans(file)
        if scans > min(_SCANS, _SCANNED / pixels):
            raise ImageError(f"{name} is a JPEG of {scans:,} scans, each of which goes over all pixels: save it again.")
        if image.info.get("progressive") or first < len(factors):
            # All coefficients are kept, of two bytes each.
            largest = max(h for h, _ in factors) * max(v for _, v in factors)
            return stored + pixels * 2 * sum(h * v for h, v in factors) / max(1, largest)
    if decoder == "libtiff":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(258, (8,))
        # A strip or a tile is unpacked as a whole, and read as a whole before.
        piece = tags[322] * tags[323] if 322 in tags else image.width * min(image.height, tags.get(278, image.height))
        packed = file.seek(0, os.SEEK_END) * min(1, piece / pixels)
        return stored + packed + piece * sum(bits) / 8 * tags.get(277, 1) / max(1, len(bits))
    return stored


def _upright(picture: Picture) -> Picture:
    """Turn a decoded picture as its EXIF says."""
    image = picture.image
    if image.format == heif.FORMAT:  # its container says how it is turned, which its decoder has done
        return picture
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is often malformed: without a readable orientation a picture is taken as it is
        turn = None
    if turn is not None:
        both = stored_bytes(image.mode, image.size) + stored_bytes(image.mode, image.size[::-1])
        _limit(both, picture.name, image.mode, image.size)
        picture.image, picture.own = image.transpose(turn), True
        picture.image.format = image.format
    return picture
