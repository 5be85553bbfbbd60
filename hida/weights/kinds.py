"""What a file is that was given for weights and is none: told by its first bytes, for messages."""

from __future__ import annotations

import os
from pathlib import Path

SAFETENSORS = "a safetensors file"
_SIGNATURES = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself, which git lfs pull fetches"),
)


def kind_of(path: Path) -> str | None:
    """Return what a file is, in words such as "a JPEG picture"; None where that is not known, or it is empty."""
    try:
        with path.open("rb") as file:
            head, size = file.read(512), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture"
    if head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        return "an AVIF or HEIC picture"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, as a download that failed leaves it"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return SAFETENSORS
    return next((kind for beginning, kind in _SIGNATURES if head.startswith(beginning)), None)


def irregular(path: Path) -> str | None:
    """Return why what is at a path is no file to read weights from: a folder, a pipe; None if it is one, or absent."""
    if path.is_dir():
        return "is a folder"
    if path.exists() and not path.is_file():
        # Weights are mapped, and read in any order.
        return "is a pipe or a device, from which weights are not read: save them to a file"
    return None
