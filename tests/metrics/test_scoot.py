"""SCOOT: golden values, an independent co-occurrence count, properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.feature import graycomatrix

from hida.errors import HidaError
from hida.metrics import scoot
from hida.metrics.scoot import texture


def golden_pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    r, c = np.mgrid[:height, :width]
    a = abs((3 * r + 2 * c) % 128 - 64) * 3 + (r * c) % 64
    b = abs((3 * r + 2 * c + 9) % 128 - 64) * 3 + (r * c + r) % 64
    return a.astype(np.uint8), b.astype(np.uint8)


def random_images(count: int = 3, channels: int = 1, size: tuple[int, int] = (53, 61), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, *size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("size", "expected"), [((250, 250), 0.942623146926), ((97, 131), 0.904822319215)], ids=["250x250", "97x131"]
)
def test_equals_the_golden_value(size, expected):
    assert scoot(*golden_pair(*size)) == pytest.approx(expected, abs=1e-9)


def test_first_block_has_the_golden_contrast_and_energy():
    statistics = texture(torch.from_numpy(golden_pair(250, 250)[0]).double()[None])[0]
    assert statistics[0].item() == pytest.approx(0.59824281, abs=1e-8)
    assert statistics[16].item() == pytest.approx(0.07084228, abs=1e-8)


def test_agrees_with_scikit_image_co_occurrences():
    image = random_images(1, size=(45, 70))[0, 0].numpy()
    levels = np.minimum(5, 6 * image.astype(int) // 255)
    contrast, energy = [], []
    for i in range(4):
        for j in range(4):
            block = levels[45 * i // 4 : 45 * (i + 1) // 4, 70 * j // 4 : 70 * (j + 1) // 4].astype(np.uint8)
            # Its angles turn the other way round (rows down), so −45° stands for the offset (−1, 1).
            angles = [0, -math.pi / 4, -math.pi / 2, -3 * math.pi / 4]
            counts = graycomatrix(block, [1], angles, levels=6)[:, :, 0].astype(float)
            matrix = np.floor(counts.mean(-1) + 0.5)
            p = matrix / matrix.sum()
            steps = np.subtract.outer(np.arange(6), np.arange(6)) ** 2
            contrast.append((p * steps).sum())
            energy.append((p**2).sum())
    got = texture(torch.from_numpy(image).double()[None])[0].numpy()
    np.testing.assert_allclose(got, contrast + energy, atol=1e-12)


def test_identical_images_score_one_and_it_is_symmetric():
    a, b = random_images(seed=1), random_images(seed=2) // 2
    assert torch.equal(scoot(a, a), torch.ones(3, dtype=torch.float64))
    assert torch.equal(scoot(a, b), scoot(b, a))
    assert (scoot(a, b) < 1).all()


def test_a_batch_equals_its_images_one_by_one():
    a, b = random_images(seed=1), random_images(seed=2) // 2
    batch = scoot(a, b)
    assert batch.shape == (3,)
    assert batch.dtype == torch.float64
    for i in range(3):
        assert scoot(a[i, 0].numpy(), b[i, 0].numpy()) == batch[i].item()


def test_grey_equals_its_rgb_copy_and_float_equals_uint8():
    a, b = random_images(seed=1), random_images(seed=2) // 2
    expected = scoot(a, b)
    assert torch.equal(scoot(a.repeat(1, 3, 1, 1), b), expected)
    assert torch.equal(scoot(a.float() / 255, b.double() / 255), expected)
    array = np.repeat(a[0, 0].numpy()[..., None], 3, axis=2)
    assert scoot(array, b[0, 0].numpy()) == expected[0].item()


def test_prediction_is_resized_to_the_target():
    r, c = torch.meshgrid(torch.arange(120), torch.arange(90), indexing="ij")
    target = (128 + 100 * torch.sin(r / 9) * torch.cos(c / 7)).to(torch.uint8)[None, None]
    twice = torch.nn.functional.interpolate(target.float(), (240, 180), mode="bicubic", align_corners=False)
    assert scoot(twice.clamp(0, 255).round().to(torch.uint8), target)[0] > 0.9
    assert scoot(target // 2, target)[0] < 0.9
    flat = torch.full((1, 1, 60, 45), 200, dtype=torch.uint8)
    assert scoot(flat, target)[0] == scoot(torch.full_like(target, 200), target)[0]


def test_constant_images_are_defined():
    white, black = np.full((40, 40), 255, np.uint8), np.zeros((40, 40), np.uint8)
    assert scoot(white, white) == 1
    # No texture in either: contrast 0, energy 1 in every block.
    assert scoot(white, black) == 1
    noise = random_images(1, size=(40, 40))[0, 0].numpy()
    assert 0 < scoot(white, noise) < 0.5


def test_an_empty_batch_gives_an_empty_tensor():
    assert scoot(random_images()[:0], random_images()[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((7, 40), np.uint8), "8×8"),
        (np.zeros((40, 40, 4), np.uint8), "shape"),
        (np.full((40, 40), 7.0), r"\[0, 1\]"),
        (np.full((40, 40), np.nan), r"\[0, 1\]"),
        (np.zeros((40, 40), np.int64), "int64"),
        (torch.zeros(40, 40, dtype=torch.int32), "int32"),
        (torch.zeros(1, 1, 0, 5), "no pixels"),
    ],
    ids=["small", "rgba", "scale", "nan", "int", "int-tensor", "empty"],
)
def test_bad_input_is_one_clear_error(bad, says):
    with pytest.raises(HidaError, match=says):
        scoot(bad, bad)


def test_unequal_counts_are_refused():
    with pytest.raises(HidaError, match="3 predictions but 2 targets"):
        scoot(random_images(3), random_images(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_equals_cpu():
    a, b = random_images(seed=1), random_images(seed=2) // 2
    torch.testing.assert_close(scoot(a.cuda(), b.cuda()).cpu(), scoot(a, b), rtol=0, atol=1e-12)
