"""The similarity against a general optimiser, the warp against analytic pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hida.images import alignment
from hida.images.alignment import (
    FRAME,
    IDENTITY,
    TEMPLATE,
    AlignmentError,
    apply,
    compose,
    invert,
    paper_tone,
    scale_of,
    similarity,
    warp,
)


def _matrix(scale, degrees, x, y):
    angle = np.deg2rad(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.hstack([rotation, [[x], [y]]])


def test_a_similarity_is_recovered_exactly():
    truth = _matrix(1.7, 33, -20, 45)
    points = apply(invert(truth), TEMPLATE)
    np.testing.assert_allclose(similarity(points), truth, atol=1e-9)


def test_fit_is_the_least_squares_one_and_never_a_reflection():
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(3)
    for points in (TEMPLATE + generator.normal(0, 9, (3, 2)), TEMPLATE * (-1, 1), TEMPLATE[[1, 0, 2]]):
        fitted = similarity(points)
        assert np.linalg.det(fitted[:, :2]) > 0

        def cost(v, points=points):
            matrix = np.array([[v[0], -v[1], v[2]], [v[1], v[0], v[3]]])
            return np.sum((apply(matrix, points) - TEMPLATE) ** 2)

        best = optimize.minimize(cost, [1, 0, 0, 0], method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-10})
        assert cost((fitted[0, 0], fitted[1, 0], fitted[0, 2], fitted[1, 2])) <= best.fun + 1e-6


def test_template_keeps_photo1_where_it_is():
    mean_points = np.array([[94.7, 107.4], [152.2, 106.7], [123.6, 169.1]])
    assert np.abs(TEMPLATE - mean_points).max() < 0.4
    np.testing.assert_allclose(similarity(mean_points), IDENTITY, atol=1.5)
    assert scale_of(similarity(mean_points)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("points", [np.ones((3, 2)), np.full((3, 2), np.nan), np.zeros((2, 2)), np.zeros((3, 3))])
def test_points_that_determine_nothing(points):
    with pytest.raises(AlignmentError):
        similarity(points)


def test_compose_and_invert():
    first, second = _matrix(2, 10, 3, 4), _matrix(0.3, -70, 8, 1)
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(apply(compose(first, second), points), apply(second, apply(first, points)))
    np.testing.assert_allclose(compose(first, invert(first)), IDENTITY, atol=1e-12)
    with pytest.raises(AlignmentError):
        invert(np.zeros((2, 3)))


def test_identity_is_exact_for_every_kind():
    noise = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(warp(Image.fromarray(noise), IDENTITY, FRAME)), noise)
    np.testing.assert_array_equal(warp(noise, IDENTITY, FRAME), noise)
    np.testing.assert_array_equal(warp(noise[:, :, 0] / 3.0, IDENTITY, FRAME), noise[:, :, 0] / 3.0)


def _wave(x, y, period):
    """A smooth picture known at every real coordinate."""
    return 0.5 + 0.25 * np.sin(2 * np.pi * x / period) + 0.2 * np.cos(2 * np.pi * y / (1.3 * period))


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("scale", [2.3, 1.0, 0.8, 0.5, 0.33, 0.1])
def test_warp_samples_the_right_place_at_every_scale(scale, kind):
    # Half a pixel of error in the convention at any scale would show: the wave is 40 output pixels long.
    side = int(400 / scale)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float64)
    matrix = compose(
        _matrix(1, 0, -side / 2, -side / 2),
        _matrix(scale, 21, 80, 60),
    )
    source = _wave(columns, rows, 40 / scale)
    source = np.rint(source * 255).astype(np.uint8) if kind == "uint8" else source.astype(np.float32)
    drawn = warp(source, matrix, (160, 120))
    assert drawn.dtype == source.dtype
    rows, columns = np.mgrid[0:120, 0:160].astype(np.float64)
    expected = _wave(*np.moveaxis(apply(invert(matrix), np.stack([columns, rows], -1)), -1, 0), 40 / scale)
    drawn = drawn / 255.0 if kind == "uint8" else drawn
    assert np.abs(drawn - expected).max() < 0.03
    assert np.abs(drawn - expected).mean() < 0.005
    # A shift of half an output pixel gives a mean of 0.012, so the bound can fail.
    columns += 0.5
    shifted = _wave(*np.moveaxis(apply(invert(matrix), np.stack([columns, rows], -1)), -1, 0), 40 / scale)
    assert np.abs(drawn - shifted).mean() > 0.01


@pytest.mark.parametrize("fill", ["white", "black", "replicate", "paper"])
@pytest.mark.parametrize("scale", [0.11, 0.4, 1.7])
def test_an_array_of_three_channels_is_each_channel_and_the_picture(scale, fill):
    array = np.random.default_rng(4).integers(0, 256, (90, 70, 3), np.uint8)
    matrix = _matrix(scale, 20, 9, -12)
    drawn = warp(array, matrix, (48, 40), fill)
    for channel in range(3):
        np.testing.assert_array_equal(drawn[:, :, channel], warp(array[:, :, channel].copy(), matrix, (48, 40), fill))
    np.testing.assert_array_equal(drawn, np.asarray(warp(Image.fromarray(array), matrix, (48, 40), fill)))


def test_minifying_is_antialiased():
    lines = np.full((900, 900), 70, np.uint8)
    lines[:, ::3] = 115  # mean 85, standard deviation 21: what point sampling would keep
    for scale, spread in ((0.29, 1.5), (0.6, 8)):
        drawn = warp(lines, _matrix(scale, 0, 0, 0), (200, 200)).astype(float)[20:-20, 20:-20]
        assert abs(drawn.mean() - 85) < 1
        assert drawn.std() < spread


@pytest.mark.parametrize("scale", [2.0, 0.4])
def test_fill(scale):
    matrix = _matrix(scale, 0, 40, 30)
    image = Image.new("RGB", (round(40 / scale), round(50 / scale)), (10, 120, 200))
    for fill, colour in (
        ("white", (255, 255, 255)),
        ("black", (0, 0, 0)),
        ("replicate", (10, 120, 200)),
        ("paper", (10, 120, 200)),
    ):
        drawn = np.asarray(warp(image, matrix, (120, 110), fill=fill))
        np.testing.assert_array_equal(drawn[55, 60], (10, 120, 200))
        for y, x in ((0, 0), (109, 119), (5, 60), (55, 5)):
            np.testing.assert_array_equal(drawn[y, x], colour)


def test_replicate_continues_the_nearest_edge_pixel():
    ramp = np.tile(np.arange(20, dtype=np.uint8)[:, None] * 10, (1, 20))
    drawn = warp(ramp, _matrix(1, 0, 7, 5), (40, 40), fill="replicate")
    np.testing.assert_array_equal(drawn, np.clip(np.arange(40) - 5, 0, 19)[:, None] * np.full((1, 40), 10))


def test_the_paper_is_the_commonest_tone_along_the_edge_whatever_is_drawn_across_it():
    drawing = np.full((80, 60), 231, np.uint8)
    drawing[20:70, 10:50] = 40  # hair: most of the picture
    drawing[70:, 15:45] = 40  # a collar that runs out of the picture
    assert paper_tone(drawing) == (231,)
    drawn = warp(drawing, _matrix(1, 0, 10, -20), (80, 90), fill="paper")
    assert (drawn[60:] == 231).all()
    assert (drawn[:, :10] == 231).all()
    assert (drawn[:60, 10:70] == drawing[20:]).all()
    assert paper_tone(np.full((1, 1, 3), (1, 2, 3), np.uint8)) == (1, 2, 3)


def test_a_frame_that_misses_the_picture_is_fill():
    image = Image.new("L", (30, 30), 99)
    for fill, value in (("white", 255), ("black", 0), ("replicate", 99), ("paper", 99)):
        assert set(warp(image, _matrix(0.5, 5, 900, 900), (50, 40), fill=fill).tobytes()) == {value}


def test_floats_stay_in_their_range():
    step = np.zeros((60, 60), np.float32)
    step[:, 30:] = 1
    drawn = warp(step, _matrix(1.9, 12, 0, 0), (90, 90), fill="black")
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_unknown_choices_are_refused():
    image = Image.new("L", (5, 5))
    with pytest.raises(ValueError, match="fill"):
        warp(image, IDENTITY, (9, 9), fill="grey")
    with pytest.raises(ValueError, match="resample"):
        warp(image, IDENTITY, (9, 9), resample="magic")
    with pytest.raises(ValueError, match="mode"):
        warp(image.convert("P"), IDENTITY, (9, 9))
    assert alignment.FRAME == (250, 250)
