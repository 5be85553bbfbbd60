"""What compression took from a picture is known from the file's content."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, features

from hida.images.compression import lossy_compression

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
WAYS = [
    ("JPEG", {"quality": 100}, "JPEG"),
    ("WEBP", {"quality": 90}, "lossy WebP"),
    ("WEBP", {"quality": 90, "exif": b"Exif\0\0II*\0", "icc_profile": b"x" * 99}, "lossy WebP"),
    ("WEBP", {"quality": 90, "save_all": True, "append_images": [Image.new("RGB", (40, 40))]}, "lossy WebP"),
    ("WEBP", {"lossless": True}, None),
    ("WEBP", {"lossless": True, "exif": b"Exif\0\0II*\0"}, None),
    ("TIFF", {"compression": "jpeg"}, "JPEG"),
    ("TIFF", {"compression": "tiff_lzw"}, None),
    ("TIFF", {}, None),
    ("JPEG2000", {"irreversible": True, "quality_layers": [20]}, "lossy JPEG 2000"),
    ("JPEG2000", {"irreversible": False}, None),
    ("AVIF", {"quality": 90}, "AVIF"),
    ("PNG", {}, None),
    ("BMP", {}, None),
]


@pytest.mark.parametrize("suffix", ["", ".png", ".jpg"])
@pytest.mark.parametrize(("kind", "options", "expected"), WAYS)
def test_what_loses_pixels_is_named_whatever_the_suffix(tmp_path, kind, options, expected, suffix):
    needed = {"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind)
    if needed and not features.check(needed):
        pytest.skip(f"this Pillow writes no {kind}")
    path = tmp_path / f"picture{suffix}"
    NOISE.save(path, format=kind, **options)
    assert lossy_compression(path) == expected
    if expected is None:
        assert (np.asarray(Image.open(path).convert("RGB")) == np.asarray(NOISE)).all()


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"RIFF\0\0\0\0WEBPVP8X\xff\xff\xff\xff", b"II*\0\xff\xff\xff\xff", b"x"]
)
def test_what_is_no_picture_is_for_its_reader_to_say(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert lossy_compression(tmp_path / "x") is None
    assert lossy_compression(tmp_path / "gone") is None
