"""What the numbers of a file mean: as a photo they are levels, as a depth map shares, in a mask numbers."""

import struct

import numpy as np
import pytest
from PIL import Image

from hida.depth.maps import depth_from_file
from hida.drawing.styles import style_map_from_file
from hida.errors import HidaError
from hida.images.io import read_image


def tiff(pixels, width, bits, **tags):
    """Return a grey TIFF of one row and one strip; ``tags`` by t and their number."""
    values = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(pixels)}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    offset = 8 + len(pixels)
    return struct.pack("<2sHI", b"II", 42, offset) + pixels + struct.pack("<H", len(values)) + entries + bytes(4)


TWELVE = tiff(bytes([0x00, 0x07, 0xFF, 0xFF, 0xF0, 0x03]), 4, 12)  # 0, 2047, 4095, 3
WIDE = np.array([0, 1 << 31, (1 << 32) - 1, 3], "<u4").tobytes()


@pytest.mark.parametrize(
    ("data", "shares"),
    [
        (TWELVE, [0, 2047 / 4095, 1, 3 / 4095]),
        (tiff(WIDE, 4, 32), [0, 0.5, 1, 0]),
        (tiff(WIDE, 4, 32, t339=1), [0, 0.5, 1, 0]),
        (b"P5 4 1 3\n\0\1\3\2", [0, 1 / 3, 1, 2 / 3]),
        (b"P2 4 1 1000\n0 500 1000 3\n", [0, 0.5, 1, 0.003]),
        (b"P5 4 1 65535\n\0\0\x80\0\xff\xff\0\3", [0, 32768 / 65535, 1, 3 / 65535]),
    ],
)
def test_samples_are_shares_of_the_largest_that_the_file_allows(tmp_path, data, shares):
    (tmp_path / "a").write_bytes(data)
    np.testing.assert_allclose(depth_from_file(tmp_path / "a", (4, 1))[0], shares, rtol=0, atol=1e-6)
    with Image.open(tmp_path / "a") as image:
        np.testing.assert_allclose(depth_from_file(image, (4, 1))[0], shares, rtol=0, atol=1e-6)
    levels = np.asarray(read_image(tmp_path / "a"))[0, :, 0]
    np.testing.assert_allclose(levels, np.multiply(shares, 255), rtol=0, atol=0.51)


@pytest.mark.parametrize(
    "data",
    [
        tiff(bytes([0x00, 0x10, 0x02, 0x00, 0x30, 0x01]), 4, 12),
        tiff(np.array([1, 2, 3, 1], "<u4").tobytes(), 4, 32),
        b"P5 4 1 3\n\1\2\3\1",
        b"P2 4 1 7\n1 2 3 1\n",
        b"P2 4 1 1000\n1 2 3 1\n",
        b"P5 4 1 65534\n\0\1\0\2\0\3\0\1",
        b"P6 4 1 3\n\1\1\1\2\2\2\3\3\3\1\1\1",
    ],
)
def test_a_mask_holds_the_numbers_of_the_file(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    np.testing.assert_array_equal(style_map_from_file(tmp_path / "a", (4, 1), 3).argmax(2)[0] + 1, [1, 2, 3, 1])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (tiff(np.array([1, 2, 4294967295, 1], "<u4").tobytes(), 4, 32), "holds the value 4294967295"),
        (b"P5 4 1 9\n\1\2\x09\1", "holds the value 9"),
        (b"P6 4 1 1000\n" + 12 * b"\0\1", "PPM of more than 8 bits"),
    ],
)
def test_a_number_that_is_no_style_is_named_as_the_file_has_it(tmp_path, data, sentence):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(HidaError, match=sentence):
        style_map_from_file(tmp_path / "a", (4, 1), 3)
