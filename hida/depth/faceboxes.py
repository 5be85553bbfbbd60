"""FaceBoxes: a small single-shot face detector.

Zhang et al., FaceBoxes: A CPU Real-time Face Detector with High Accuracy, https://arxiv.org/abs/1708.05234
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hida.depth.folding import fold
from hida.errors import HidaError
from hida.weights.foreign import fill, load_state

# Mean of the training images, in the order the network reads them: blue, green, red.
_MEAN = (104.0, 117.0, 123.0)
# Larger photos are reduced to this for detection: the anchors reach 512 pixels, and time grows with area.
MAX_HEIGHT, MAX_WIDTH = 720, 1080
# A second look, for small faces: at full size up to so many pixels, in tiles that overlap by more than the faces that
# the first look misses are wide.
_MOST_PIXELS, _TILE, _OVERLAP = 24_000_000, 2048, 256
ENLARGED = 256
"""Longest side in pixels up to which smaller photos are enlarged for a second look."""
# Per feature map: step in pixels, and (anchor side, anchors along each side of a cell). Section 3.2, densification.
_ANCHORS = ((32, ((32, 4), (64, 2), (128, 1))), (64, ((256, 1),)), (128, ((512, 1),)))
_VARIANCE_CENTRE, _VARIANCE_SIZE = 0.1, 0.2


class _Conv(nn.Module):
    """Convolve, normalise and apply ReLU (or, crelu=True, ReLU to the result and to its negative)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, crelu: bool = False) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs)
        self.crelu = crelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(torch.cat((x, -x), 1) if self.crelu else x, inplace=True)

    def fold(self) -> None:
        self.conv, self.bn = fold(self.conv, self.bn)


class _Inception(nn.Module):
    """Four branches of 32 channels with receptive fields of 1, 3 (pooled), 3 and 5."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1x1 = _Conv(128, 32, 1)
        self.branch1x1_2 = _Conv(128, 32, 1)
        self.branch3x3_reduce = _Conv(128, 24, 1)
        self.branch3x3 = _Conv(24, 32, 3)
        self.branch3x3_reduce_2 = _Conv(128, 24, 1)
        self.branch3x3_2 = _Conv(24, 32, 3)
        self.branch3x3_3 = _Conv(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1)
        deep = self.branch3x3_3(self.branch3x3_2(self.branch3x3_reduce_2(x)))
        near = self.branch3x3(self.branch3x3_reduce(x))
        return torch.cat((self.branch1x1(x), self.branch1x1_2(pooled), near, deep), 1)


class FaceBoxes(nn.Module):
    """The detector. :meth:`detect` is what callers want; ``forward`` gives the raw predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Conv(3, 24, 7, stride=4, crelu=True)
        self.conv2 = _Conv(48, 64, 5, stride=2, crelu=True)
        self.inception1 = _Inception()
        self.inception2 = _Inception()
        self.inception3 = _Inception()
        self.conv3_1 = _Conv(128, 128, 1)
        self.conv3_2 = _Conv(128, 256, 3, stride=2)
        self.conv4_1 = _Conv(256, 128, 1)
        self.conv4_2 = _Conv(128, 256, 3, stride=2)
        counts = [sum(n * n for _, n in sides) for _, sides in _ANCHORS]
        self.loc = nn.ModuleList(
            nn.Conv2d(c, 4 * n, 3, padding=1) for c, n in zip((128, 256, 256), counts, strict=True)
        )
        self.conf = nn.ModuleList(
            nn.Conv2d(c, 2 * n, 3, padding=1) for c, n in zip((128, 256, 256), counts, strict=True)
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> FaceBoxes:
        """Read ``FaceBoxesProd.pth`` or a ``.safetensors`` with the same keys (float16 is widened)."""
        network = cls()
        fill(network, load_state(path), path)
        network.eval()
        for module in network.modules():
            if isinstance(module, _Conv):
                module.fold()
        return network.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.parameters()).device

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (A, 4) as x0, y0, x1, y1 in pixels of ``x``, and scores (A,) in [0, 1].

        Args:
            x: (1, 3, H, W) BGR less the mean.
        """
        x = F.max_pool2d(self.conv1(x), 3, stride=2, padding=1)
        x = F.max_pool2d(self.conv2(x), 3, stride=2, padding=1)
        fine = self.inception3(self.inception2(self.inception1(x)))
        middle = self.conv3_2(self.conv3_1(fine))
        coarse = self.conv4_2(self.conv4_1(middle))
        boxes, scores = [], []
        for level, features in enumerate((fine, middle, coarse)):
            offsets = self.loc[level](features)[0].permute(1, 2, 0).reshape(-1, 4)
            logits = self.conf[level](features)[0].permute(1, 2, 0).reshape(-1, 2)
            priors = _priors(level, features.shape[-2], features.shape[-1]).to(offsets)
            centre = priors[:, :2] + offsets[:, :2] * _VARIANCE_CENTRE * priors[:, 2:]
            side = priors[:, 2:] * torch.exp(offsets[:, 2:] * _VARIANCE_SIZE)
            boxes.append(torch.cat((centre - side / 2, centre + side / 2), 1))
            scores.append(logits.softmax(1)[:, 1])
        return torch.cat(boxes), torch.cat(scores)

    @torch.inference_mode()
    def detect(
        self, photo: np.ndarray, threshold: float = 0.5, overlap: float = 0.3, *, times: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find faces; photos over 1080×720 are reduced first.

        Args:
            photo: (H, W, 3) uint8 RGB.
            threshold: faces scoring at most this are dropped.
            overlap: faces that overlap a better one by more than this (intersection over union) are dropped.
            times: what the size at which the photo is seen is multiplied by, for smaller faces; time grows by its
                square.

        Returns:
            Boxes (K, 4) float64 in pixels of the photo and scores (K,), the largest face first.

        Raises:
            HidaError: ``photo`` is another array.
        """
        check_photo(photo)
        height, width = photo.shape[:2]
        scale = times * min(1.0, MAX_HEIGHT / height, MAX_WIDTH / width)
        pixels = _scaled(photo, scale)
        boxes, scores = self._see(pixels, threshold)
        return _sorted(boxes * _factors(photo, pixels), scores, overlap)

    @torch.inference_mode()
    def detect_small(
        self, photo: np.ndarray, threshold: float = 0.2, overlap: float = 0.3
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find what may be faces that :meth:`detect` misses: it reduces large photos, and sees no very small faces.

        Photos of less than ``ENLARGED`` pixels along both sides are enlarged to that: the smallest anchors are 32
        pixels wide. Others that :meth:`detect` does not reduce have none. Up to 24 megapixels the photo is seen at full
        size, larger ones are reduced to that. Arguments, results and errors as for :meth:`detect`; the threshold is
        low, for faces of 40 pixels: look at what is found again.
        """
        check_photo(photo)
        height, width = photo.shape[:2]
        if max(height, width) < ENLARGED:
            pixels = _scaled(photo, ENLARGED / max(height, width))
            boxes, scores = self._see(pixels, threshold)
            return _sorted(boxes * _factors(photo, pixels), scores, overlap)
        if height <= MAX_HEIGHT and width <= MAX_WIDTH:
            return np.empty((0, 4)), np.empty(0)
        pixels = _scaled(photo, min(1.0, (_MOST_PIXELS / (height * width)) ** 0.5))
        found = [(np.empty((0, 4)), np.empty(0))]
        for top, above, below in _tiles(pixels.shape[2]):
            for left, before, after in _tiles(pixels.shape[3]):
                boxes, scores = self._see(pixels[:, :, top : top + _TILE, left : left + _TILE], threshold)
                boxes += (left, top, left, top)
                # A face that a tile's edge cuts is whole in the next tile, and its middle is there.
                x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
                inside = (before <= x) & (x < after) & (above <= y) & (y < below)
                found.append((boxes[inside], scores[inside]))
        boxes, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        return _sorted(boxes * _factors(photo, pixels), scores, overlap)

    def _see(self, pixels: Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes that score more than ``threshold``, and their scores, in uint8 RGB (1, 3, H, W)."""
        x = pixels.to(self.device).flip(1).float()
        boxes, scores = self(x - x.new_tensor(_MEAN).view(1, 3, 1, 1))
        keep = scores > threshold
        return boxes[keep].double().cpu().numpy(), scores[keep].double().cpu().numpy()


def _scaled(photo: np.ndarray, scale: float) -> Tensor:
    """Return the photo as uint8 (1, 3, H, W), ``scale`` times as large."""
    # Scaled while still bytes: a 50-megapixel photo would take 600 MB as floats.
    pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    if scale == 1:
        return pixels
    size = (max(1, round(photo.shape[0] * scale)), max(1, round(photo.shape[1] * scale)))
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)


def _factors(photo: np.ndarray, pixels: Tensor) -> np.ndarray:
    """Return what brings boxes in ``pixels`` to pixels of the photo."""
    return np.array([photo.shape[1] / pixels.shape[3], photo.shape[0] / pixels.shape[2]] * 2)


def _sorted(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Drop the boxes that overlap better ones; return the others, the largest first."""
    kept = suppress(boxes, scores, overlap)
    boxes, scores = boxes[kept], scores[kept]
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    return boxes[order], scores[order]


def _tiles(length: int) -> list[tuple[int, float, float]]:
    """Return where tiles begin along a length, and from where to where the middles of faces belong to each."""
    step = _TILE - _OVERLAP
    count = max(1, math.ceil((length - _OVERLAP) / step))
    limits = [-math.inf, *(k * step + _OVERLAP / 2 for k in range(1, count)), math.inf]
    return [(k * step, limits[k], limits[k + 1]) for k in range(count)]


def check_photo(photo: np.ndarray) -> None:
    """Require a non-empty (H, W, 3) uint8 array.

    Raises:
        HidaError: ``photo`` is anything else.
    """
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        got = f"{photo.dtype} {photo.shape}" if isinstance(photo, np.ndarray) else type(photo).__name__
        raise HidaError(f"a face is looked for in a uint8 array of height x width x 3, not in {got}; convert it first.")
    if photo.size == 0:
        raise HidaError(f"the photo is empty ({photo.shape[1]}x{photo.shape[0]} pixels); give one that shows a face.")


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Return the indices of the boxes (K, 4) that greedy non-maximum suppression keeps, the best score first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rest = np.argsort(-scores, kind="stable")
    kept = []
    while rest.size:
        best, rest = rest[0], rest[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        rest = rest[shared <= overlap * (areas[best] + areas[rest] - shared)]
    return np.array(kept, dtype=np.intp)


def _priors(level: int, rows: int, columns: int) -> Tensor:
    """Return the anchors of a feature map as (rows·columns·n, 4): centre x, y and width, height in pixels."""
    step, sides = _ANCHORS[level]
    cell = []
    for side, count in sides:
        # Dense anchors start at the cell's corner; a lone one in its middle: so the weights were trained.
        places = [0.5] if count == 1 else [i / count for i in range(count)]
        cell += [(x * step, y * step, side, side) for y in places for x in places]
    offsets = torch.tensor(cell, dtype=torch.float32)
    y, x = torch.meshgrid(torch.arange(rows) * step, torch.arange(columns) * step, indexing="ij")
    corners = torch.stack((x, y, torch.zeros_like(x), torch.zeros_like(x)), -1).float()
    return (corners[:, :, None] + offsets).reshape(-1, 4)
