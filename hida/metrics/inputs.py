"""The images a metric accepts, and the one form the metrics compute on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hida.errors import HidaError, first_line
from hida.images.io import read_image

# ITU-R BT.601, as every metric here defines grey.
LUMA = (0.299, 0.587, 0.114)


def as_batch(image: Any, name: str = "image") -> tuple[Tensor, bool]:
    """Bring one image or a batch to float64 (N, 1|3, H, W) on the scale 0–255.

    Accepted: tensors (N, 1|3, H, W), (1|3, H, W) or (H, W); arrays (H, W), (H, W, 1|3) or (N, 1|3, H, W). Values
    are uint8, or floating point in [0, 1]. PIL images of any mode, which are read as files of them would be
    (:func:`hida.images.io.read_image`).

    Returns:
        The batch, on the image's own device, and whether the input was a single image.

    Raises:
        HidaError: for another shape or type, an empty image, or a value that is not finite or outside [0, 1].
    """
    if isinstance(image, Tensor):
        pixels, channels_last = image.detach(), False
    else:
        array = _picture_array(image) if isinstance(image, Image.Image) else _array(image, name)
        pixels, channels_last = torch.from_numpy(array), True
    shape = tuple(pixels.shape)
    single = pixels.ndim < 4
    if pixels.ndim == 2:
        pixels = pixels[None, None]
    elif pixels.ndim == 3:
        pixels = pixels.permute(2, 0, 1)[None] if channels_last else pixels[None]
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise HidaError(f"{name} has shape {shape}; give N,1,H,W or N,3,H,W tensors, or H×W or H×W×3 arrays.")
    if 0 in pixels.shape[2:]:
        raise HidaError(f"{name} has no pixels (shape {shape}); give another image.")
    if pixels.dtype == torch.uint8:
        return pixels.double(), single
    if not pixels.is_floating_point():
        raise HidaError(f"{name} holds {pixels.dtype} values; give uint8, or floats in [0, 1].")
    pixels = pixels.double()
    if pixels.numel():
        low, high = (value.item() for value in pixels.aminmax())
        # A hair of tolerance: interpolation in half precision may leave [0, 1] by a rounding.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise HidaError(f"{name} has values from {low:.4g} to {high:.4g}; give uint8, or floats in [0, 1].")
    return pixels.clamp(0, 1) * 255, single


def _picture_array(image: Image.Image) -> np.ndarray:
    pixels = np.array(read_image(image))
    grey = image.mode != "RGB" and (pixels == pixels[:, :, :1]).all()
    return np.ascontiguousarray(pixels[:, :, 0]) if grey else pixels


def _array(image: Any, name: str) -> np.ndarray:
    """Return an array in a type that torch has."""
    if isinstance(image, list | tuple) and any(isinstance(entry, Image.Image) for entry in image):
        raise HidaError(f"{name} is a list of Pillow images; give one of them, or a batch N×1×H×W or N×3×H×W.")
    try:
        array = np.asarray(image)
    except (ValueError, TypeError) as error:
        raise HidaError(f"{name} is no array ({first_line(error)}); give uint8, or floats in [0, 1].") from None
    if array.dtype.kind == "f":
        # Of the other byte order, or longer than torch knows.
        return array.astype(array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64)
    if array.dtype != np.uint8:
        raise HidaError(f"{name} holds {array.dtype} values; give uint8, or floats in [0, 1].")
    return array.copy()


def as_pair(prediction: Any, target: Any) -> tuple[Tensor, Tensor, bool]:
    """Bring both to batches by :func:`as_batch`; a single image on one side is compared with all of the other.

    Returns:
        The two batches, and whether both inputs were single images.

    Raises:
        HidaError: as :func:`as_batch` does, or for unequal counts or devices.
    """
    a, single_a = as_batch(prediction, "the prediction")
    b, single_b = as_batch(target, "the target")
    if len(a) != len(b) and not single_a and not single_b:
        raise HidaError(f"there are {len(a)} predictions but {len(b)} targets; give as many of one as of the other.")
    if a.device != b.device:
        raise HidaError(f"the prediction is on {a.device} but the target on {b.device}; move one of them.")
    count = max(len(a), len(b)) if len(a) and len(b) else 0
    a = a.expand(count, -1, -1, -1) if single_a else a
    b = b.expand(count, -1, -1, -1) if single_b else b
    return a, b, single_a and single_b


def as_equal_pair(prediction: Any, target: Any, metric: str) -> tuple[Tensor, Tensor, bool]:
    """Bring both to batches by :func:`as_pair`, for a metric that compares images of one size only.

    Raises:
        HidaError: as :func:`as_pair` does, or for two sizes.
    """
    a, b, single = as_pair(prediction, target)
    if a.shape[-2:] != b.shape[-2:]:
        sizes = " and ".join(f"{h}×{w}" for h, w in (a.shape[-2:], b.shape[-2:]))
        raise HidaError(f"{metric} needs two images of one size, not {sizes}; resize the prediction first.")
    return a, b, single


def luminance(pixels: Tensor) -> Tensor:
    """Return Y of (N, 1|3, H, W) as (N, H, W), on the same scale."""
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    weights = torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device)
    return (pixels * weights[:, None, None]).sum(1)


def per_pair(values: Tensor, single: bool) -> Tensor | float:
    """Return a float for a single pair, the (N,) tensor for a batch."""
    return values.item() if single else values
