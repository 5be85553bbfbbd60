"""Pictures as files for people: PNG, JPEG, WebP and SVG, without metadata, the same bytes for the same picture."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

from PIL import Image

from hida.files import write_bytes
from hida.images.sources import ImageError
from hida.images.tracing import trace

Format = Literal["png", "jpeg", "webp", "svg"]

SUFFIXES: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".svg": "svg"}
USUAL_SUFFIX: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "svg": ".svg"}

_QUALITY = 92  # of JPEG: no ringing around strokes that is seen
_LONGEST = {"jpeg": 65535, "webp": 16383}  # pixels of a side that the format has


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that a file's suffix names.

    Raises:
        ImageError: none of ``SUFFIXES``.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in SUFFIXES:
        raise ImageError(
            f"'{path}' has the suffix '{suffix}', which no format is written with: "
            f"give one of {', '.join(SUFFIXES)}, or a folder."
        )
    return SUFFIXES[suffix.lower()]


def encode(image: Image.Image, kind: Format = "png") -> bytes:
    """Return a picture as the content of a file, without anything but its pixels.

    WebP is lossless; a drawing of mode "LA" keeps its transparency in all formats but JPEG.

    Args:
        image: of mode "L", "LA" or "RGB"; for "svg" not RGB.

    Raises:
        ImageError: the format has no such picture.
    """
    longest = _LONGEST.get(kind, max(image.size))
    if max(image.size) > longest:
        raise ImageError(
            f"a picture of {image.width}×{image.height} is too large for {kind.upper()}, whose sides end at "
            f"{longest:,} pixels: write a PNG."
        )
    if kind == "svg":
        return trace(image).encode("utf-8")
    if kind == "jpeg" and image.mode not in ("L", "RGB"):
        raise ImageError("a JPEG has no transparent paper: write a PNG, a WebP or an SVG.")
    plain = image.copy()
    plain.info = {}  # comments, EXIF and profiles would be written from here
    buffer = io.BytesIO()
    if kind == "png":
        plain.save(buffer, "PNG", compress_level=6)
    elif kind == "jpeg":
        plain.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    else:
        plain.save(buffer, "WEBP", lossless=True, quality=50, method=4)
    return buffer.getvalue()


def write_picture(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Write a picture, whole or not at all, in the format that the suffix of ``path`` names.

    Raises:
        ImageError: as :func:`format_of` and :func:`encode`.
    """
    write_bytes(path, encode(image, format_of(path)))
