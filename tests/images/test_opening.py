"""One way in: which files are opened, in which memory, and that nothing that decoders do gets out."""

from __future__ import annotations

import ast
import io
import os
import struct
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from picture_files import STRIPES, encoded, png, same
from PIL import Image

import hida
from hida.depth.maps import depth_from_file
from hida.drawing.sketcher import Sketcher
from hida.drawing.styles import style_map_from_file
from hida.errors import HidaError
from hida.images.io import ImageError, read_image
from hida.images.opening import _formats
from hida.metrics.inputs import as_batch

READERS = [read_image, lambda path: depth_from_file(path, (4, 4)), lambda path: style_map_from_file(path, (4, 4), 3)]
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"
DOS = struct.pack("<4s6I2x", b"\xc5\xd0\xd3\xc6", 32, len(POSTSCRIPT), 0, 0, 0, 0) + b"\0\0" + POSTSCRIPT


def test_only_one_module_opens_pictures():
    calls = set()
    for path in Path(hida.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            owner = getattr(node.value, "id", "") if isinstance(node, ast.Attribute) else ""
            taken = isinstance(node, ast.ImportFrom) and node.module == "PIL.Image"
            if taken or (owner in ("Image", "PIL", "ImageFile") and name in ("open", "Parser")):
                calls.add(path.relative_to(Path(hida.__file__).parent).as_posix())
    assert calls == {"images/opening.py"}


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "tif", "gif", "webp", "mpo", "jp2", "avif", "ppm", "eps", "ps", "wmf"]
)
@pytest.mark.parametrize("content", [POSTSCRIPT, DOS])
@pytest.mark.parametrize("read", READERS)
def test_postscript_is_run_under_no_name(tmp_path, monkeypatch, suffix, content, read):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or pytest.fail("a program was started"))
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.{suffix}' is not a picture in a known format: give a JPEG"):
        read(tmp_path / f"a.{suffix}")
    assert not started


@pytest.mark.parametrize("kind", ["EPS", "ICNS", "TGA", "PCX"])
@pytest.mark.parametrize(
    "read",
    [
        read_image,
        lambda image: depth_from_file(image, (4, 4)),
        as_batch,
        lambda image: as_batch([image]),
        lambda image: Sketcher.draw(None, image, [1]),
    ],
)
def test_a_pillow_image_of_another_format_is_not_decoded(tmp_path, monkeypatch, kind, read):
    made = Image.new("RGB", (16, 16), 7)
    made.save(tmp_path / "a", kind)
    with Image.open(tmp_path / "a") as image:
        monkeypatch.setattr(type(image), "load", lambda self, *a, **k: pytest.fail("it was decoded"))
        with pytest.raises(HidaError, match=r"is not a picture in a known format|is a list of Pillow images"):
            read(image)
    monkeypatch.undo()
    same(read_image(made), made)
    if kind != "EPS":  # what the caller has decoded is pixels
        with Image.open(tmp_path / "a") as image:
            image.load()
            same(read_image(image), image.convert("RGB"))


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "PDF", "SPIDER", "IM", "MSP", "XBM"])
def test_other_formats_are_refused(tmp_path, kind):
    mode = {"SPIDER": "F", "MSP": "1", "XBM": "1"}.get(kind, "RGB")
    (tmp_path / "a.png").write_bytes(encoded(Image.new(mode, (32, 32)), kind))
    with pytest.raises(ImageError, match="known format"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "MPO"])
def test_named_formats_are_read_from_paths_and_files(tmp_path, kind):
    if kind in ("AVIF", "JPEG2000") and kind not in Image.SAVE:
        pytest.skip("Pillow was built without it")
    data = encoded(Image.new("RGB", (8, 6), (250, 250, 250)), kind)
    (tmp_path / "a.unknown").write_bytes(data)
    for source in (tmp_path / "a.unknown", io.BytesIO(data)):
        found = read_image(source)
        assert (found.mode, found.size) == ("RGB", (8, 6))
        assert np.abs(np.asarray(found).astype(int) - 250).max() <= 2


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_a_format_that_pillow_was_built_without_is_named(monkeypatch, kind):
    if kind not in Image.SAVE:
        pytest.skip("it was built without")
    data = encoded(Image.new("RGB", (8, 6)), kind)
    lacking = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != lacking)
    _formats.cache_clear()
    try:
        with pytest.raises(ImageError, match=f"in the format {kind}, which this Pillow was built without"):
            read_image(data)
    finally:
        _formats.cache_clear()


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_refused_without_waiting(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    for path, sentence in (
        (tmp_path / "pipe.png", "pipe or a device"),
        ("/dev/zero", "pipe or a device"),
        ("/proc/self/status", "empty"),
        (tmp_path, "folder"),
        ("", "^'' is no path"),
        ("https://example.org/a.png", "'https://example.org/a.png' is a web address"),
        ("a\0b", "no path"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ):
        with pytest.raises(ImageError, match=sentence):
            read(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000"])
def test_the_beginning_of_a_picture_is_a_truncated_one_not_an_unknown_format(kind):
    data = encoded(Image.fromarray(STRIPES), kind)
    for count in (16, 40, len(data) // 3, len(data) * 2 // 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ImageError, match=r"truncated or damaged") as caught:
                read_image(io.BytesIO(data[:count]))
        assert "known format" not in str(caught.value)


def test_a_stream_is_read_to_its_end_and_a_file_opened_as_text_is_refused(tmp_path, monkeypatch):
    def stream():
        reader, writer = os.pipe()
        os.write(writer, encoded(Image.new("RGB", (8, 6), "red"), "PNG"))
        os.close(writer)
        return open(reader, "rb")

    with stream() as whole:
        same(read_image(whole), Image.new("RGB", (8, 6), "red"))
        with pytest.raises(ImageError, match=r"the file given is empty \(0 bytes\)"):
            read_image(whole)
    monkeypatch.setattr("hida.images.sources.MAX_STREAM", 50)
    with stream() as long, pytest.raises(ImageError, match="more than 50 bytes: save it to a file"):
        read_image(long)
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (8, 6)), "PNG"))
    with (tmp_path / "a.png").open(encoding="utf-8") as text, pytest.raises(ImageError, match='open it with mode "rb"'):
        read_image(text)


def test_a_decoder_may_raise_anything(monkeypatch):
    data = encoded(Image.new("RGB", (8, 6)), "PNG")
    for error in (
        IndexError("a\nb"),
        TypeError(),
        RuntimeError("x"),
        NotImplementedError(),
        RecursionError(),
        KeyError(1),
    ):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        for source in (io.BytesIO(data), Image.open(io.BytesIO(data))):
            with pytest.raises(ImageError, match=r"^the (file|image) given is truncated or damaged \([^\n]*$"):
                read_image(source)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(ImageError, match="does not fit in memory"):
        read_image(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_a_pillow_image_is_read_where_it_stands_and_left_there(kind):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    with Image.open(io.BytesIO(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))) as image:
        for number, colour in ((2, (0, 0, 255)), (1, (0, 255, 0))):
            image.seek(number)
            before = image.copy()
            assert read_image(image).getpixel((4, 4)) == colour
            assert image.tell() == number
            assert (image.mode, image.info) == (before.mode, before.info)
            same(image, before)
        image.seek(1)  # and can still be read
        assert read_image(image).getpixel((4, 4)) == (0, 255, 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_what_is_done_to_the_result_does_not_reach_the_image_given(mode):
    image = Image.fromarray(STRIPES).convert(mode)
    image.info["icc_profile"] = b"x"
    before = image.tobytes()
    with pytest.warns(UserWarning, match="colour profile of the image given is not used"):
        read_image(image).paste("red", (0, 0, 50, 50))
    assert image.tobytes() == before
    assert image.info["icc_profile"] == b"x"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_is_turned_once(tmp_path, orientation, dtype):
    upright = np.arange(35, dtype=dtype).reshape(5, 7) * (257 if dtype == np.uint16 else 1)
    swapped = upright.T if orientation in (5, 6, 7, 8) else upright
    stored = {2: swapped[:, ::-1], 3: swapped[::-1, ::-1], 4: swapped[::-1], 6: swapped[::-1], 8: swapped[:, ::-1]}
    stored[7] = swapped[::-1, ::-1]
    image = Image.fromarray(np.ascontiguousarray(stored.get(orientation, swapped)))
    for options in ({}, {"compression": "tiff_lzw"}):
        image.save(tmp_path / "a.tif", tiffinfo={274: orientation}, **options)
        # Of a path Pillow maps the file into memory, and mixes up width and height: not so of a stream.
        for source in (tmp_path / "a.tif", Image.open(io.BytesIO((tmp_path / "a.tif").read_bytes()))):
            found = np.asarray(read_image(source))[:, :, 0]
            same(found, np.arange(35).reshape(5, 7))
        same(depth_from_file(tmp_path / "a.tif", (7, 5)), np.float32(upright / np.iinfo(dtype).max))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
@pytest.mark.parametrize("values", [np.array([[0, 25700, 65535]], np.uint16), np.array([[0, 0.4, 1]], np.float32)])
def test_where_zero_is_white_it_is_read_as_white(tmp_path, values, options):
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0}, **options)
    for source in (tmp_path / "a.tif", Image.open(tmp_path / "a.tif")):
        same(np.asarray(read_image(source))[0, :, 0], [255, 153 if values.dtype == np.float32 else 155, 0])
    depth = depth_from_file(tmp_path / "a.tif", (3, 1))
    np.testing.assert_allclose(depth, 1 - values / (1 if values.dtype == np.float32 else 65535), atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "colour", "row", "clear", "wanted"),
    [
        (1, 0, b"\xa0", b"\0\1", [255, 0, 255, 0]),
        (2, 0, b"\x6c", b"\0\1", [255, 170, 255, 0]),
        (4, 0, b"\x12\x34", b"\0\2", [17, 255, 51, 68]),
        (8, 0, b"\1\2\3\4", b"\0\2", [1, 255, 3, 4]),
        (16, 0, struct.pack(">4H", 257, 600, 601, 65535), struct.pack(">H", 600), [1, 255, 2, 255]),
        (
            16,
            2,
            struct.pack(">12H", *[0x102] * 3, *[0x203] * 6, *[0x405] * 3),
            struct.pack(">3H", *[0x203] * 3),
            [1, 255, 255, 4],
        ),
    ],
)
def test_the_transparent_colour_of_a_png_of_any_depth_is_white(bits, colour, row, clear, wanted):
    data = png(row, 4, 2, bits, colour, [(b"tRNS", clear)])
    same(np.asarray(read_image(io.BytesIO(data)))[1, :, 0], wanted)


def test_a_profile_of_a_jpeg_2000_is_said_to_be_unused(tmp_path):
    data = encoded(Image.fromarray(STRIPES[:, :, 0]), "JPEG2000")
    place = data.find(b"colr")
    (tmp_path / "plain.jp2").write_bytes(data)
    (tmp_path / "a.jp2").write_bytes(data[: place + 4] + b"\2" + data[place + 5 :])
    plain = read_image(tmp_path / "plain.jp2")
    depth_from_file(tmp_path / "a.jp2", (160, 120))  # whose numbers have no colours
    with pytest.warns(UserWarning, match=r"the colour profile of '.*a\.jp2' is not used \(JPEG 2000\)"):
        same(read_image(tmp_path / "a.jp2"), plain)
