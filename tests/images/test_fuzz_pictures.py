"""Damaged and hostile pictures of all formats: a picture or one sentence, in bounded time and memory."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from hida.depth.maps import depth_from_file
from hida.drawing.styles import style_map_from_file
from hida.images.colour import matrix_profile
from hida.images.io import read_image
from tests.fuzzing import mutations, withstand

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

COLOUR = Image.fromarray(
    np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
)
ADOBE = matrix_profile(2.2, (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06))
GREY = matrix_profile(1.0, None)


def exif():
    made = Image.Exif()
    made[0x0112] = 6
    made.get_ifd(0x8769)[0xA005] = {1: "R03\0"}
    return made.tobytes()


def samples():
    """Return small files of every format and kind."""

    def frames():  # made anew each time: an encoder leaves its settings in an image
        return {"save_all": True, "append_images": [COLOUR.rotate(90), COLOUR.rotate(180)]}

    kinds = [
        ("JPEG", "RGB", {"icc_profile": ADOBE, "exif": exif()}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {"icc_profile": GREY}),
        ("JPEG", "CMYK", {}),
        ("MPO", "RGB", frames()),
        ("PNG", "RGB", {"icc_profile": ADOBE, "exif": exif()}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "I;16", {"icc_profile": GREY}),
        ("PNG", "1", {}),
        ("PNG", "RGB", frames()),
        ("WEBP", "RGB", {"icc_profile": ADOBE, "exif": exif()}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", frames()),
        ("TIFF", "RGB", {"icc_profile": ADOBE, "tiffinfo": {274: 6}}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "RGB", {"compression": "jpeg"}),
        ("TIFF", "CMYK", {"compression": "packbits"}),
        ("TIFF", "LAB", {}),
        ("TIFF", "I;16", {"tiffinfo": {262: 0}}),
        ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "RGB", frames()),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("GIF", "P", {}),
        ("GIF", "P", {**frames(), "transparency": 1}),
        ("PPM", "RGB", {}),
        ("PPM", "I", {}),
        ("AVIF", "RGB", {"icc_profile": ADOBE}),
        ("AVIF", "RGBA", {}),
        ("JPEG2000", "RGB", {}),
        ("JPEG2000", "LA", {"no_jp2": True}),
    ]
    made = [
        b"P3 2 2 9\n1 2 3 4 5 6 7 8 9 1 2 3\n",
        b"P1\n3 2\n1 0 1 0 1 0\n",
        b"P2\n2 1 65535\n1 65535\n",
        rle(8, 6),
    ]
    for kind, mode, options in kinds:
        if kind in Image.SAVE:
            image = (
                Image.new("LAB", (32, 24), (100, 120, 140)) if mode == "LAB" else COLOUR.convert(mode.partition(";")[0])
            )
            image = Image.fromarray(np.asarray(image).astype(np.uint16)) if mode == "I;16" else image
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            made.append(buffer.getvalue())
    return made


def style_maps():
    """Files of labels from 1 to 3, in grey and in red, green and blue: a style map is no photo."""
    labels = np.random.default_rng(0).integers(1, 4, COLOUR.size[::-1], np.uint8)
    made = []
    for image in (Image.fromarray(labels), Image.fromarray(np.eye(4, dtype=np.uint8)[labels][:, :, 1:] * 255)):
        for kind in ("PNG", "TIFF", "BMP", "PPM"):
            buffer = io.BytesIO()
            image.save(buffer, kind)
            made.append(buffer.getvalue())
    return made


def rle(width, height, rows=b"\x08\x01\x00\x00" * 5 + b"\x00\x04\x01\x02\x03\x04\x00\x02\x04\x00\x00\x01"):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 4, 0)
    return b"BM" + struct.pack("<IHHI", 70 + len(rows), 0, 0, 70) + head + bytes(range(16)) + rows


def tiff(tags):
    entries = sorted({258: 8, 262: 1, 277: 1, **tags}.items())
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(100)


def with_right_sums(data):
    """Return a PNG with the checksums of what it now contains, so that its content is read at all."""
    made, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        made += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(made)


def read(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_image(io.BytesIO(data))


def test_mutated_pictures_give_a_picture_or_a_sentence():
    Image.init()
    good = samples()
    for data in good:
        assert min(read(data).size) > 0
    cases = (
        with_right_sums(data) if data[:4] == b"\x89PNG" and k % 3 else data
        for k, data in enumerate(mutations(good, 3000, 1))
    )
    assert 300 < withstand(read, cases) < 2900


@pytest.mark.parametrize("use", ["depth", "style", "given"])
def test_other_readers_withstand_them_too(tmp_path, use):
    def reader(data):
        (tmp_path / "a").write_bytes(data)
        if use == "depth":
            return depth_from_file(tmp_path / "a", COLOUR.size)  # maps of another shape are refused
        if use == "style":
            return style_map_from_file(tmp_path / "a", COLOUR.size, 3)
        try:
            image = Image.open(tmp_path / "a")
        except Exception:
            return None
        with image:
            return read_image(image)

    good = style_maps() if use == "style" else [data for data in samples() if data[:2] != b"P3"]
    # Some are read, and most are refused.
    assert 20 < withstand(reader, mutations(good, 600, 2)) < 590


def test_mutated_profiles_give_the_picture():
    image = COLOUR.copy()

    def follow(profile):
        image.info["icc_profile"] = profile
        return read_image(image)

    good = [ADOBE, GREY, matrix_profile(None, (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06))]
    assert withstand(follow, mutations(good, 1500, 3), allowed=()) == 1500


def giants():
    """Yield headers of pictures that are, or say they are, immense."""
    sizes = (
        (13377, 13377),
        (178_956_970, 1),
        (1, 178_956_970),
        (60_000, 60_000),
        (2**32 - 1, 1),
    )
    for width, height in sizes:
        for bits, colour in ((8, 2), (16, 6), (16, 0), (1, 0), (8, 3)):
            header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 1)
            parts = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
            yield b"\x89PNG\r\n\x1a\n" + b"".join(
                struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts
            )
        for kind in (b"P6", b"P5", b"P3", b"P1", b"Pf"):
            yield b"%s %d %d 255\n" % (kind, width, height) + bytes(100)
        if max(width, height) < 2**31:
            yield rle(width, height, b"\x01\x01\x00\x00" * 9)
            yield rle(width, height, b"\x00\x02\xff\xff" * 99)
        small = min(width, 65535), min(height, 65535)
        part = struct.pack("<4H", 0, 0, *small)
        yield b"GIF89a" + part[4:] + b"\x80\0\0" + bytes(6) + b"," + part + b"\0\2\2\4\1\0;"
        for side in (16_384, 30_000, 60_000):
            yield tiff({256: 99, 257: 99, 259: 8, 322: side, 323: side, 324: 8, 325: 99})
        for compression in (1, 5, 7, 8):
            yield tiff({256: width, 257: height, 259: compression, 273: 8, 278: height, 279: 99})
        for data in samples():
            if data[:2] == b"\xff\xd8":
                place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
                yield data[: place + 5] + struct.pack(">HH", *small) + data[place + 9 :]


def test_immense_pictures_take_little():
    cases = list(giants())
    assert len(cases) > 100
    random.Random(4).shuffle(cases)
    withstand(read, cases, seconds=30)
