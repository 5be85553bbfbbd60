"""FSIM and FSIMc: feature similarity by phase congruency and gradient.

Source: Zhang et al., TIP 2011, https://doi.org/10.1109/TIP.2011.2109730; the constants are those of the paper and its
authors' code.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hida.errors import HidaError
from hida.metrics.inputs import as_equal_pair, luminance, per_pair

_SCALES, _ORIENTATIONS = 4, 4
_MIN_WAVELENGTH, _MULT, _SIGMA_ONF = 6.0, 2.0, 0.55
_SIGMA_THETA = math.pi / _ORIENTATIONS / 1.2
_NOISE_K, _EPSILON = 2.0, 1e-4
_LOWPASS_CUTOFF, _LOWPASS_ORDER = 0.45, 15
_T1, _T2, _T3, _T4, _LAMBDA = 0.85, 160.0, 200.0, 200.0, 0.03
_CHROMA = ((0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
# Below this sum of filter amplitudes (grey levels) there is no structure, only the rounding of the FFT.
_NO_AMPLITUDE = 1e-9


def fsim(prediction: Any, target: Any) -> Tensor | float:
    """Compute the feature similarity of the luminance: in (0, 1], 1 for equal images, symmetric.

    Where neither image has any phase congruency (both constant), all pixels have the same weight. Computed in float64.

    Args:
        prediction, target: uint8 or float [0, 1], of one size; (N, 1|3, H, W) tensors, or H×W(×3) arrays.

    Returns:
        (N,) float64 tensor for batches, a float for a single pair.

    Raises:
        HidaError: for an input of another kind, two sizes, or images smaller than 3×3.
    """
    a, b, single = _batches(prediction, target)
    return per_pair(_similarity(luminance(a), luminance(b)), single)


def fsimc(prediction: Any, target: Any) -> Tensor | float:
    """Compute :func:`fsim` with the chromatic terms I and Q (T3 = T4 = 200, λ = 0.03); the same for grey images."""
    a, b, single = _batches(prediction, target)
    chroma = _chroma_similarity(a, b) if 3 in (a.shape[1], b.shape[1]) else None
    return per_pair(_similarity(luminance(a), luminance(b), chroma), single)


def _batches(prediction: Any, target: Any) -> tuple[Tensor, Tensor, bool]:
    a, b, single = as_equal_pair(prediction, target, "FSIM")
    if min(a.shape[-2:]) < 3:
        raise HidaError(f"FSIM needs at least 3×3 pixels, not {a.shape[-2]}×{a.shape[-1]}; give larger images.")
    return a, b, single


def _similarity(a: Tensor, b: Tensor, chroma: Tensor | None = None) -> Tensor:
    """Return (N,) similarities of (N, H, W) luminances on 0–255, and (N, h, w) chromatic ones at the reduced size."""
    a, b = _reduce(a), _reduce(b)
    pc_a, pc_b = phase_congruency(a), phase_congruency(b)
    gradient_a, gradient_b = _gradient(a), _gradient(b)
    similarity = _ratio(pc_a, pc_b, _T1) * _ratio(gradient_a, gradient_b, _T2)
    if chroma is not None:
        similarity = similarity * chroma
    weight = torch.maximum(pc_a, pc_b)
    total = weight.sum((-2, -1))
    weighted = (similarity * weight).sum((-2, -1)) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, weighted, similarity.mean((-2, -1)))


def _ratio(a: Tensor, b: Tensor, constant: float) -> Tensor:
    return (2 * a * b + constant) / (a.square() + b.square() + constant)


def _chroma_similarity(a: Tensor, b: Tensor) -> Tensor:
    (i_a, q_a), (i_b, q_b) = _chroma(a), _chroma(b)
    product = _ratio(i_a, i_b, _T3) * _ratio(q_a, q_b, _T4)
    # The real part of a negative number's power: opposite colours give a negative product.
    power = product.abs().pow(_LAMBDA)
    return torch.where(product < 0, power * math.cos(math.pi * _LAMBDA), power)


def _chroma(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return I and Q at the reduced size; a single channel broadcasts to three equal ones, whose I and Q are 0."""
    weights = torch.tensor(_CHROMA, dtype=pixels.dtype, device=pixels.device)[:, :, None, None]
    return _reduce((pixels * weights[0]).sum(1)), _reduce((pixels * weights[1]).sum(1))


def _reduce(plane: Tensor) -> Tensor:
    """Return means over F×F (zeros outside) at every F-th pixel; F brings the shorter side near 256."""
    factor = max(1, math.floor(min(plane.shape[-2:]) / 256 + 0.5))
    if factor == 1:
        return plane
    after = factor // 2
    before = factor - 1 - after
    padded = F.pad(plane[:, None], (before, after, before, after))
    return F.avg_pool2d(padded, factor, stride=factor)[:, 0] if plane.numel() else plane[:, ::factor, ::factor]


def _gradient(plane: Tensor) -> Tensor:
    """Return the Scharr magnitude, zeros outside the image: (N, H, W) → (N, H, W)."""
    smooth = torch.tensor([3.0, 10.0, 3.0], dtype=plane.dtype, device=plane.device) / 16
    slope = torch.tensor([1.0, 0.0, -1.0], dtype=plane.dtype, device=plane.device)
    across = smooth[:, None] * slope[None, :]
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(plane[:, None], kernels, padding=1).square().sum(1).sqrt()


class _Filters(NamedTuple):
    """The filter bank of one image size."""

    bank: Tensor  # orientations, scales, H, W: real, in the order of the FFT
    noise: Tensor  # orientations: squared noise energy expected for a unit of median |response|² at the finest scale


@functools.lru_cache(maxsize=8)
def _filters(height: int, width: int, device: torch.device) -> _Filters:
    y, x = (_frequencies(size, device) for size in (height, width))
    radius = torch.sqrt(y[:, None].square() + x[None, :].square())
    angle = torch.atan2(-y[:, None].expand_as(radius), x[None, :].expand_as(radius))
    lowpass = 1 / (1 + (radius / _LOWPASS_CUTOFF).pow(2 * _LOWPASS_ORDER))
    radius[0, 0] = 1  # the logarithm's pole; the filters are 0 there
    log_radius = torch.log(radius)
    radial = []
    for scale in range(_SCALES):
        log_centre = -math.log(_MIN_WAVELENGTH * _MULT**scale)
        gabor = torch.exp(-(log_radius - log_centre).square() / (2 * math.log(_SIGMA_ONF) ** 2)) * lowpass
        gabor[0, 0] = 0
        radial.append(gabor)
    angular = []
    for orientation in range(_ORIENTATIONS):
        turn = angle - orientation * math.pi / _ORIENTATIONS
        distance = torch.atan2(turn.sin(), turn.cos())
        angular.append(torch.exp(-distance.square() / (2 * _SIGMA_THETA**2)))
    bank = torch.stack(radial)[None] * torch.stack(angular)[:, None]
    spatial = torch.fft.ifft2(bank).real * math.sqrt(height * width)
    squares = spatial.square().sum((1, 2, 3))
    # Σ over pairs i<j of A_i·A_j, from the square of the sum.
    products = (spatial.sum(1).square().sum((1, 2)) - squares) / 2
    unit = -1 / math.log(0.5) / bank[:, 0].square().sum((1, 2))
    return _Filters(bank, unit * (2 * squares + 4 * products))


def _frequencies(size: int, device: torch.device) -> Tensor:
    """Return normalised frequencies in FFT order; an odd axis is spread over size − 1, as in the reference."""
    index = torch.arange(size, dtype=torch.float64, device=device) - size // 2
    return torch.fft.ifftshift(index / (size if size % 2 == 0 else size - 1))


def phase_congruency(plane: Tensor) -> Tensor:
    """Return the phase congruency, summed over orientations and 0 without structure: (N, H, W) on 0–255 → (N, H, W)."""
    if not plane.numel():
        return torch.zeros_like(plane)
    filters = _filters(*plane.shape[-2:], plane.device)
    chunk = 1 if plane.device.type == "cpu" else 16
    # Fresh memory for 16 complex fields per image would cost as much as the transforms: reuse one workspace.
    product = torch.empty((chunk, *filters.bank.shape[1:]), dtype=torch.complex128, device=plane.device)
    response = torch.empty_like(product)
    squares = torch.empty(product.shape, dtype=plane.dtype, device=plane.device)
    return torch.cat(
        [
            _congruency(part, filters, *(buffer[: len(part)] for buffer in (product, response, squares)))
            for part in plane.split(chunk)
        ]
    )


def _congruency(plane: Tensor, filters: _Filters, product: Tensor, response: Tensor, squares: Tensor) -> Tensor:
    spectrum = torch.fft.fft2(plane)[:, None]
    energy_all, amplitude_all = torch.zeros_like(plane), torch.zeros_like(plane)
    even, odd = torch.view_as_real(response).unbind(-1)  # N, scales, H, W
    for bank, noise in zip(filters.bank, filters.noise, strict=True):
        torch.mul(spectrum, bank, out=product)
        torch.fft.ifft2(product, out=response)
        torch.mul(even, even, out=squares).addcmul_(odd, odd)
        tau = torch.sqrt(_median(squares[:, 0].flatten(1)) * noise / 2)
        threshold = tau * ((math.sqrt(math.pi / 2) + _NOISE_K * math.sqrt(2 - math.pi / 2)) / 1.7)
        amplitude_all += squares.sqrt_().sum(1)
        mean_even, mean_odd = even.sum(1), odd.sum(1)
        # Σ_s of the product terms is length²/length: only the absolute term needs each scale by itself.
        energy = mean_even.square().addcmul_(mean_odd, mean_odd)
        length = energy.sqrt().add_(_EPSILON)
        for field in (energy, mean_even, mean_odd):
            field /= length
        across = torch.mul(even, mean_odd[:, None], out=squares).addcmul_(odd, mean_even[:, None], value=-1)
        energy -= across.abs_().sum(1)
        energy_all += energy.sub_(threshold[:, None, None]).clamp_(min=0)
    return torch.where(amplitude_all > _NO_AMPLITUDE, energy_all / amplitude_all, 0)


def _median(values: Tensor) -> Tensor:
    """Return the median of each row; of an even number, the mean of the middle two (torch.median: the lower one)."""
    lower = values.median(1, keepdim=True).values
    if values.shape[1] % 2:
        return lower[:, 0]
    below = values <= lower
    upper = values.masked_fill(below, math.inf).amin(1)
    upper = torch.where(below.sum(1) > values.shape[1] // 2, lower[:, 0], upper)
    return (lower[:, 0] + upper) / 2
