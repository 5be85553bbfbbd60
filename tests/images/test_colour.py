"""Colours become sRGB's; the oracle is the published matrices and curves, in float64."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from hida.images.colour import matrix_profile
from hida.images.io import read_image

# To XYZ of D65. Source: Adobe RGB (1998), 4.3.6; IEC 61966-2-1; SMPTE EG 432-1 (as Lindbloom and Apple give them).
TO_XYZ = {
    "adobe": [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]],
    "p3": [[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]],
    "srgb": [[0.41239, 0.35758, 0.18048], [0.21264, 0.71517, 0.07219], [0.01933, 0.11919, 0.95053]],
}
PRIMARIES = {
    "adobe": (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06),
    "p3": (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    "srgb": (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06),
}
GAMMA = {"adobe": 2.19921875, "p3": None, "linear": 1.0}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def to_linear(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb(values):
    values = np.clip(values, 0, 1)
    return 255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def converted(pixels, space="srgb", gamma=None):
    values = np.asarray(pixels) / 255.0
    linear = to_linear(values) if gamma is None else values**gamma
    matrix = np.linalg.inv(TO_XYZ["srgb"]) @ np.array(TO_XYZ[space])
    return to_srgb(linear @ matrix.T)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer


def png(image, **parts):
    """Return a PNG with chunks in front of its palette or its pixels."""
    data = encoded(image, "PNG").getvalue()
    made = b"".join(
        struct.pack(">I", len(b)) + k.encode() + b + struct.pack(">I", zlib.crc32(k.encode() + b))
        for k, b in parts.items()
    )
    return io.BytesIO(data[:33] + made + data[33:])


def gama(value):
    return struct.pack(">I", round(1e5 * value))


def chrm(points):
    return struct.pack(">8I", *(round(1e5 * value) for value in points))


def profile(name):
    return matrix_profile(GAMMA[name], PRIMARIES["srgb" if name == "linear" else name])


def expected(name, pixels=COLOURS):
    return converted(pixels, "srgb" if name == "linear" else name, GAMMA[name])


@pytest.mark.parametrize("name", ["adobe", "p3", "linear"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "given"])
def test_a_profile_is_followed(name, kind):
    image = Image.fromarray(COLOURS)
    if kind == "given":
        image.info["icc_profile"] = profile(name)
    else:
        image = encoded(image, kind, icc_profile=profile(name), **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_allclose(np.asarray(read_image(image)), expected(name), atol=1.2)


@pytest.mark.parametrize("name", ["adobe", "p3"])
@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "MPO"])
def test_a_profile_of_a_lossy_file_is_followed(name, kind):
    if kind == "AVIF" and kind not in Image.SAVE:
        pytest.skip("Pillow was built without it")
    plain = {"quality": 100, "subsampling": "4:4:4"}
    image = Image.new("RGB", (16, 16), (200, 140, 115))
    stored = np.asarray(read_image(encoded(image, kind, **plain)))
    found = np.asarray(read_image(encoded(image, kind, icc_profile=profile(name), **plain)))
    np.testing.assert_allclose(found, expected(name, stored), atol=1.2)


def test_the_values_of_the_two_usual_profiles():
    flat = Image.new("RGB", (4, 4), (200, 140, 115))
    for name, wanted in (("adobe", (220, 141, 114)), ("p3", (211, 137, 110))):
        assert read_image(encoded(flat, "PNG", icc_profile=profile(name))).getpixel((1, 1)) == wanted


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "YCbCr"])
def test_srgb_or_no_profile_leaves_every_bit(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    before = np.asarray(read_image(image.copy()))
    image.info["icc_profile"] = SRGB
    with warnings.catch_warnings():
        warnings.simplefilter("error" if mode in ("RGB", "RGBA", "P", "YCbCr") else "ignore")
        np.testing.assert_array_equal(np.asarray(read_image(image)), before)
    if mode == "RGB":
        np.testing.assert_array_equal(before, COLOURS)


@pytest.mark.parametrize("curve", [None, 2.2])
def test_a_profile_that_is_srgb_under_another_name_changes_nothing(curve):
    near = converted(COLOURS, gamma=curve)
    found = np.asarray(
        read_image(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=matrix_profile(curve, PRIMARIES["srgb"])))
    )
    np.testing.assert_allclose(found, COLOURS if curve is None else near, atol=0 if curve is None else 1.2)


def test_transparency_is_laid_over_white_after_the_conversion():
    rgba = np.dstack([COLOURS, np.linspace(0, 255, 48).reshape(6, 8).astype(np.uint8)])
    found = np.asarray(read_image(encoded(Image.fromarray(rgba), "PNG", icc_profile=profile("adobe"))))
    alpha = rgba[:, :, 3:] / 255
    np.testing.assert_allclose(found, alpha * expected("adobe") + (1 - alpha) * 255, atol=2)


def test_palettes_follow_their_profile():
    image = Image.fromarray(COLOURS).quantize(256)
    found = np.asarray(read_image(encoded(image, "PNG", icc_profile=profile("adobe"))))
    np.testing.assert_allclose(found, expected("adobe", np.asarray(image.convert("RGB"))), atol=1.2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "F"])
def test_grey_pictures_follow_a_grey_profile(mode):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    levels = np.where(ramp > 127, 255, 0) if mode == "1" else ramp
    image = Image.fromarray(ramp)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode == "1":
        image = image.point(lambda value: 255 * (value > 127)).convert("1")
    else:
        image = image.convert(mode)
    image.info["icc_profile"] = matrix_profile(1.0, None)
    found = np.asarray(read_image(image))
    np.testing.assert_allclose(found, np.repeat(to_srgb(levels / 255)[:, :, None], 3, 2), atol=1.2)


def test_sixteen_bits_are_not_cut_before_a_curve():
    ramp = np.arange(0, 65536, 64).reshape(32, 32).astype(np.uint16)
    found = np.asarray(read_image(encoded(Image.fromarray(ramp), "PNG", icc_profile=matrix_profile(1.0, None))))
    assert len(np.unique(found)) > 230  # 8 bits of linear light are 184 levels of sRGB
    np.testing.assert_allclose(found[:, :, 0].ravel()[64:], to_srgb(ramp.ravel()[64:] / 65535), atol=1.5)


@pytest.mark.parametrize(
    ("parts", "space", "gamma"),
    [
        ({"gAMA": gama(1)}, "srgb", 1.0),
        ({"gAMA": gama(1 / 1.8)}, "srgb", 1.8),
        ({"gAMA": gama(1 / 2.2), "cHRM": chrm(PRIMARIES["adobe"])}, "adobe", 2.2),
        ({"cHRM": chrm(PRIMARIES["p3"])}, "p3", None),
        ({"gAMA": gama(0.45455)}, None, None),
        ({"gAMA": gama(0.45455), "cHRM": chrm(PRIMARIES["srgb"])}, None, None),
        ({"gAMA": gama(1), "sRGB": b"\0"}, None, None),
        ({"gAMA": gama(1), "iCCP": b"k\0\0" + zlib.compress(SRGB)}, None, None),
        ({"gAMA": gama(0.45455), "iCCP": b"k\0\0" + zlib.compress(profile("adobe"))}, "adobe", GAMMA["adobe"]),
    ],
)
def test_gamma_and_primaries_of_a_png_are_followed_unless_they_are_overruled(parts, space, gamma):
    found = np.asarray(read_image(png(Image.fromarray(COLOURS), **parts)))
    wanted = COLOURS if space is None else converted(COLOURS, space, gamma)
    np.testing.assert_allclose(found, wanted, atol=0 if space is None else 1.2)


def test_gamma_of_a_grey_png_is_followed():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = np.asarray(read_image(png(Image.fromarray(ramp), gAMA=gama(1), cHRM=chrm(PRIMARIES["adobe"]))))
    np.testing.assert_allclose(found[:, :, 1], to_srgb(ramp / 255), atol=1.2)


def test_a_camera_may_say_adobe_rgb_by_exif():
    def directory(*entries):
        packed = b"".join(struct.pack(">HHI4s", tag, kind, count, value) for tag, kind, count, value in entries)
        return struct.pack(">H", len(entries)) + packed + bytes(4)

    # EXIF 2.3: the first directory at 8, Exif's at 26 with ColorSpace "uncalibrated", Interoperability's at 56.
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + directory((0x8769, 4, 1, b"\0\0\0\x1a"))
    exif += directory((0xA001, 3, 1, b"\xff\xff\0\0"), (0xA005, 4, 1, b"\0\0\0\x38"))
    exif += directory((1, 2, 4, b"R03\0"))
    flat = Image.new("RGB", (16, 16), (200, 140, 115))
    stored = np.asarray(read_image(encoded(flat, "JPEG", quality=100)))
    found = np.asarray(read_image(encoded(flat, "JPEG", quality=100, exif=exif)))
    np.testing.assert_allclose(found, expected("adobe", stored), atol=1.2)


def test_no_picture_is_converted_twice():
    once = read_image(encoded(Image.fromarray(COLOURS), "PNG", icc_profile=profile("adobe")))
    np.testing.assert_array_equal(np.asarray(read_image(once)), np.asarray(once))
    np.testing.assert_array_equal(np.asarray(read_image(encoded(once, "PNG"))), np.asarray(once))


# Lab of paper, of one ink each, and of two, as a press might have it.
INKS = {
    (0, 0, 0, 0): (100, 0, 0),
    (1, 0, 0, 0): (55, -37, -50),
    (0, 1, 0, 0): (48, 74, -3),
    (0, 0, 1, 0): (89, -5, 93),
    (0, 0, 0, 1): (0, 0, 0),
    (0, 1, 1, 0): (47, 68, 48),
}


def press():
    """Return the profile of a press (ICC.1:2010, 10.11, lut8Type): ``INKS``, and black elsewhere."""
    table = b""
    for corner in np.ndindex(2, 2, 2, 2):
        lightness, a, b = INKS.get(corner, (0, 0, 0))
        table += bytes((round(lightness * 2.55), a + 128, b + 128))
    straight = bytes(range(256))
    lut = (
        struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, *(65536 * (k % 4 == 0) for k in range(9)))
        + straight * 4
        + table
        + straight * 3
    )
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = ((b"A2B0", lut + bytes(-len(lut) % 4)), (b"wtpt", white))
    place, index, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags:
        index += struct.pack(">4sII", name, place + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4x4s4s4s4s12x4s", place + len(body), b"\2\x10\0\0", b"prtr", b"CMYK", b"Lab ", b"acsp"
    ) + bytes(28)
    head = (head + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + index + body


def lab_to_srgb(lightness, a, b):
    f = np.array([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200])
    xyz = np.array([0.9642, 1, 0.8249]) * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    # From D50 to linear sRGB, after Lindbloom, adapted by Bradford.
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    return to_srgb(np.array(matrix) @ xyz)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
@pytest.mark.parametrize("inks", INKS)
def test_cmyk_follows_its_press(kind, inks):
    image = Image.new("CMYK", (16, 16), tuple(255 * ink for ink in inks))
    found = read_image(encoded(image, kind, icc_profile=press(), **({"quality": 100} if kind == "JPEG" else {})))
    np.testing.assert_allclose(found.getpixel((8, 8)), lab_to_srgb(*INKS[inks]), atol=5)
    assert read_image(encoded(image, kind)).getpixel((8, 8)) == image.convert("RGB").getpixel((8, 8))


def of_class(name):
    made = bytearray(profile("adobe"))
    made[12:16] = name
    return bytes(made)


@pytest.mark.parametrize(
    ("mode", "bad"),
    [
        ("RGB", b"x"),
        ("RGB", profile("adobe")[:200]),
        ("RGB", matrix_profile(1.0, None)),
        ("RGB", press()),
        ("RGB", of_class(b"abst")),
        ("RGB", of_class(b"link")),
        ("RGB", of_class(b"nmcl")),
        ("L", profile("adobe")),
        ("I;16", profile("adobe")),
        ("CMYK", profile("adobe")),
        ("RGB", b"\0" * 20_000_000),
    ],
)
def test_a_profile_that_does_not_fit_is_ignored_with_a_warning(mode, bad):
    image = (
        Image.fromarray(COLOURS).convert("L").convert(mode)
        if mode == "I;16"
        else Image.fromarray(COLOURS).convert(mode)
    )
    wanted = np.asarray(read_image(image.copy()))
    image.info["icc_profile"] = bad
    with pytest.warns(UserWarning, match=r"^the colour profile of the image given is not used \(.*\): its colours are"):
        found = read_image(image)
    np.testing.assert_array_equal(np.asarray(found), wanted)


@pytest.mark.parametrize(
    "parts", [{"gAMA": gama(0)}, {"gAMA": gama(0.5), "cHRM": bytes(32)}, {"cHRM": chrm([0.3] * 8)}]
)
def test_an_impossible_gamma_or_primaries_are_ignored_with_a_warning(parts):
    with pytest.warns(UserWarning, match="colour profile"):
        found = read_image(png(Image.fromarray(COLOURS), **parts))
    np.testing.assert_array_equal(np.asarray(found), COLOURS)
