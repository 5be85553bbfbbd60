"""FSIM and FSIMc: golden values, parts against SciPy, properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from hida.errors import HidaError
from hida.metrics import fsim, fsimc
from hida.metrics.fsim import _gradient, _reduce, phase_congruency


def golden_pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    r, c = np.mgrid[:height, :width]
    a = abs((3 * r + 2 * c) % 128 - 64) * 3 + (r * c) % 64
    b = abs((3 * r + 2 * c + 9) % 128 - 64) * 3 + (r * c + r) % 64
    return a.astype(np.uint8), b.astype(np.uint8)


YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def random_images(count: int = 3, channels: int = 1, size: tuple[int, int] = (40, 51), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, size[0] // 4, size[1] // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    return (fine * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "expected"), [((250, 250), 0.858158346687), ((97, 131), 0.859244725292)], ids=["250x250", "97x131"]
)
def test_equals_the_golden_value(size, expected):
    a, b = golden_pair(*size)
    assert fsim(a, b) == pytest.approx(expected, abs=1e-6)
    assert fsimc(a, b) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("height", "factor"), [(250, 1), (384, 2), (500, 2), (700, 3), (1024, 4)])
def test_reduction_is_the_mean_filter_and_stride_of_the_reference(height, factor):
    image = np.random.default_rng(0).uniform(0, 255, (height, height + 9))
    full = convolve2d(image, np.full((factor, factor), 1 / factor**2))
    # MATLAB's conv2(..., 'same') begins at F//2 of the full result; SciPy's at (F − 1)//2.
    expected = full[factor // 2 :, factor // 2 :][:height, : height + 9][::factor, ::factor]
    np.testing.assert_allclose(_reduce(torch.from_numpy(image)[None])[0].numpy(), expected, atol=1e-10)


def test_gradient_is_the_scharr_magnitude():
    image = np.random.default_rng(0).uniform(0, 255, (20, 30))
    kernel = np.array([[3, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16
    expected = np.hypot(convolve2d(image, kernel, "same"), convolve2d(image, kernel.T, "same"))
    np.testing.assert_allclose(_gradient(torch.from_numpy(image)[None])[0].numpy(), expected, atol=1e-10)


def test_phase_congruency_marks_an_edge_and_ignores_contrast():
    ramp = torch.zeros(1, 64, 256, dtype=torch.float64)
    ramp[:, :, 128:] = 100
    ramp += 3 * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    congruency = phase_congruency(ramp)[0]
    assert congruency[20:44, 127:129].mean() > 5 * congruency[20:44, 50:80].mean()
    # Measured by phase, not by amplitude.
    torch.testing.assert_close(phase_congruency(ramp * 2.5)[0], congruency, rtol=0, atol=1e-4)


@pytest.mark.parametrize("metric", [fsim, fsimc])
def test_identical_images_score_one_and_it_is_symmetric(metric):
    a, b = random_images(channels=3, seed=1), random_images(channels=3, seed=2)
    torch.testing.assert_close(metric(a, a), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(metric(a, b), metric(b, a), rtol=0, atol=1e-12)
    assert (metric(a, b) < 0.95).all()


@pytest.mark.parametrize("size", [(40, 51), (33, 32), (384, 390)])
def test_a_batch_equals_its_images_one_by_one(size):
    a, b = random_images(size=size, seed=1), random_images(size=size, seed=2)
    batch = fsim(a, b)
    assert batch.shape == (3,)
    assert batch.dtype == torch.float64
    for i in range(3):
        assert fsim(a[i, 0].numpy(), b[i, 0].numpy()) == pytest.approx(batch[i].item(), abs=1e-12)


def test_grey_equals_its_rgb_copy_and_float_equals_uint8():
    a, b = random_images(seed=1), random_images(seed=2)
    expected = fsim(a, b)
    copies = a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)
    # λ = 0.03 is steep at 0, but I and Q of equal channels are 0 to rounding and their similarity is 1.
    for got in (fsim(*copies), fsimc(*copies), fsimc(a, b), fsim(a.double() / 255, b)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_colour_lowers_fsimc_but_not_fsim_when_luminance_agrees():
    grey = random_images(1, size=(48, 48), seed=3).float().repeat(1, 3, 1, 1) / 255 * 0.4 + 0.3
    shift = torch.tensor([0.587, -0.299, 0.0])[:, None, None] * 0.4  # no luminance
    assert fsim(grey + shift, grey).item() == pytest.approx(1, abs=1e-6)
    assert fsimc(grey + shift, grey).item() < 0.995
    # Opposite hues: the product of similarities is negative, and the real part of its power is kept.
    assert np.isfinite(fsimc(grey + shift, grey - shift).item())


def test_a_colour_cast_costs_what_the_formula_says():
    grey = random_images(1, size=(48, 48), seed=3).float().repeat(1, 3, 1, 1) / 255 * 0.4 + 0.3
    shift = torch.tensor([0.587, -0.299, 0.0], dtype=torch.float64) * 0.4  # no luminance: only chroma differs
    i, q = (255 * float(shift @ torch.tensor(row, dtype=torch.float64)) for row in (YIQ[1], YIQ[2]))
    expected = (200 / (i**2 + 200) * 200 / (q**2 + 200)) ** 0.03  # Zhang et al. 2011, Eq. 9 and 10; grey has I = Q = 0
    assert fsimc(grey + shift[:, None, None].float(), grey).item() == pytest.approx(expected, abs=1e-5)


def test_constant_images_are_defined():
    white, black = np.full((40, 40), 255, np.uint8), np.zeros((40, 40), np.uint8)
    assert fsim(white, white) == pytest.approx(1, abs=1e-12)
    # Blind to the mean level except at the border, where the gradient sees the zero padding.
    assert 0.8 < fsim(white, black) < 1
    assert 0 < fsim(white, random_images(1, size=(40, 40))[0, 0].numpy()) < 0.9


def test_two_sizes_are_refused_by_name():
    with pytest.raises(HidaError, match="40×40 and 40×41"):
        fsim(np.zeros((40, 40), np.uint8), np.zeros((40, 41), np.uint8))


def test_an_empty_batch_gives_an_empty_tensor():
    assert fsim(random_images()[:0], random_images()[:0]).shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_equals_cpu():
    a, b = random_images(seed=1), random_images(seed=2)
    torch.testing.assert_close(fsim(a.cuda(), b.cuda()).cpu(), fsim(a, b), rtol=0, atol=1e-8)
