"""What a picture may take of memory and time, in processes of their own where it is measured."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from picture_files import STRIPES, encoded, png, same
from PIL import Image

from hida.depth.maps import depth_from_file
from hida.images.io import ImageError, read_image
from hida.images.opening import _decoding

# Prints the sentence or the size, and by how much the process grew at most.
MEASURE = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np
from PIL import Image
from hida.images.io import ImageError, read_image
from hida.depth.maps import depth_from_file
def bytes_of(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
Image.init()
read_image(np.zeros((4, 4), np.float32))
source = sys.argv[1] if sys.argv[2] != "memory" else eval(sys.argv[1])
before = bytes_of("VmRSS")
try:
    found = depth_from_file(source, (64, 64)).shape if sys.argv[2] == "depth" else read_image(source).size
except ImageError as error:
    found = error
print(bytes_of("VmHWM") - before, found)
"""


def grown(path, kind="photo"):
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), kind], capture_output=True, encoding="utf-8", check=True
    )
    number, _, found = run.stdout.partition(" ")
    return int(number), found.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "colour", "size", "reads"),
    [(16, 0, 13377, True), (8, 2, 10392, True), (8, 6, 13377, False)],
)
def test_the_largest_pngs_take_less_than_a_gigabyte(tmp_path, bits, colour, size, reads):
    (tmp_path / "a.png").write_bytes(
        png(bytes(size * bits // 8 * {0: 1, 2: 3, 6: 4}[colour]), size, size, bits, colour)
    )
    number, found = grown(tmp_path / "a.png")
    assert number < 1e9
    assert (found == f"({size}, {size})") if reads else found.endswith("above the limit of 1 GB: scale it down first.")
    if bits == 16:
        number, found = grown(tmp_path / "a.png", "depth")
        assert number < 1e9
        assert "above the limit" in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode", "side", "options"),
    [
        ("TIFF", "F", 13377, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "RGB", 10392, {"compression": "tiff_lzw"}),
        ("WEBP", "RGBA", 7000, {"method": 0}),
        ("JPEG", "RGB", 9900, {"progressive": True, "subsampling": 0}),
        ("JPEG2000", "RGBA", 5000, {}),
        ("AVIF", "RGBA", 5000, {"speed": 10}),
    ],
)
def test_large_pictures_of_all_formats_take_less_than_a_gigabyte_and_speak_of_no_attack(
    tmp_path, monkeypatch, kind, mode, side, options
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new(mode, (side, side)).save(tmp_path / "a", kind, **options)
    number, found = grown(tmp_path / "a")
    assert number < 1e9
    assert found == f"({side}, {side})"


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_below_the_limit_nobody_speaks_of_an_attack(monkeypatch, kind, options):
    data = encoded(Image.new("RGB", (40, 40)), kind, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(io.BytesIO(data)).size == (40, 40)


def test_a_picture_above_the_limit_of_memory_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("hida.images.opening.MAX_BYTES", 10_000)
    for mode, side in (("RGB", 49), ("L", 43), ("RGBA", 34)):
        assert read_image(io.BytesIO(encoded(Image.new(mode, (side, side)), "PNG"))).size == (side, side)
        data = encoded(Image.new(mode, (side + 1, side + 1)), "PNG")
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it was decoded"))
        with pytest.raises(ImageError, match=r"the file given \(\d+×\d+, \w+\) would take 0.0 GB of memory"):
            read_image(io.BytesIO(data))
        monkeypatch.undo()
        monkeypatch.setattr("hida.images.opening.MAX_BYTES", 10_000)


ARRAYS = {"L": ((), np.uint8), "RGB": ((3,), np.float32), "RGBA": ((4,), np.uint16)}


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "F", "CMYK", "P"])
def test_what_is_in_memory_has_the_bound_and_the_sentence_of_a_file(monkeypatch, mode):
    kind = "TIFF" if mode in ("F", "CMYK") else "PNG"
    monkeypatch.setattr("hida.images.opening.MAX_BYTES", 10_000)

    def sentence(source):
        try:
            read_image(source)
        except ImageError as error:
            return re.sub("the (file given|image given|array)", "it", str(error))
        return ""

    said = {side: sentence(io.BytesIO(encoded(Image.new(mode, (side, side)), kind))) for side in range(25, 55)}
    assert said[25] == "" != said[54]
    for side in said:
        assert sentence(Image.new(mode, (side, side))) == said[side]
        if mode in ARRAYS:
            shape, dtype = ARRAYS[mode]
            assert sentence(np.zeros((side, side, *shape), dtype)) == said[side]


@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "TIFF"])
def test_a_pillow_image_that_is_not_decoded_yet_is_bounded_as_its_file(monkeypatch, kind):
    options = {"WEBP": {}, "JPEG": {"progressive": True, "subsampling": 0}, "TIFF": {"compression": "tiff_lzw"}}[kind]
    data = encoded(Image.fromarray(STRIPES), kind, **options)
    said = []
    for limit in range(4 * STRIPES[:, :, 0].size, 24 * STRIPES[:, :, 0].size, 97):
        monkeypatch.setattr("hida.images.opening.MAX_BYTES", limit)
        found = []
        for source in (io.BytesIO(data), Image.open(io.BytesIO(data))):
            try:
                found.append(read_image(source).tobytes())
            except ImageError as error:
                found.append(str(error).replace("file given", "image given"))
        assert found[0] == found[1]
        said.append(isinstance(found[0], str))
    assert said[0]
    assert not said[-1]


def test_maps_in_memory_are_bounded_too(monkeypatch):
    monkeypatch.setattr("hida.images.opening.MAX_BYTES", 10_000)
    for shape in ((27, 27), (1, 27, 27), (27, 27, 1)):
        assert depth_from_file(np.zeros(shape, np.float32), (27, 27)).shape == (27, 27)
        larger = np.zeros([28 if side > 1 else 1 for side in shape], np.float32)
        with pytest.raises(ImageError, match=r"the depth map \(28×28, F\) would take .* scale it down first"):
            depth_from_file(larger, (28, 28))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "reads"),
    [
        ("np.zeros((13377, 13377, 3), np.uint8)[::-1]", True),
        ("np.zeros((13377, 13377), np.float16)", True),
        ("np.zeros((11000, 11000, 4), np.uint8)", True),
        ("np.zeros((13377, 13377, 4), np.uint8)", False),
        ("Image.new('RGB', (13377, 13377))", True),
        ("Image.new('RGBA', (13377, 13377))", False),
    ],
)
def test_pictures_in_memory_take_less_than_a_gigabyte_more(make, reads):
    number, found = grown(make, "memory")
    assert number < 1e9
    assert found.startswith("(1") if reads else found.endswith("above the limit of 1 GB: scale it down first.")


def test_a_jpeg_of_endless_scans_is_refused():
    data = encoded(Image.fromarray(STRIPES), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xc4")
    with pytest.raises(ImageError, match=r"a JPEG of 6\d\d scans"):
        read_image(io.BytesIO(data[:-2] + data[last:-2] * 600 + data[-2:]))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_scans_of_a_large_jpeg_are_bounded_and_those_of_a_preview_not_counted():
    scan = b"\xff\xda\0\x02"
    data = encoded(Image.fromarray(STRIPES), "JPEG", progressive=True)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + 600 * len(scan)) + 600 * scan + data[2:] + 600 * scan
    same(read_image(io.BytesIO(data)), read_image(io.BytesIO(encoded(Image.fromarray(STRIPES), "JPEG"))))
    with pytest.raises(ImageError, match=r"a JPEG of 480 scans"):
        _decoding(*jpeg_of(480, 6000))
    _decoding(*jpeg_of(10, 10_400))


def jpeg_of(scans, side):
    """Return a progressive JPEG, opened, of empty scans."""
    data = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    frame, end = data.find(b"\xff\xc2"), data.find(b"\xff\xda")
    head = data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 : end]
    file = io.BytesIO(head + scans * (data[end : end + 10] + b"\0\xff\0") + b"\xff\xd9")
    return Image.open(file), file, "the file given"


def test_a_jpeg_whose_components_come_one_by_one_counts_as_progressive(monkeypatch):
    flat = Image.new("L", (64, 64), 77)
    grey = encoded(flat, "JPEG")
    begin = grey.find(b"\xff\xda")
    frame = grey.find(b"\xff\xc0")
    # Three components of the same data, a scan each.
    head = (
        grey[:frame]
        + b"\xff\xc0\0\x11"
        + grey[frame + 4 : frame + 9]
        + b"\3"
        + b"".join(bytes((k, 0x11, 0)) for k in (1, 2, 3))
    )
    scans = b"".join(b"\xff\xda\0\x08\1" + bytes((k, 0)) + grey[begin + 7 : -2] for k in (1, 2, 3))
    data = head + grey[frame + 13 : begin] + scans + b"\xff\xd9"
    assert read_image(io.BytesIO(data)).size == (64, 64)
    monkeypatch.setattr("hida.images.opening.MAX_BYTES", 30_000)  # 4 bytes for a pixel, and 6 for its coefficients
    assert read_image(io.BytesIO(encoded(flat.convert("RGB"), "JPEG"))).size == (64, 64)
    with pytest.raises(ImageError, match="would take"):
        read_image(io.BytesIO(data))
