"""Every format is the picture and nothing else, always the same bytes, whole or not there."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from picture_files import STRIPES, same
from PIL import Image

from hida.images.io import ImageError
from hida.images.writing import SUFFIXES, encode, format_of, is_marked, write_picture

GREY = Image.fromarray(STRIPES[:, :, 0])


def laden(image):
    """Return a copy of a picture with what others write into files."""
    laden = image.copy()
    exif = Image.Exif()
    exif[0x010F] = "private"
    laden.info = {"comment": b"private", "exif": exif.tobytes(), "xmp": b"private", "icc_profile": b"private"}
    laden.info |= {"dpi": (3, 3), "XML:com.adobe.xmp": "private", "parameters": "private"}
    return laden


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("image", [GREY, Image.fromarray(STRIPES)], ids=["L", "RGB"])
def test_the_pixels_return_and_nothing_else_is_in_the_file(kind, image):
    data = encode(laden(image), kind)
    assert data == encode(image, kind)
    assert b"private" not in data
    found = Image.open(io.BytesIO(data))
    assert found.format.lower() == kind
    assert not {"exif", "xmp", "icc_profile", "comment", "dpi"} & set(found.info)
    assert not found.getexif()
    error = np.abs(np.asarray(found.convert("RGB")).astype(int) - np.asarray(image.convert("RGB")))
    assert error.mean() <= (10 if kind == "jpeg" and image.mode == "RGB" else 1.5)
    assert kind == "jpeg" or error.max() == 0


def test_transparent_paper_is_kept_or_refused():
    image = GREY.copy()
    image.putalpha(Image.linear_gradient("L").resize(GREY.size))
    for kind in ("png", "webp"):
        same(Image.open(io.BytesIO(encode(image, kind))).convert("LA").getchannel("A"), image.getchannel("A"))
    with pytest.raises(ImageError, match="a JPEG has no transparent paper: write a PNG"):
        encode(image, "jpeg")


@pytest.mark.parametrize(("kind", "side"), [("jpeg", 65536), ("webp", 16384)])
def test_a_side_that_the_format_does_not_have_is_refused(kind, side):
    with pytest.raises(ImageError, match=f"1×{side} is too large for {kind.upper()}"):
        encode(Image.new("L", (1, side)), kind)


def test_the_suffix_names_the_format_and_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    assert {format_of(f"a{suffix.upper()}") for suffix in SUFFIXES} == {"png", "jpeg", "webp", "svg"}
    with pytest.raises(ImageError, match=r"'a\.bmp' has the suffix '\.bmp'"):
        format_of("a.bmp")
    for suffix in (".png", ".JPG", ".webp"):
        write_picture(tmp_path / f"a{suffix}", GREY)
        assert (tmp_path / f"a{suffix}").read_bytes() == encode(GREY, SUFFIXES[suffix.lower()])
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    for suffix in (".jpg", ".webp"):
        with pytest.raises(OSError, match="full"):
            write_picture(tmp_path / f"b{suffix}", GREY)
    assert sorted(os.listdir(tmp_path)) == ["a.JPG", "a.png", "a.webp"]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(k, m) for k in ("png", "jpeg", "webp") for m in ("L", "LA", "RGB", "RGBA") if k != "jpeg" or "A" not in m]
    + [("png", "I;16")],
)
def test_a_drawing_is_told_from_a_photo_by_its_mark(tmp_path, kind, mode):
    image = Image.fromarray(np.full((300, 400), 777, np.uint16)) if mode == "I;16" else GREY.convert(mode)
    plain, marked = encode(image, kind), encode(image, kind, marked=True)
    assert len(marked) - len(plain) < 100
    with Image.open(io.BytesIO(plain)) as one, Image.open(io.BytesIO(marked)) as two:
        assert (one.mode, one.tobytes()) == (two.mode, two.tobytes())
    for name, data, drawn in (("a", plain, False), ("b", marked, True)):
        (tmp_path / name).write_bytes(data)
        assert is_marked(tmp_path / name) == drawn
    assert not is_marked(tmp_path / "absent")
