"""HEIF: known by its content, decoded by an optional package, upright once, within the limits of other formats."""

from __future__ import annotations

import io
import sys
import warnings

import numpy as np
import pytest
from picture_files import STRIPES, encoded, same
from PIL import Image

from hida.images.heif import is_heif
from hida.images.io import ImageError, read_image

HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def heif():
    return pytest.importorskip("pillow_heif")


def heic(heif, image, **options):
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("major", "others", "wanted"),
    [
        (b"heic", (b"mif1", b"heic"), True),
        (b"heix", (), True),
        (b"mif1", (b"heic",), True),
        (b"mif1", (b"avif",), False),
        (b"avif", (b"mif1",), False),
        (b"avis", (b"hevc",), False),
        (b"msf1", (b"hevc",), True),
        (b"isom", (b"mp41",), False),
    ],
)
def test_the_brands_of_the_container_tell(major, others, wanted):
    box = b"ftyp" + major + bytes(4) + b"".join(others)
    assert is_heif((4 + len(box)).to_bytes(4, "big") + box + b"heicheic") == wanted


@pytest.mark.parametrize("source", [HEAD, bytes(4) + HEAD[4:] + bytes(99)])
def test_without_the_package_the_sentence_says_what_to_install(monkeypatch, tmp_path, source):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.jpg").write_bytes(source)
    with pytest.raises(ImageError, match=r"a\.jpg' is a HEIF .* pip install pillow-heif"):
        read_image(tmp_path / "a.jpg")


def test_pixels_are_those_that_were_saved_and_pillow_is_left_alone(heif):
    before = dict(Image.OPEN), dict(Image.EXTENSION)
    grey = Image.fromarray(STRIPES[:, :, 0])
    assert np.abs(np.asarray(read_image(heic(heif, grey))).astype(int) - STRIPES[:, :, :1]).max() <= 1
    found = np.asarray(read_image(io.BytesIO(heic(heif, Image.fromarray(STRIPES)))))
    assert np.abs(found.astype(int) - STRIPES).max() <= 2
    assert before == (Image.OPEN, Image.EXTENSION)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(heif, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(STRIPES)
    wanted = np.asarray(read_image(encoded(image, "PNG", exif=exif)))
    found = np.asarray(read_image(heic(heif, image, exif=exif.tobytes())))
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 2
    # A Pillow image that the user's own plugin has opened.
    given = heif.HeifImageFile(io.BytesIO(heic(heif, image, exif=exif.tobytes())))
    same(read_image(given), found)


def test_of_several_pictures_the_main_one_is_used_with_a_warning(heif):
    file = heif.HeifFile()
    for colour in ("red", "blue", "lime"):
        file.add_from_pillow(Image.new("RGB", (64, 64), colour))
    buffer = io.BytesIO()
    file.save(buffer, primary_index=1, quality=95)
    with pytest.warns(UserWarning, match="holds 3 pictures: the main one is used"):
        found = read_image(buffer)
    assert np.asarray(found)[32, 32].argmax() == 2


def test_damaged_ones_are_one_sentence(heif):
    data = heic(heif, Image.fromarray(STRIPES))
    for count in (12, 40, 300, len(data) // 2, len(data) - 1):
        with pytest.raises(ImageError, match="the bytes hold is truncated or damaged"):
            read_image(data[:count])


def test_what_is_too_large_is_refused_before_it_is_decoded(heif, monkeypatch):
    data = heic(heif, Image.fromarray(STRIPES))
    monkeypatch.setattr(heif.HeifImageFile, "load", lambda self: pytest.fail("it was decoded"))
    monkeypatch.setattr("hida.images.opening.MAX_BYTES", STRIPES[:, :, 0].size * 11)
    with pytest.raises(ImageError, match=r"what the bytes hold \(160×120, RGB\) would take .* scale it down"):
        read_image(data)
    monkeypatch.setattr("hida.images.opening.MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="above the limit of 100"):
        read_image(data)


@pytest.mark.slow
def test_mutated_ones_give_a_picture_or_a_sentence(heif):
    from tests.fuzzing import mutations, withstand

    def read(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_image(data)

    small = Image.fromarray(STRIPES).resize((32, 24))
    good = [heic(heif, small), heic(heif, small.convert("L")), heic(heif, small.convert("RGBA"))]
    assert 20 < withstand(read, mutations(good, 600, 5)) < 590
