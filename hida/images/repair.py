"""What stands in Pillow's way in files that are sound: a PNG's long texts and profiles, a JPEG without its end mark."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# The texts that may say how a picture is turned.
_KEPT_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_LONGEST_TEXT = 1 << 16
_LONGEST_JPEG = 1 << 26

_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # none of those within a scan
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))


_BEGINNINGS = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF....WEBP)|(?P<TIFF>II\*\0|MM\0\*)|(?P<GIF>GIF8)"
    rb"|(?P<BMP>BM.{4}\0{4})|(?P<AVIF>....ftypavi)|(?P<JPEG2000>\0\0\0\x0cjP  )",
    re.DOTALL,
)


def kind_of_beginning(file: BinaryIO) -> str | None:
    """Return the format, by Pillow's name, that a file begins like, whatever follows; None if it begins like none."""
    file.seek(0)
    found = _BEGINNINGS.match(file.read(16))
    return None if found is None else found.lastgroup


class _Pieces(io.RawIOBase):
    """A file that consists of pieces (first byte, length) of another."""

    def __init__(self, file: BinaryIO, pieces: list[tuple[int, int]]) -> None:
        self._file, self._pieces = file, pieces
        self._position = 0
        *self._starts, self._length = itertools.accumulate((length for _, length in pieces), initial=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self._length:
            return 0
        # Of pieces without a byte, which begin where the next one does, the last is found, and that has bytes.
        index = bisect.bisect_right(self._starts, self._position) - 1
        first, length = self._pieces[index]
        inside = self._position - self._starts[index]
        self._file.seek(first + inside)
        data = self._file.read(min(len(buffer), length - inside))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def png_without_texts(file: BinaryIO, longest_profile: int) -> tuple[BinaryIO, bytes | None]:
    """Return a PNG without its texts, whose length Pillow limits, and without its colour profile; and that profile.

    A profile that cannot be unpacked, or above ``longest_profile`` bytes, is returned as it is stored, which is no
    profile.
    """
    profile: bytes | None = None
    pieces: list[tuple[int, int]] = []
    begin = len(PNG)  # of the piece at work
    start = 0
    file.seek(begin)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        after = begin + 12 + length
        if kind == b"iCCP" and profile is None:
            profile = _unpacked(file.read(min(length, longest_profile)), longest_profile)
        if kind == b"iCCP" or (kind in _TEXTS and not _is_kept(file, kind, length)):
            if begin > start:
                pieces.append((start, begin - start))
            start = after
        begin = after
        if kind == b"IEND":
            break
        file.seek(begin)
    if not pieces:
        return file, None
    size = file.seek(0, io.SEEK_END)
    pieces.append((start, max(0, size - start)))
    return io.BufferedReader(_Pieces(file, pieces)), profile


def jpeg2000_has_profile(file: BinaryIO) -> bool:
    """Tell whether a JPEG 2000 has a box "colr" of method 2 or 3, which is an ICC profile, before its pixels."""
    file.seek(0)
    head = file.read(1 << 16).partition(b"jp2c")[0]
    return b"colr\2" in head or b"colr\3" in head


def _unpacked(data: bytes, longest: int) -> bytes:
    _, _, packed = data.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], longest)
    except zlib.error:
        return data or b"\0"
    return profile if unpacker.eof and profile else data or b"\0"


def _is_kept(file: BinaryIO, kind: bytes, length: int) -> bool:
    if length > _LONGEST_TEXT:
        return False
    keyword, _, rest = file.read(length).partition(b"\0")
    # What is compressed may be of any length.
    return keyword in _KEPT_TEXTS and kind != b"zTXt" and not (kind == b"iTXt" and rest[:1] != b"\0")


def jpeg_with_end(file: BinaryIO, load: Callable[[BinaryIO], Image.Image]) -> Image.Image | None:
    """Decode a JPEG that lacks its end mark; None unless all of its pixels are in the file.

    What follows the last pixel is without effect. So a file is complete if its picture does not depend on what is
    appended to it; where pixels are missing, they are made of that.

    Args:
        load: opens and decodes a stream.
    """
    file.seek(0)
    data = file.read(_LONGEST_JPEG + 1)
    if len(data) > _LONGEST_JPEG or not _last_scan_is_exact(data):
        return None
    data = data.removesuffix(b"\xff")
    wanted = _fingerprint(load(io.BytesIO(data + _END)))
    for seed in range(2):
        filling = hashlib.shake_256(bytes([seed])).digest(1 << 12).replace(b"\xff", b"\x5a")
        if _fingerprint(load(io.BytesIO(data + filling + _END))) != wanted:
            return None
    return load(io.BytesIO(data + _END))  # decoded again, so that there is one picture at a time


def jpeg_scans(file: BinaryIO) -> tuple[int, int]:
    """Return how many components the first scan of a JPEG has, and how many scans it has to its end mark.

    What a segment holds (a preview) and what follows (a film) is not counted.
    """
    first = count = 0
    place, step = 2, 64
    while True:
        file.seek(place)
        data = file.read(step)
        found = _MARKER.search(data)
        if found is None:
            if len(data) < step:
                return first, count
            place, step = place + step - 1, min(4 * step, 1 << 20)
            continue
        place, step = place + found.end(), 64
        marker = data[found.end() - 1]
        if marker == 0xD9:
            return first, count
        if marker in (0x01, 0xD8):
            continue
        file.seek(place)
        head = file.read(3)
        if marker == 0xDA:
            count += 1
            first = first or int.from_bytes(head[2:], "big")
        place += max(2, int.from_bytes(head[:2], "big"))


def _fingerprint(image: Image.Image) -> bytes:
    digest = hashlib.sha256()
    rows = max(1, (1 << 22) // image.width)
    for top in range(0, image.height, rows):
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.digest()


def _last_scan_is_exact(data: bytes) -> bool:
    """Tell whether the scans that a JPEG has give every coefficient its last bit: a progressive one may lack scans."""
    missing: dict[int, set[int]] = {}
    for marker, body in _segments(data):
        if marker in _FRAMES and len(body) > 5:
            missing = {component: set(range(64)) for component in body[6::3][: body[5]]}
            if marker not in (0xC2, 0xC6, 0xCA, 0xCE):  # only these are progressive
                return True
        elif marker == 0xDA and len(body) > 3:
            count = body[0]
            first, last, bits = body[1 + 2 * count :][:3].ljust(3, b"\xff")
            for component in body[1 : 1 + 2 * count : 2]:
                if not bits & 15:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of every segment of a JPEG that has content."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in (0, 1, 0xFF) or 0xD0 <= marker <= 0xD9:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + max(2, length)
