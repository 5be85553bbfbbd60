"""Pictures as files for people: PNG, JPEG, WebP and SVG, the same bytes for the same picture.

A file holds nothing of the photo that was drawn, but, if that is wanted, the mark that tells a drawing from a photo.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hida.files import write_bytes
from hida.images.sources import ImageError
from hida.images.tracing import trace

Format = Literal["png", "jpeg", "webp", "svg"]

SUFFIXES: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".svg": "svg"}
USUAL_SUFFIX: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "svg": ".svg"}

MARK = "made by HIDA"
"""In the files of drawings, and of other pictures that commands make of photos: these are no photos themselves."""
_NEAR_ENDS = 256  # bytes in which the mark is: in a PNG and a JPEG at the beginning, in others at the end
_SOFTWARE = 0x0131  # of EXIF
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


def encode(image: Image.Image, kind: Format = "png", marked: bool = False) -> bytes:
    """Return a picture as the content of a file, without anything but its pixels and the mark.

    WebP is lossless; a drawing of mode "LA" keeps its transparency in all formats but JPEG.

    Args:
        image: of mode "L", "LA", "RGB" or "RGBA", for a PNG "I;16", too; for "svg" not RGB.
        marked: whether to write ``MARK`` where the format has a place for the program's name, or for a comment.

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
        return (trace(image) + (f"<!-- {MARK} -->\n" if marked else "")).encode("utf-8")
    if kind == "jpeg" and image.mode not in ("L", "RGB"):
        raise ImageError("a JPEG has no transparent paper: write a PNG, a WebP or an SVG.")
    plain = image.copy()
    plain.info = {}  # comments, EXIF and profiles would be written from here
    buffer = io.BytesIO()
    if kind == "png":
        texts = PngInfo()
        if marked:
            texts.add_text("Software", MARK)
        plain.save(buffer, "PNG", compress_level=6, pnginfo=texts)
    elif kind == "jpeg":
        plain.save(buffer, "JPEG", quality=_QUALITY, optimize=True, comment=MARK if marked else b"")
    else:
        exif = Image.Exif()
        if marked:
            exif[_SOFTWARE] = MARK
        plain.save(buffer, "WEBP", lossless=True, quality=50, method=4, exif=exif.tobytes() if marked else b"")
    return buffer.getvalue()


def is_marked(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins or ends with the mark of :func:`encode`; False where it cannot be read."""
    try:
        if not os.path.isfile(path):  # a pipe may never end
            return False
        with open(path, "rb") as file:
            first = file.read(_NEAR_ENDS)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _NEAR_ENDS))
            return MARK.encode() in first or MARK.encode() in file.read(_NEAR_ENDS)
    except OSError:
        return False


def write_picture(path: str | os.PathLike[str], image: Image.Image) -> None:
    """Write a picture, whole or not at all, in the format that the suffix of ``path`` names.

    Raises:
        ImageError: as :func:`format_of` and :func:`encode`.
    """
    write_bytes(path, encode(image, format_of(path)))
