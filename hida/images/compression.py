"""Whether a picture's file lost something of its pixels: by its content, whatever its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from hida.images.opening import tiff_tag

_JPEG_2000 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_COMPRESSION = 259  # TIFF's tag, with the values that lose something
_IN_TIFF = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 34892: "JPEG", 50001: "WebP", 50002: "JPEG XL"}
_CHUNKS = 1_000  # of a WebP; frames of an animation are chunks too


def lossy_compression(path: str | os.PathLike[str]) -> str | None:
    """Return the name of the lossy compression of a file: "JPEG", "lossy WebP", …; None if it keeps every pixel.

    WebP and JPEG 2000 can do either, and are looked into. AVIF and HEIF can too, but hardly ever do: they count as
    lossy. None also for what cannot be read, which is for the reader of the picture to say.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
            if head.startswith(b"\xff\xd8\xff"):
                return "JPEG"
            if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
                file.seek(12)
                return "lossy WebP" if _is_lossy_webp(file) else None
            if head[4:8] == b"ftyp":
                return "AVIF" if b"avi" in head[8:] else "HEIF"
            if head.startswith(_JPEG_2000):
                return "lossy JPEG 2000" if _is_lossy_jpeg_2000(head + file.read(1 << 16)) else None
        if head.startswith(_TIFF):
            return _IN_TIFF.get(tiff_tag(path, _COMPRESSION))
    except Exception:  # damaged headers make their readers raise what they like
        return None
    return None


def _is_lossy_webp(file: BinaryIO) -> bool:
    """Return whether the first picture of the chunks from here on is VP8; VP8L keeps every pixel."""
    for _ in range(_CHUNKS):
        header = file.read(8)
        if len(header) < 8 or header[:4] == b"VP8L":
            return False
        if header[:4] == b"VP8 ":
            return True
        if header[:4] == b"ANMF":
            file.seek(16, os.SEEK_CUR)  # the frame's place; its own chunks follow
        else:
            length = int.from_bytes(header[4:], "little")
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def _is_lossy_jpeg_2000(data: bytes) -> bool:
    """Return whether the wavelets are those of the irreversible transform (the last byte of the marker COD is 0)."""
    place = data.find(b"\xff\x52\x00")
    return place >= 0 and data[place + 13 : place + 14] == b"\x00"
