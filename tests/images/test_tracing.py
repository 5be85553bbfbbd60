"""Tracing: the curves, drawn by another program, give the drawing back."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from hida.images.io import ImageError
from hida.images.tracing import trace
from hida.images.writing import encode

SCALE = 4  # pixels of the rendering per pixel of the drawing


def curves(data):
    """Yield the closed polygons that a path of M, q, t and z describes, as SVG 1.1 defines these."""
    for part in re.findall(r"M[^z]*z", data):
        numbers = [
            list(map(int, re.findall(r"-?\d+", text))) for text in re.fullmatch(r"M(.*)q(.*)t(.*)z", part).groups()
        ]
        at, points = np.array(numbers[0], float), []
        control, end = at + numbers[1][:2], at + numbers[1][2:]
        steps = iter(numbers[2])
        while True:
            for t in (0.25, 0.5, 0.75, 1.0):
                points.append((1 - t) ** 2 * at + 2 * t * (1 - t) * control + t**2 * end)
            step = next(steps, None)
            if step is None:
                break
            at, control, end = end, 2 * end - control, end + np.array((step, next(steps)))
        np.testing.assert_array_equal(points[-1], numbers[0])  # closed without a straight line
        yield points


def rendered(svg, paper):
    """Draw an SVG of ours on paper of that grey, by polygons, even-odd."""
    width, height = map(int, re.search(r'width="(\d+)" height="(\d+)"', svg).groups())
    units = int(re.search(r'viewBox="0 0 (\d+)', svg)[1]) / width
    canvas = Image.new("L", (width * SCALE, height * SCALE), paper)
    for fill, data in re.findall(r'<path fill="#(..)\1\1" d="(M[^"]*)"', svg):
        if "q" not in data:
            canvas.paste(int(fill, 16), (0, 0, *canvas.size))
            continue
        inside = Image.new("1", canvas.size)
        for points in curves(data):
            one = Image.new("1", canvas.size)
            ImageDraw.Draw(one).polygon([tuple(point * SCALE / units - 0.5) for point in points], fill=1)
            inside = ImageChops.logical_xor(inside, one)
        canvas.paste(int(fill, 16), mask=inside)
    return canvas.resize((width, height), Image.Resampling.BOX)


@pytest.fixture
def drawing():
    """Rings, strokes and a soft shade on grey paper, as smooth as a drawing is."""
    image = Image.new("L", (480, 360), 245)
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 240, 240), fill=20)
    draw.ellipse((90, 90, 190, 190), fill=245)
    for k in range(8):
        draw.line((260, 40 + 30 * k, 460, 60 + 30 * k), fill=30 + 25 * k, width=9)
    draw.rectangle((40, 270, 440, 340), fill=150)
    return image.filter(ImageFilter.GaussianBlur(3)).resize((160, 120), Image.Resampling.BOX)


def test_the_curves_are_the_drawing(drawing):
    pytest.importorskip("contourpy")
    svg = trace(drawing)
    found = np.asarray(rendered(svg, 255)).astype(float)
    wanted = np.asarray(drawing).astype(float)
    assert np.abs(found - wanted).mean() < 3
    assert abs(found.mean() - wanted.mean()) < 1
    # The ring's hole is a hole, and the paper has its tone.
    assert found[46, 46] == found[2, 2] == 245
    assert len(svg) < 40_000
    assert encode(drawing, "svg").decode() == svg == trace(drawing)


def test_an_edge_lies_where_it_is_between_pixels():
    pytest.importorskip("contourpy")
    for radius in (9.0, 9.3, 9.6):
        rows, columns = np.mgrid[0:40, 0:40] + 0.5
        disc = np.clip(0.5 + np.hypot(rows - 20, columns - 20) - radius, 0, 1) * 255
        svg = trace(Image.fromarray(disc.astype(np.uint8)))
        area = (255 - np.asarray(rendered(svg, 255)).astype(float)).sum() / 255
        assert area == pytest.approx(np.pi * radius**2, rel=0.02)


def test_transparent_paper_is_no_paper(drawing):
    pytest.importorskip("contourpy")
    clear = drawing.copy()
    mask = Image.new("L", drawing.size)
    ImageDraw.Draw(mask).ellipse((4, 4, 90, 90), fill=255)
    clear.putalpha(mask)
    found = np.asarray(rendered(trace(clear), 77))
    assert (found[:, 110:] == 77).all()  # what is below shows
    assert found[46, 46] == 245
    assert found[46, 20] < 40


@pytest.mark.parametrize("grey", [255, 245, 0])
def test_an_even_picture_is_its_paper_or_one_sheet_on_it(grey):
    pytest.importorskip("contourpy")
    svg = trace(Image.new("L", (30, 20), grey))
    assert (np.asarray(rendered(svg, 99))[3:-3, 3:-3] == grey).all()


def test_the_size_is_bounded(drawing):
    pytest.importorskip("contourpy")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8))
    fine = trace(noise)
    assert len(trace(noise, len(fine) - 1)) < len(fine) - 1  # with less detail
    with pytest.raises(ImageError, match=r"the SVG of this drawing \(50×50\) would have more than 0\.001 MB"):
        trace(noise, 1000)


def test_colours_and_a_missing_package_are_one_sentence(drawing, monkeypatch):
    with pytest.raises(ImageError, match="only a drawing in grey becomes an SVG"):
        trace(drawing.convert("RGB"))
    monkeypatch.setitem(sys.modules, "contourpy", None)
    with pytest.raises(ImageError, match="pip install contourpy"):
        trace(drawing)
