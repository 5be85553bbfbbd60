"""The training objective: adversarial, pixel, textural and geometric losses (paper, Sec. 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hida.config import LossConfig


def adversarial_discriminator(real: Tensor, fake: Tensor, config: LossConfig) -> Tensor:
    """Return D's loss for its logits on real and drawn sketches (any shape; the mean is taken).

    hinge: E[max(0, 1 − D(real))] + E[max(0, 1 + D(fake))]; cross_entropy: −E[log σ(D(real))] − E[log(1 − σ(D(fake)))].
    Both add ``mean_difference``·(E D(fake) − E D(real))⁴, which keeps the two means from drifting apart.
    """
    real, fake = real.float(), fake.float()
    if config.adversarial == "hinge":
        loss = functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    else:
        loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
    if config.mean_difference:
        loss = loss + config.mean_difference * (fake.mean() - real.mean()) ** 4
    return loss


def adversarial_generator(fake: Tensor, config: LossConfig) -> Tensor:
    """Return G's adversarial loss: −E D(fake) (hinge) or −E log σ(D(fake)) (cross_entropy)."""
    fake = fake.float()
    return -fake.mean() if config.adversarial == "hinge" else functional.softplus(-fake).mean()


def pixel(sketch: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference (paper, Eq. 7)."""
    return (sketch.float() - target.float()).abs().mean()


def feature_matching(drawn: list[list[Tensor]], target: list[list[Tensor]]) -> Tensor:
    """Return the mean absolute difference of the discriminator's features, with equal weight for each layer and scale.

    Args:
        drawn, target: what ``Discriminator.features`` gives; of each scale the last entry, the logits, is left out.

    Source: Wang et al., "pix2pixHD", CVPR 2018, Eq. 4.
    """
    pairs = [pair for a, b in zip(drawn, target, strict=True) for pair in zip(a[:-1], b[:-1], strict=True)]
    return torch.stack([pixel(a, b) for a, b in pairs]).mean()


def shifted(*images: Tensor) -> list[Tensor]:
    """Return pictures (N, C, H, W) cropped by up to three rows and columns at their edges, at random, all alike.

    AlexNet samples every fourth pixel, and a generator would otherwise learn to draw in that grid.
    """
    cut = list(images)
    for axis in (2, 3):
        start = torch.randint(4, (1,), device=cut[0].device)
        index = start + torch.arange(cut[0].shape[axis] - 3, device=cut[0].device)
        cut = [image.index_select(axis, index) for image in cut]
    return cut


def geometric(depth_hat: Tensor, depth: Tensor, config: LossConfig) -> Tensor:
    """Return the depth reconstruction error: its mean square (Eq. 5) or the root of it (released code)."""
    square = (depth_hat.float() - depth.float()).square().mean()
    # The root's slope is infinite at 0, which an exact reconstruction would hit.
    return square if config.geometry == "mse" else (square + 1e-12).sqrt()


def textural(sketch: Tensor, photo: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """Return the mean of 1 − cos between image gradients, pixel by pixel (paper, Eq. 6).

    ``sobel_sketch``: Sobel gradients of the drawn and of the target sketch. ``prewitt_photo`` (released code):
    Prewitt/3 gradients of the drawn sketch, copied to three channels, and of the photo. Zero padding; the squared
    norms and the product are summed over channels; 1e-7 is added inside each norm's root.

    Args:
        sketch, target: (N, 1, H, W) in [−1, 1].
        photo: (N, 3, H, W) in [−1, 1].
    """
    sobel = config.texture == "sobel_sketch"
    reference = target.float() if sobel else photo.float()
    drawn = sketch.float().expand(-1, reference.shape[1], -1, -1)
    centre = 2.0 if sobel else 1.0
    (ax, ay), (bx, by) = _gradients(drawn, centre), _gradients(reference, centre)
    product = (ax * bx + ay * by).sum(1)
    norms = [(x.square() + y.square()).sum(1).add(1e-7).sqrt() for x, y in ((ax, ay), (bx, by))]
    return (1 - product / (norms[0] * norms[1])).mean()


def _gradients(image: Tensor, centre: float) -> tuple[Tensor, Tensor]:
    """Return horizontal and vertical differences (N, C, H, W), smoothed by [1, centre, 1]/(2 + centre)."""
    # Sums of shifted views: a convolution of one channel costs a CPU ten times as much.
    padded = functional.pad(image, (1, 1, 1, 1))
    columns = padded[:, :, :-2] + centre * padded[:, :, 1:-1] + padded[:, :, 2:]
    differences = padded[:, :, 2:] - padded[:, :, :-2]
    horizontal = columns[..., 2:] - columns[..., :-2]
    vertical = differences[..., :-2] + centre * differences[..., 1:-1] + differences[..., 2:]
    return horizontal / (2 + centre), vertical / (2 + centre)
