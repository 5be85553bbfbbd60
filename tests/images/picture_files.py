"""Files of pictures made byte by byte, for several tests."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

STRIPES = np.kron(np.random.default_rng(1).integers(0, 256, (15, 20, 3), np.uint8), np.ones((8, 8, 1), np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(row, width, height, bits=8, colour=2, before=(), after=()):
    """Return a PNG of equal rows of bytes, with chunks before and after the pixels."""
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(b"\0" + row) for _ in range(height)) + packer.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), *before, (b"IDAT", pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, *after, (b"IEND", b"")))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(found, wanted):
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
