"""Doubling the size of a feature map bilinearly; of few pixels on a GPU as a product of matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hida.ops import library
from hida.ops.layout import channels_last

FEW = 64
"""pixels up to which the product is the faster one"""


class Doubling(nn.Module):
    """Double (N, C, H, W) to (N, C, 2H, 2W) as ``interpolate(mode="bilinear", align_corners=False)`` does.

    PyTorch's CUDA kernel gives a thread one pixel of the result, for all images and channels: of 4×4 pixels it keeps 16
    threads busy. Its gradient is added up by atomics, in any order. A product with the matrix of the weights is neither
    slow nor a matter of chance; of half precision it is in float32, as autocast has the interpolation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._matrices: dict[Any, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrices": {}}

    def forward(self, x: Tensor) -> Tensor:
        half = x.dtype in (torch.bfloat16, torch.float16)
        ordinary = not (torch.compiler.is_compiling() or library.transformed(x))
        if x.is_cuda and half and ordinary and x.shape[2] * x.shape[3] <= FEW:
            with torch.autocast("cuda", enabled=False):
                return self.product(x.float())
        # A size, not a factor: torch multiplies by a factor as a float, which a traced graph cannot cancel.
        return functional.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=False)

    def product(self, x: Tensor) -> Tensor:
        """Double by a product with the matrix of the weights, in the layout of ``x``."""
        n, c, h, w = x.shape
        key = (h, w, x.dtype, x.device, getattr(x, "fake_mode", None))  # tensors without memory have their own
        if key not in self._matrices:  # before a CUDA graph is captured: what it reads must stay
            with torch.inference_mode(False):
                self._matrices[key] = torch.kron(_weights(h, x), _weights(w, x))
        matrix = self._matrices[key]  # (4HW, HW)
        if channels_last(x):
            pixels = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
            doubled = torch.bmm(matrix.expand(n, -1, -1), pixels)
            return doubled.view(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
        return (x.reshape(n * c, h * w) @ matrix.t()).view(n, c, 2 * h, 2 * w)


def _weights(size: int, like: Tensor) -> Tensor:
    """Return the (2·size, size) weights along one axis: ¾ of the pixel itself, ¼ of the one on the other side."""
    place = torch.arange(2 * size, device=like.device)
    nearest = place // 2
    other = (nearest + 2 * (place % 2) - 1).clamp(0, size - 1)
    pixel = torch.arange(size, device=like.device)
    near, far = (nearest[:, None] == pixel).to(like.dtype), (other[:, None] == pixel).to(like.dtype)
    return 0.75 * near + 0.25 * far
