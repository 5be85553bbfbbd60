"""What a metric accepts is what a file of the same picture would give, or one sentence."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hida.errors import HidaError
from hida.images.colour import matrix_profile
from hida.images.io import read_image
from hida.metrics import fsim, scoot
from hida.metrics.inputs import as_batch

RNG = np.random.default_rng(0)
GREY = Image.fromarray(np.kron(RNG.integers(0, 256, (16, 20)).astype(np.uint8), np.ones((4, 4), np.uint8)))
COLOUR = Image.fromarray(np.kron(RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8), np.ones((8, 8, 1), np.uint8)))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"]
)
def test_a_pillow_image_of_any_mode_is_read_like_a_file(mode):
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            COLOUR, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    else:
        image = (
            (COLOUR if mode in ("P", "CMYK", "YCbCr", "HSV", "RGBA", "RGB") else GREY)
            .convert("P" if mode == "PA" else mode)
            .convert(mode)
        )
    batch, single = as_batch(image)
    assert single
    wanted = np.asarray(read_image(image)).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(batch.expand(-1, 3, -1, -1).numpy(), wanted)


def test_a_palette_is_scored_by_its_colours():
    for image in (GREY.quantize(256), GREY.convert("RGB").quantize(256), GREY.convert("YCbCr"), GREY.convert("HSV")):
        assert fsim(image, GREY) == pytest.approx(1, abs=1e-3)
    assert fsim(GREY.quantize(256), GREY) == 1
    assert scoot(GREY.quantize(256), GREY) == scoot(GREY, GREY)


def test_a_pillow_image_is_turned_and_its_profile_followed():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    GREY.transpose(Image.Transpose.ROTATE_90).save(stored, "PNG", exif=exif)
    assert fsim(Image.open(stored), GREY) == 1
    linear = COLOUR.copy()
    linear.info["icc_profile"] = matrix_profile(1.0, (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06))
    assert as_batch(linear)[0].mean() > as_batch(COLOUR)[0].mean() + 20


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", ">f2", "f2", np.longdouble])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (2, 1, 5, 4)])
def test_floats_of_any_length_and_byte_order_are_read(dtype, shape):
    values = (RNG.integers(0, 65, shape) / 64).astype(dtype)  # exact in half precision
    batch, _ = as_batch(values)
    wanted, _ = as_batch(
        torch.from_numpy(values.astype(np.float64)).movedim(-1, 0) if len(shape) == 3 else values.astype(np.float64)
    )
    torch.testing.assert_close(batch, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), ">u2"),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), bool),
        np.zeros((4, 4), complex),
        np.full((4, 4), 255, ">f4"),
        np.full((4, 4), np.nan, np.longdouble),
        np.zeros((4, 4), [("a", "u1")]),
        [[1.0], [1.0, 2.0]],
        "photo.png",
        None,
        torch.zeros(4, 4, dtype=torch.int16),
    ],
)
def test_anything_else_is_one_sentence(image):
    with pytest.raises(HidaError, match=r"^the prediction [^\n]*$"):
        fsim(image, GREY)
