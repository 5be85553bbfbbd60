"""Depth maps from files: turned like the photo, and their numbers as they were stored."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hida.depth.maps import depth_from_file
from hida.errors import HidaError
from hida.images.colour import matrix_profile
from hida.images.io import read_image

UPRIGHT = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", [("png", np.uint8), ("png", np.uint16), ("tif", np.float32), ("png", "RGB"), ("webp", "RGB")]
)
def test_a_map_is_turned_like_its_photo(tmp_path, orientation, kind):
    suffix, dtype = kind
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {5: (1, 0), 6: (1, 0), 7: (1, 0), 8: (1, 0)}.get(orientation, (0, 1))
    stored = UPRIGHT.transpose(undo)
    stored = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        6: stored[::-1],
        7: stored[::-1, ::-1],
        8: stored[:, ::-1],
    }.get(orientation, stored)
    stored = np.ascontiguousarray(stored)
    if dtype == "RGB":
        image = Image.fromarray(np.dstack([stored] * 3))
    else:
        image = Image.fromarray(
            {np.uint16: stored.astype(np.uint16) * 257, np.float32: stored.astype(np.float32) / 255}.get(dtype, stored)
        )
    image.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_allclose(depth_from_file(tmp_path / f"a.{suffix}", (10, 6)), UPRIGHT / 255, atol=1e-6)
    assert read_image(tmp_path / f"a.{suffix}").size == (10, 6)


def test_floats_of_a_file_are_kept(tmp_path):
    values = np.linspace(0, 0.5, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(depth_from_file(tmp_path / "a.tif", (4, 3)), values)


def test_a_profile_says_nothing_about_depth(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", icc_profile=matrix_profile(1.0, None))
    np.testing.assert_allclose(depth_from_file(tmp_path / "a.png", (10, 6)), UPRIGHT / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [">f4", ">u2", np.longdouble, np.float16, np.uint32])
def test_arrays_of_any_type_and_byte_order(dtype):
    unit = np.array([[0, 0.25], [0.5, 1]])
    values = unit * np.iinfo(dtype).max if np.issubdtype(dtype, np.unsignedinteger) else unit
    np.testing.assert_allclose(depth_from_file(values.astype(dtype), (2, 2)), unit, atol=1e-4)


def test_a_map_of_another_shape_is_not_stretched():
    assert depth_from_file(np.ones((30, 40)), (400, 300)).shape == (300, 400)
    assert depth_from_file(np.ones((29, 40)), (400, 300)).shape == (300, 400)  # rounded by a pixel
    with pytest.raises(HidaError, match="the depth map is 40×40 and would be stretched to the photo's 400×300; give"):
        depth_from_file(np.ones((40, 40)), (400, 300))


def test_a_large_map_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("hida.images.opening.MAX_BYTES", 1000)
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(HidaError, match=r"a\.png' \(20×20, I(;16)?\) would take"):
        depth_from_file(tmp_path / "a.png", (20, 20))
