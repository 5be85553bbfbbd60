"""The tone of skin: published CIELAB values, points of all kinds, and what it gives for FS2K."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hida.data.skin import annotated, skin_tone


@pytest.mark.parametrize(
    ("colour", "lightness", "b"),
    [  # https://www.brucelindbloom.com, sRGB, D65
        ((255, 0, 0), 53.2408, 67.2032),
        ((0, 255, 0), 87.7347, 83.1793),
        ((255, 255, 0), 97.1393, 94.4780),
        ((0, 0, 255), 32.2970, -107.8602),
    ],
)
def test_the_angle_of_colours_whose_lightness_and_yellow_are_published(colour, lightness, b):
    photo = np.full((9, 9, 3), colour, np.uint8)
    assert skin_tone(photo, (4, 4)) == pytest.approx(math.degrees(math.atan2(lightness - 50, b)), abs=0.02)


def test_the_median_of_the_pixels_around_the_point_counts_also_at_an_edge():
    photo = np.zeros((20, 30, 3), np.uint8)
    photo[0:9, 10:19] = (200, 150, 120)
    lone = skin_tone(np.full((1, 1, 3), (200, 150, 120), np.uint8), (0, 0))
    photo[0:6, 10:13] = 255  # 18 of 81 pixels
    assert skin_tone(photo, (14, 4)) == lone
    assert skin_tone(photo, (14.4, 3.6)) == lone
    assert skin_tone(photo, (18, 0)) == lone  # of the 45 pixels that are there, 25
    assert skin_tone(photo, (25, 15)) != lone


@pytest.mark.parametrize("point", [(-1, 0), (0, -0.6), (30, 0), (0, 20), (1e9, 3)])
def test_a_point_outside_of_the_photo_has_no_tone(point):
    assert skin_tone(np.zeros((20, 30, 3), np.uint8), point) is None


@pytest.mark.parametrize(
    ("attributes", "point"),
    [
        ({"skin_color": [163, 139]}, (163.0, 139.0)),
        ({"skin_patch": (1, 2.5)}, (1.0, 2.5)),
        ({"skin_color": [163]}, None),
        ({"skin_color": [True, 1]}, None),
        ({"skin_color": "12"}, None),
        ({}, None),
    ],
)
def test_the_point_of_an_annotation(attributes, point):
    assert annotated(attributes) == point


@pytest.mark.fs2k
@pytest.mark.slow
def test_the_tones_of_fs2ks_test_photos():
    """The counts were made by a script of its own, which read the files and knew nothing of this module."""
    if "HIDA_FS2K" not in os.environ:
        pytest.skip("HIDA_FS2K does not name the folder of FS2K")
    folder = Path(os.environ["HIDA_FS2K"])
    tones = []
    for entry in json.loads((folder / "anno_test.json").read_text(encoding="utf-8")):
        (path,) = (folder / "photo").glob(f"{entry['image_name']}.*")
        point = annotated(entry)
        assert point is not None
        tones.append(skin_tone(np.asarray(Image.open(path).convert("RGB")), point))
    counts, _ = np.histogram(tones, [-180, -30, 10, 28, 41, 180])
    assert counts.tolist() == [36, 96, 101, 176, 637]
