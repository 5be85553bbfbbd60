"""Framing: what each picture's pixels become, and that photo, sketch and depth stay together."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from hida.config import AugmentConfig
from hida.data.dataset import PairTensors
from hida.data.framing import CROP, Frame, centred_batch, crop, draw_plan, planned_batch
from hida.errors import HidaError

STILL = AugmentConfig(flip=False, pad=3)  # 250 + 2·3 = 256: one place only


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(n=2, side=250, seed=0):
    def picture(channels):
        return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator(seed))

    return PairTensors(picture(3), picture(1), picture(1), torch.arange(n) % 3, tuple(f"p{k}" for k in range(n)))


def ramps(n=4, side=250):
    """Every picture says where its pixels come from: photo (row, column, 200), sketch row, depth column."""
    rows = torch.arange(side, dtype=torch.uint8)[:, None].expand(side, side)
    photo = torch.stack((rows, rows.T, torch.full_like(rows, 200)))
    return PairTensors(
        *(t.expand(n, -1, -1, -1).contiguous() for t in (photo, rows.T[None], rows[None])),
        torch.zeros(n, dtype=torch.int64),
        tuple(map(str, range(n))),
    )


def grey(values):
    return (values + 1) * 127.5


def pixels(side, *entries):
    top, left, flip = zip(*entries, strict=True)
    return Frame(torch.tensor(top), torch.tensor(left), torch.tensor(flip)).pixels(side)


def test_a_crop_is_a_slice_and_a_flip_its_mirror():
    images = torch.randint(0, 256, (3, 2, 300, 300), dtype=torch.uint8, generator=generator())
    for fill in ("black", "white", "replicate"):
        cut = crop(images, pixels(images.shape[-1], (0, 0, False), (44, 7, False), (3, 40, True)), fill)
        assert cut.dtype == torch.uint8
        assert torch.equal(cut[0], images[0, :, :256, :256])
        assert torch.equal(cut[1], images[1, :, 44:300, 7:263])
        assert torch.equal(cut[2], images[2, :, 3:259, 40:296].flip(2))


@pytest.mark.parametrize(
    ("fill", "keywords"),
    [
        ("black", {"mode": "constant", "constant_values": 0}),
        ("white", {"mode": "constant", "constant_values": 255}),
        ("replicate", {"mode": "edge"}),
    ],
)
def test_beyond_the_border_stands_the_fill(fill, keywords):
    images = torch.randint(1, 255, (2, 1, 250, 250), dtype=torch.uint8, generator=generator())
    cut = crop(images, pixels(images.shape[-1], (-18, -5, False), (12, 12, True)), fill)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (18, 18), (18, 18)), **keywords)
    assert (cut[0].numpy() == padded[0, :, :256, 13 : 13 + 256]).all()
    assert (cut[1].numpy() == padded[1, :, 30:286, 30:286][:, :, ::-1]).all()


def random_batch(given, config, random):
    plan = draw_plan(torch.arange(len(given)), given.photo.shape[-1], config, random)
    return planned_batch(given, plan, config)


def test_identity_framing_is_the_padded_picture():
    given = pairs()
    batch = random_batch(given, STILL, generator())
    for got, source in (
        (grey(batch.photo), given.photo),
        (grey(batch.sketch), given.sketch),
        (batch.depth * 255, given.depth),
    ):
        assert got.shape[-2:] == (CROP, CROP)
        expected = torch.nn.functional.pad(source.float(), (3, 3, 3, 3))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert torch.equal(batch.style, given.style)
    for a, b in zip(batch[:4], centred_batch(given, STILL)[:4], strict=True):
        assert torch.equal(a, b)


def test_the_fills_of_the_configuration_reach_their_pictures():
    batch = centred_batch(pairs(), dataclasses.replace(STILL, fill_photo="white", fill_sketch="black"))
    assert (batch.photo[..., 0] == 1).all()
    assert (batch.sketch[..., 0] == -1).all()
    assert (batch.depth[..., 0] == 0).all()
    batch = centred_batch(pairs(), dataclasses.replace(STILL, fill_photo="replicate", fill_sketch="white"))
    assert torch.equal(batch.photo[..., 0], batch.photo[..., 3])
    assert (batch.sketch[..., 0] == 1).all()
    assert (batch.depth[..., 0] == 0).all()


def test_the_generator_decides_everything():
    config = AugmentConfig(rotate=10, scale=0.2, jitter=0.5)
    torch.manual_seed(1)
    first = random_batch(pairs(), config, generator(5))
    torch.manual_seed(2)
    again, other = random_batch(pairs(), config, generator(5)), random_batch(pairs(), config, generator(6))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert not torch.equal(first.photo, other.photo)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(fill_photo="replicate", fill_sketch="replicate"),
        AugmentConfig(),
        AugmentConfig(rotate=20, scale=0.3, fill_photo="replicate", fill_sketch="replicate"),
        AugmentConfig(rotate=180),
    ],
)
def test_photo_sketch_and_depth_stay_together(config):
    batch = random_batch(ramps(), config, generator(3))
    rows, columns = grey(batch.photo[:, :1]), grey(batch.photo[:, 1:2])
    # Where the third channel is what it was, the pixel comes from inside or from the replicated border.
    whole = (grey(batch.photo[:, 2:]) - 200).abs() < 1e-2
    assert whole.float().mean() > 0.5
    torch.testing.assert_close(grey(batch.sketch)[whole], rows[whole], rtol=0, atol=2e-2)
    # The depth is black outside with every fill: a white one in its place shows where.
    given = ramps()
    white = dataclasses.replace(given, depth=torch.full_like(given.depth, 255))
    inside = whole & (random_batch(white, config, generator(3)).depth > 0.9999)
    torch.testing.assert_close((batch.depth * 255)[inside], columns[inside], rtol=0, atol=2e-2)
    assert inside.float().mean() > 0.5


def test_flips_and_places_are_spread():
    config = AugmentConfig(fill_photo="replicate", fill_sketch="replicate")
    batch = random_batch(ramps(64), config, generator(4))
    columns, rows = grey(batch.photo[:, 1, 128]), grey(batch.photo[:, 0, :, 128])
    mirrored = columns[:, 100] > columns[:, 150]
    assert 16 < mirrored.sum() < 48
    tops = rows[:, 128].round().int() - 128
    assert tops.min() >= -18
    assert tops.max() <= 250 + 18 - 256
    assert len(tops.unique()) > 15
    still = random_batch(ramps(64), dataclasses.replace(config, flip=False), generator(4))
    assert (grey(still.photo[:, 1, 128, 100]) < grey(still.photo[:, 1, 128, 150])).all()


def test_turning_is_a_similarity_about_the_centre_within_its_limits():
    config = dataclasses.replace(STILL, rotate=20, scale=0.3, fill_photo="replicate")
    batch = random_batch(ramps(16), config, generator(5))
    steps = torch.arange(78, 178).double()
    grid = torch.stack((*torch.meshgrid(steps, steps, indexing="ij"), torch.ones(100, 100).double()), -1).reshape(-1, 3)
    angles, factors = [], []
    for photo in batch.photo:
        values = grey(photo[:2, 78:178, 78:178].double()).reshape(2, -1).T
        found = torch.linalg.lstsq(grid, values).solution  # rows of (row, column, 1) → source (row, column)
        torch.testing.assert_close(grid @ found, values, rtol=0, atol=0.01)
        matrix = found[:2].T
        # Source pixels an output pixel, and the angle; the other two entries follow from them.
        step, angle = math.hypot(matrix[0, 0], matrix[1, 0]), math.atan2(matrix[1, 0], matrix[0, 0])
        torch.testing.assert_close(matrix[0, 1].item(), -step * math.sin(angle), rtol=0, atol=1e-3)
        torch.testing.assert_close(matrix[1, 1].item(), step * math.cos(angle), rtol=0, atol=1e-3)
        centre = torch.tensor([127.5, 127.5, 1.0]).double() @ found
        torch.testing.assert_close(centre, torch.tensor([124.5, 124.5]).double(), rtol=0, atol=0.01)
        angles.append(math.degrees(angle))
        factors.append(1 / step)
    assert max(map(abs, angles)) <= 20
    assert max(angles) > 5
    assert min(angles) < -5
    assert 0.7 <= min(factors) < 0.9 < 1.1 < max(factors) <= 1.3


def test_a_turned_white_border_is_white_and_a_black_one_black():
    config = dataclasses.replace(STILL, rotate=45, fill_photo="black", fill_sketch="white")
    given = ramps(8)
    batch = random_batch(given, config, generator(1))
    plain = dataclasses.replace(given, photo=given.photo * 0 + 90, sketch=given.sketch * 0 + 90)
    batch = random_batch(plain, config, generator(1))
    corner = torch.tensor([0, 255])
    assert (batch.photo[:, :, corner][..., corner] == -1).all()
    torch.testing.assert_close(batch.sketch[:, :, corner][..., corner], torch.ones(8, 1, 2, 2))
    assert (batch.depth[:, :, corner][..., corner] == 0).all()


def test_jitter_changes_the_photo_only_and_keeps_its_range():
    config = dataclasses.replace(STILL, jitter=1.0)
    given = pairs(8)
    plain, changed = random_batch(given, STILL, generator(2)), random_batch(given, config, generator(2))
    assert torch.equal(plain.sketch, changed.sketch)
    assert torch.equal(plain.depth, changed.depth)
    differences = (plain.photo - changed.photo).abs().mean((1, 2, 3))
    assert (differences > 0.01).all()
    assert len(differences.unique()) == 8
    assert changed.photo.min() >= -1
    assert changed.photo.max() <= 1
    assert changed.photo.isfinite().all()


def test_pictures_too_small_for_a_crop_are_refused():
    with pytest.raises(HidaError, match=r"200×200 with a border of 18 .* set --augment.pad to 28 or more"):
        random_batch(pairs(1, 200), AugmentConfig(), generator())
    assert random_batch(pairs(1, 200), AugmentConfig(pad=28), generator()).photo.shape[-1] == CROP


def test_an_empty_batch():
    assert random_batch(pairs(0), AugmentConfig(), generator()).photo.shape == (0, 3, CROP, CROP)
