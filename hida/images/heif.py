"""HEIF (HEIC), the pictures of phones: recognised by their first bytes, decoded by pillow-heif where it is installed.

Nothing is registered with Pillow: whether other code of the process opens such files is its own choice.
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO

from PIL import Image

from hida.images.sources import ImageError

FORMAT = "HEIF"  # as pillow-heif names it, whatever compresses the picture

# Brands of the container's first box ("ftyp"): those of HEVC and other codecs in HEIF, and of HEIF itself.
_BRANDS = re.compile(rb"hei[cxms]|hev[cxms]|mif[12]|msf1|j2ki|jpeg|avci|evbi|miaf")
_LONGEST = 256  # bytes of that box
# Bytes per pixel while decoding (planes, interleaved colours, Pillow's own): measured 2.7 to 10.5 with 8 bits, 14 with
# more, at 1.4 to 12 megapixels.
_DECODING, _DECODING_DEEP = 11, 16


def is_heif(head: bytes) -> bool:
    """Tell by a file's first bytes whether it is HEIF; AVIF, which has the same container, is not."""
    if head[4:8] != b"ftyp":
        return False
    length = min(max(16, int.from_bytes(head[:4], "big")), _LONGEST)
    brands = [head[8:12], *(head[k : k + 4] for k in range(16, min(length, len(head)) - 3, 4))]
    if brands[0][:3] == b"avi" or (b"avif" in brands and not any(b[:3] in (b"hei", b"hev") for b in brands)):
        return False
    return _BRANDS.fullmatch(brands[0]) is not None or any(brand[:3] in (b"hei", b"hev") for brand in brands)


def file_is_heif(file: BinaryIO) -> bool:
    """Tell whether a file is HEIF; the file is left at its first byte."""
    file.seek(0)
    head = file.read(_LONGEST)
    file.seek(0)
    return is_heif(head)


def open_heif(file: BinaryIO, name: str) -> Image.Image:
    """Open a HEIF file: its main picture, upright as the container says, is decoded when it is loaded.

    Raises:
        ImageError: pillow-heif is not installed.
        Exception: whatever it raises on damaged data.
    """
    try:
        from pillow_heif import HeifImageFile

        return HeifImageFile(file)
    except ImportError:
        raise ImageError(
            f"{name} is a HEIF (HEIC) picture, which takes another package to read: pip install pillow-heif "
            "(or save the picture as a JPEG)."
        ) from None


def decoding_bytes(image: Image.Image, file: BinaryIO) -> float:
    """Return the bytes that decoding takes at most, the decoded picture and the file's bytes included."""
    deep = (image.info.get("bit_depth") or 8) > 8
    return image.width * image.height * (_DECODING_DEEP if deep else _DECODING) + file.seek(0, os.SEEK_END)
