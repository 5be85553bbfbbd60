"""PNGs with long texts and JPEGs without their end are read, and none of which pixels are missing."""

from __future__ import annotations

import io
import time
import zlib

import numpy as np
import pytest
from picture_files import STRIPES, encoded, png, same
from PIL import Image

from hida.images.io import ImageError, read_image

LONG = b"k\0" + b"x" * 3_000_000
PACKED = b"k\0\0" + zlib.compress(b"x" * 3_000_000)


@pytest.mark.parametrize(
    "part",
    [
        (b"tEXt", LONG),
        (b"zTXt", PACKED),
        (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(9_000_000))),
        (b"iCCP", PACKED),
        (b"iCCP", b"k\0\5garbage"),
        (b"iCCP", b""),
        (b"tEXt", b"icc_profile\0x"),
        (b"tEXt", b"gamma\0x"),
        (b"tEXt", b"transparency\0x"),
    ],
)
@pytest.mark.filterwarnings("ignore:the colour profile")
def test_a_long_or_odd_text_or_profile_does_no_harm_to_a_png(part):
    for places in ({"before": [part] * 2}, {"before": [], "after": [part] * 2}):
        same(read_image(io.BytesIO(png(b"\1\2\3" * 5, 5, 4, **places))), np.full((4, 5, 3), (1, 2, 3)))


def test_many_texts_between_other_chunks_take_no_time():
    parts = [(b"tEXt", b"a\0b"), (b"abCd", b"1")] * 30_000
    data = png(bytes(range(12)), 4, 4, before=parts + [(b"tEXt", b"a\0b")] * 9)
    started = time.process_time()
    same(read_image(io.BytesIO(data)), np.tile(np.arange(12, dtype=np.uint8).reshape(1, 4, 3), (4, 1, 1)))
    assert time.process_time() - started < 3  # with room for a slow machine: 0.5 s; each read from the start took 41


def test_an_orientation_in_a_text_is_still_seen():
    packet = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    assert read_image(io.BytesIO(png(b"\1\2\3" * 5, 5, 4, before=[(b"iTXt", packet)]))).size == (4, 5)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "restart_marker_rows": 1}])
def test_a_jpeg_without_its_end_mark_is_read_unless_pixels_are_missing(mode, options):
    data = encoded(Image.fromarray(STRIPES).convert(mode), "JPEG", **options)
    wanted = read_image(io.BytesIO(data))
    for lost in (1, 2):
        same(read_image(io.BytesIO(data[:-lost])), wanted)
    for lost in (9, 100, len(data) // 2):
        with pytest.raises(ImageError, match="truncated"):
            read_image(io.BytesIO(data[:-lost]))


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    data = encoded(Image.fromarray(STRIPES), "JPEG", progressive=True)
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(starts) > 5
    for start in starts[1:]:
        tables = data.rfind(b"\xff\xc4", 0, start)
        with pytest.raises(ImageError, match="truncated"):
            read_image(io.BytesIO(data[:tables]))
