"""Every hostile picture gives the right pixels or one clear error."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hida.images.io import ImageError, image_files, read_image, write_png
from hida.images.opening import FORMATS


def _gradient(height=20, width=30):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 8, columns * 8, rows * 0 + 77], axis=2).astype(np.uint8)


def test_rgb_png_is_returned_exactly(tmp_path):
    Image.fromarray(_gradient()).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), _gradient())
    np.testing.assert_array_equal(np.asarray(read_image(str(tmp_path / "a.png"))), _gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # The stored array that a camera held in this orientation would write (EXIF 2.3, tag 0x0112).
    upright = _gradient()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_malformed_exif_is_ignored(tmp_path):
    Image.fromarray(_gradient()).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").size == (30, 20)


def test_alpha_lies_over_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = (0, 128, 255)
    got = np.asarray(read_image(Image.fromarray(pixels)))
    np.testing.assert_allclose(got[0], [(255, 255, 255), (227, 127, 127), (200, 0, 0)], atol=1)
    np.testing.assert_array_equal(np.asarray(read_image(pixels)), got)


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), [[(255, 255, 255), (40, 50, 60)]])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_become_rgb(mode):
    if mode == "LAB":
        white = Image.new("LAB", (3, 2), (255, 128, 128))
    else:
        white = Image.new("RGB", (3, 2), "white").convert(mode)
    got = read_image(white)
    assert got.mode == "RGB"
    assert np.asarray(got).min() >= 254


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    got = np.asarray(read_image(tmp_path / f"a.{suffix}"))[:, :, 0]
    np.testing.assert_allclose(got, values / 257.0, atol=0.51)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_float_and_integer_pictures_use_their_range(top):
    ramp = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    got = np.asarray(read_image(Image.fromarray(ramp)))[:, :, 0]
    np.testing.assert_allclose(got.ravel(), np.arange(256), atol=1)
    if top >= 65535:
        got = np.asarray(read_image(Image.fromarray(ramp.astype(np.int32))))[:, :, 0]
        np.testing.assert_allclose(got.ravel(), np.arange(256), atol=1)


def test_nan_in_a_float_picture_is_black():
    values = np.ones((4, 4), np.float32)
    values[0, 0] = np.nan
    got = np.asarray(read_image(Image.fromarray(values)))[:, :, 0]
    assert got[0, 0] == 0
    assert got[1, 1] == 255


def test_animation_gives_its_first_frame_and_says_so(tmp_path):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="2 frames: the first"):
        got = read_image(tmp_path / "a.gif")
    np.testing.assert_array_equal(np.unique(np.asarray(got).reshape(-1, 3), axis=0), [(255, 0, 0)])


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_tiny_and_extreme_shapes(tmp_path, size):
    Image.new("L", size, 9).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == size


def test_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(_gradient()).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg")), _gradient())


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif"])
def test_truncated_file_is_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"a\.\w+'.*(truncated|damaged|known format)"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def _png_header(width, height):
    def chunk(tag, body):
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_bomb_is_refused_from_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(_png_header(60000, 60000))
    with pytest.raises(ImageError, match=r"3,600,000,000 pixels, above the limit of 178,956,970"):
        read_image(tmp_path / "a.png")


def test_cap_holds_where_pillow_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(_png_header(60000, 60000))
    with pytest.raises(ImageError, match=r"60000×60000 = 3,600,000,000"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr("hida.images.opening.MAX_PIXELS", 100)
    with pytest.raises(ImageError, match=r"limit of 100"):
        read_image(_gradient())


def test_missing_file_folder_and_other_types(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.jpg"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="a picture cannot be of the type dict"):
        read_image({})


def test_arrays_of_every_accepted_kind():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for array in (
        grey,
        grey[:, :, None],
        np.repeat(grey[:, :, None], 3, 2),
        grey / 255.0,
        grey.astype(np.uint16) * 257,
    ):
        got = np.asarray(read_image(array))
        np.testing.assert_array_equal(got, np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(np.asarray(read_image((grey / 255).astype(np.float16)))[:, :, 0], grey)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3,)),
        np.zeros((2, 2, 2)),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 2), np.int64),
        np.full((2, 2), 255.0),
        np.full((2, 2), -0.5),
        np.full((2, 2), np.nan),
    ],
)
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(ImageError):
        read_image(array)


def test_write_png_round_trip_and_atomic(tmp_path, monkeypatch):
    write_png(tmp_path / "deep" / "a.png", _gradient())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), _gradient())
    sixteen = np.linspace(0, 65535, 12).reshape(3, 4).astype(np.uint16)
    write_png(tmp_path / "b.png", sixteen)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), sixteen)

    def fail(self, target, **options):
        target.write_bytes(b"half")
        raise OSError("disk")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk"):
        write_png(tmp_path / "c.png", _gradient())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "deep"]
    with pytest.raises(ImageError, match="does not fit a PNG"):
        write_png(tmp_path / "d.png", np.zeros((4, 4), np.float32))


def test_image_files_are_sorted_and_case_blind(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.png", "b.JPG"]


def test_levels_of_arrays_are_shares_of_their_type():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for array in (levels, levels.astype(np.uint16) * 257, levels.astype(">u2") * 257, levels / 255, levels[:, :, None]):
        assert (np.asarray(read_image(array)) == levels[:, :, None]).all()
    colour = np.stack([levels, levels.T, levels[::-1]], 2)
    for array in (colour, colour.astype(np.uint16) * 257, (colour / 255).astype(np.float32), colour[:, ::-1][:, ::-1]):
        assert (np.asarray(read_image(array)) == colour).all()


def test_arrays_of_several_tiles_are_whole(monkeypatch):
    colour = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    whole = np.asarray(read_image(colour))
    monkeypatch.setattr("hida.images.io._TILE", 33)
    assert (np.asarray(read_image(colour)) == whole).all()
    assert (np.asarray(read_image(colour[:, :, :3] / 255)) == colour[:, :, :3]).all()


def test_every_suffix_of_the_formats_that_are_read_is_known(tmp_path):
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert {".jfif", ".jpe", ".mpo", ".tiff", ".pbm"} <= known
    for suffix in known:
        (tmp_path / f"a{suffix.upper()}").touch()
        (tmp_path / f"b{suffix}").touch()
    assert {path.suffix.lower() for path in image_files(tmp_path)} == known
    assert len(image_files(tmp_path)) == 2 * len(known)
