"""Every loss against NumPy and SciPy in float64; gradients against central differences of those."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from hida.config import LossConfig
from hida.training import losses

REAL, FAKE = np.array([[2.0, -0.5], [0.25, 1.0]]), np.array([[-2.0, 0.5], [-0.25, 3.0]])


def softplus(x):
    return np.log1p(np.exp(x))


def images(channels, seed, n=2, h=6, w=7):
    return np.random.default_rng(seed).uniform(-1, 1, (n, channels, h, w))


def gradients(plane, sobel):
    smooth = np.array([1, 2, 1]) / 4 if sobel else np.array([1, 1, 1]) / 3
    kernel = np.outer(smooth, [-1, 0, 1])
    return [correlate(plane, k, mode="constant", cval=0.0) for k in (kernel, kernel.T)]


def textural(sketch, photo, target, sobel):
    total = 0.0
    for n in range(len(sketch)):
        references = target[n] if sobel else photo[n]
        product = norm_a = norm_b = 0.0
        for reference in references:
            for a, b in zip(gradients(sketch[n, 0], sobel), gradients(reference, sobel), strict=True):
                product, norm_a, norm_b = product + a * b, norm_a + a * a, norm_b + b * b
        total += (1 - product / (np.sqrt(norm_a + 1e-7) * np.sqrt(norm_b + 1e-7))).mean()
    return total / len(sketch)


def assert_same(ours, exact, value, rel=1e-6, step=1e-5):
    """Compare ``ours`` (float32) and its gradient with ``exact`` (float64) and its central differences."""
    given = tensor(value).requires_grad_()
    loss = ours(given)
    assert loss.item() == pytest.approx(exact(value), rel=rel)
    loss.backward()
    expected = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        up, down = value.copy(), value.copy()
        up[index] += step
        down[index] -= step
        expected[index] = (exact(up) - exact(down)) / (2 * step)
    np.testing.assert_allclose(given.grad.numpy(), expected, rtol=2e-3, atol=2e-5)


def tensor(array):
    return torch.tensor(array, dtype=torch.float32)


def hinge(real, fake):
    return np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()


def cross_entropy(real, fake):
    return -np.log(1 / (1 + np.exp(-real))).mean() - np.log(1 - 1 / (1 + np.exp(-fake))).mean()


@pytest.mark.parametrize(("name", "formula"), [("hinge", hinge), ("cross_entropy", cross_entropy)])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_discriminators_loss(name, formula, weight):
    config = LossConfig(adversarial=name, mean_difference=weight)

    def exact(real, fake):
        return formula(real, fake) + weight * (fake.mean() - real.mean()) ** 4

    ours = functools.partial(losses.adversarial_discriminator, config=config)
    assert_same(lambda x: ours(x, tensor(FAKE)), lambda x: exact(x, FAKE), REAL + 0.1)
    assert_same(lambda x: ours(tensor(REAL), x), lambda x: exact(REAL, x), FAKE)


@pytest.mark.parametrize(
    ("name", "exact"), [("hinge", lambda fake: -fake.mean()), ("cross_entropy", lambda fake: softplus(-fake).mean())]
)
def test_the_generators_adversarial_loss(name, exact):
    config = LossConfig(adversarial=name)
    assert_same(lambda x: losses.adversarial_generator(x, config), exact, FAKE)


@pytest.mark.parametrize("name", ["hinge", "cross_entropy"])
def test_extreme_logits_stay_finite(name):
    config = LossConfig(adversarial=name, mean_difference=0.0)
    wild = torch.tensor([1e4, -1e4], requires_grad=True)
    (losses.adversarial_discriminator(wild, wild, config) + losses.adversarial_generator(wild, config)).backward()
    assert wild.grad.isfinite().all()


def test_the_pixel_loss():
    a, b = images(1, 0), images(1, 1)
    assert_same(lambda x: losses.pixel(x, tensor(b)), lambda x: np.abs(x - b).mean(), a)


@pytest.mark.parametrize(("name", "power"), [("mse", 1.0), ("rmse", 0.5)])
def test_the_geometric_loss(name, power):
    config, a, b = LossConfig(geometry=name), images(1, 2), images(1, 3)
    assert_same(lambda x: losses.geometric(x, tensor(b), config), lambda x: np.square(x - b).mean() ** power, a)


@pytest.mark.parametrize("name", ["mse", "rmse"])
def test_an_exact_reconstruction_has_a_finite_gradient(name):
    depth = torch.rand(1, 1, 4, 4, requires_grad=True)
    loss = losses.geometric(depth, depth.detach(), LossConfig(geometry=name))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert (depth.grad == 0).all()


@pytest.mark.parametrize(("name", "sobel"), [("prewitt_photo", False), ("sobel_sketch", True)])
def test_the_textural_loss(name, sobel):
    config = LossConfig(texture=name)
    sketch, photo, target = images(1, 4), images(3, 5), images(1, 6)
    ours = functools.partial(losses.textural, photo=tensor(photo), target=tensor(target), config=config)
    assert_same(ours, lambda x: textural(x, photo, target, sobel), sketch, rel=1e-5)


@pytest.mark.parametrize("name", ["prewitt_photo", "sobel_sketch"])
def test_flat_pictures_have_a_finite_loss_and_gradient(name):
    # All zero, so that the zero border is no edge either: both norms are the root of 1e-7, the product 0.
    sketch = torch.zeros(1, 1, 5, 5, requires_grad=True)
    loss = losses.textural(sketch, torch.zeros(1, 3, 5, 5), torch.zeros(1, 1, 5, 5), LossConfig(texture=name))
    loss.backward()
    assert loss.item() == 1
    assert sketch.grad.isfinite().all()


def test_features_are_matched_layer_by_layer_without_the_logits():
    shapes = [[(2, 3, 5, 5), (2, 8, 2, 2), (2, 1, 2, 2)], [(2, 3, 3, 3), (2, 8, 1, 1), (2, 1, 1, 1)]]
    random = np.random.default_rng(0)
    drawn, target = ([[random.normal(size=shape) for shape in scale] for scale in shapes] for _ in range(2))
    means = [
        np.abs(a - b).mean() for s, t in zip(drawn, target, strict=True) for a, b in zip(s[:-1], t[:-1], strict=True)
    ]
    ours = losses.feature_matching(*([[tensor(a) for a in scale] for scale in side] for side in (drawn, target)))
    assert ours.item() == pytest.approx(np.mean(means), rel=1e-5)


def test_pictures_are_cropped_alike_at_a_random_shift():
    torch.manual_seed(0)
    images_ = [tensor(images(channels, seed, h=12, w=17)) for channels, seed in ((1, 13), (3, 14))]
    found = []
    for _ in range(60):
        cut = losses.shifted(*images_)
        places = [
            (y, x)
            for y in range(4)
            for x in range(4)
            if all(torch.equal(c, p[:, :, y : y + 9, x : x + 14]) for c, p in zip(cut, images_, strict=True))
        ]
        assert len(places) == 1
        found += places
    assert {y for y, _ in found} == {x for _, x in found} == {0, 1, 2, 3}
    assert len(set(found)) > 8  # the shifts of the two axes are drawn apart


def test_half_precision_input_is_computed_in_float32():
    a, b = tensor(images(1, 11)).half(), tensor(images(1, 12)).half()
    config = LossConfig()
    photo = b.expand(-1, 3, -1, -1)
    values = [losses.pixel(a, b), losses.geometric(a, b, config), losses.textural(a, photo, b, config)]
    full = [losses.pixel(a.float(), b.float()), losses.geometric(a.float(), b.float(), config)]
    assert all(value.dtype == torch.float32 for value in values)
    assert values[:2] == full
