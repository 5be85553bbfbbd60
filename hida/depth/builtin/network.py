"""The built-in depth predictor: a small network that imitates 3DDFA_V2, without its basis, its licence or its mesh.

One pass over a 128×128 face crop gives the depth, the face's mask and three points. Trained by
:mod:`hida.depth.builtin.train`; the weights ship with HIDA (see hida/assets/depth.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hida.depth.face import Face, FaceModel
from hida.depth.faceboxes import FaceBoxes, check_photo
from hida.depth.folding import fold
from hida.depth.search import find_faces, find_group
from hida.device import to_channels_last
from hida.errors import HidaError
from hida.images.alignment import compose, invert, similarity, warp
from hida.weights import find
from hida.weights.foreign import fill, load_state

SIDE = 128
# The crop's place in the aligned 250×250 frame: it holds the 3DDFA mesh of every FS2K face, profiles included.
FRAME_SIDE, CROP_LEFT, CROP_TOP, CROP_SIDE = 250, 20, 26, 208
# The same place told from a detector's box: lower by this share of its mean side, and this many times as large.
_DOWN, _GROW = 0.04, 1.39


class _Conv(nn.Module):
    """Convolve, normalise and, unless linear, apply ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.linear else F.relu(x, inplace=True)

    def fold(self) -> None:
        self.conv, self.bn = fold(self.conv, self.bn)


class _Block(nn.Module):
    """Add an inverted residual: widen, depthwise 3×3, narrow (MobileNetV2, https://arxiv.org/abs/1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, expand: int = 3) -> None:
        super().__init__()
        wide = inputs * expand
        self.widen = _Conv(inputs, wide, 1) if expand > 1 else nn.Identity()
        self.depthwise = _Conv(wide, wide, 3, stride, groups=wide)
        self.narrow = _Conv(wide, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.residual else y


class _Up(nn.Module):
    """Double the size bilinearly, add the encoder's map of that size, then apply a block."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.below = _Conv(inputs, outputs, 1, linear=True)
        self.across = _Conv(skip, outputs, 1, linear=True)
        self.block = _Block(outputs, outputs, expand=2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.below(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.block(x + self.across(skip))


class DepthNet(nn.Module):
    """Predict depth and points by a U-Net of separable blocks: 128² down to 4², back to 64², shuffled up to 128²."""

    def __init__(self) -> None:
        super().__init__()
        # Work at 64² costs most: narrow there, wide below.
        self.stem = nn.Sequential(_Conv(3, 24, 3, stride=2), _Block(24, 24, expand=1))
        widths, counts = (24, 48, 96, 160, 192), (2, 3, 3, 2)
        self.down = nn.ModuleList(
            nn.Sequential(_Block(a, b, stride=2, expand=2), *(_Block(b, b) for _ in range(n - 1)))
            for a, b, n in zip(widths, widths[1:], counts, strict=False)
        )
        self.up = nn.ModuleList([_Up(192, 160, 160), _Up(160, 96, 96), _Up(96, 48, 48), _Up(48, 24, 24)])
        self.maps = nn.Conv2d(24, 2 * 4, 3, padding=1)
        self.heat = nn.Conv2d(24, 3, 3, padding=1)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of mask and depth, (N, 1, 128, 128) each, and of the points (N, 3, 64, 64).

        Args:
            x: (N, 3, 128, 128) RGB in [−1, 1].
        """
        skips = [self.stem(x)]
        for stage in self.down:
            skips.append(stage(skips[-1]))
        y = skips.pop()
        for stage in self.up:
            y = stage(y, skips.pop())
        mask, depth = F.pixel_shuffle(self.maps(y), 2).split(1, dim=1)
        return mask, depth, self.heat(y)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return depth (N, 1, 128, 128) in [0, 1] and points (N, 3, 2) in shares of the crop.

        Args:
            x: (N, 3, 128, 128) RGB in [−1, 1].
        """
        mask, depth, heat = self.raw(x)
        return torch.sigmoid(mask) * torch.sigmoid(depth), expected_points(heat)

    def fold(self) -> DepthNet:
        """Fold every batch norm into its convolution, in place; for inference only."""
        self.eval()
        for module in self.modules():
            if isinstance(module, _Conv):
                module.fold()
        return self.requires_grad_(False)


def expected_points(heat: Tensor) -> Tensor:
    """Return the soft-argmax of (N, K, h, w) logits: (N, K, 2) expected (x, y), 0 at the left or upper edge."""
    height, width = heat.shape[-2:]
    share = heat.float().flatten(2).softmax(-1).view(heat.shape)
    across = (torch.arange(width, device=heat.device) + 0.5) / width
    down = (torch.arange(height, device=heat.device) + 0.5) / height
    return torch.stack(((share.sum(2) * across).sum(-1), (share.sum(3) * down).sum(-1)), -1)


def frame_to_crop(side: int = SIDE) -> np.ndarray:
    """Return the 2×3 matrix from pixels of the aligned 250-frame to pixels of the canonical crop of ``side``."""
    return square_to_crop(CROP_LEFT - 0.5, CROP_TOP - 0.5, CROP_SIDE, side)


def square_to_crop(left: float, top: float, length: float, side: int = SIDE) -> np.ndarray:
    """Return the 2×3 matrix from pixels of a picture to pixels of its upright square cut out and scaled to ``side``.

    Args:
        left, top: the square's outer edge, where pixel centres are whole numbers.
        length: the square's side.
        side: that of the result.
    """
    scale = side / length
    return np.array([[scale, 0, -left * scale - 0.5], [0, scale, -top * scale - 0.5]])


@dataclass(frozen=True)
class BuiltinFace(Face):
    """A face whose points and depth are predicted when first asked for. It keeps the photo."""

    model: BuiltinDepth = field(repr=False, compare=False)
    photo: np.ndarray = field(repr=False, compare=False)
    square: tuple[float, float, float] = field(repr=False)

    @cached_property
    def _seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The photo-to-crop matrix, depth (128, 128) of that crop, points (3, 2) in the photo."""
        first = square_to_crop(*self.square)
        _, rough = self.model.look(self.photo, first)
        # A second look at the face put upright and in its place: what the network knows best.
        second = compose(similarity(rough), frame_to_crop())
        if not 0.3 < _ratio(second, first) < 3.5:
            second = first  # points that would have the face shrink or grow that much are no points of a face
        depth, points = self.model.look(self.photo, second)
        return second, depth, points

    @property
    def points(self) -> np.ndarray:
        return self._seen[2].copy()

    def depth(self, size: tuple[int, int], matrix: np.ndarray | None = None) -> np.ndarray:
        to_crop, depth, _ = self._seen
        to_target = invert(to_crop) if matrix is None else compose(invert(to_crop), matrix)
        return np.clip(warp(depth, to_target, size, fill="black", resample="bicubic"), 0, 1)


class BuiltinDepth(FaceModel):
    """FaceBoxes and :class:`DepthNet` together."""

    def __init__(self, detector: FaceBoxes, network: DepthNet) -> None:
        """Take the two networks; ``network`` is folded for inference."""
        # Channels last: a quarter faster on a CPU, where depthwise convolutions wait for memory.
        self.detector, self.network = detector, to_channels_last(network.fold())

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> BuiltinDepth:
        """Read the packaged weights, or other depth weights from ``path``.

        Raises:
            HidaError: a file is missing or does not fit.
        """
        path = find("depth", path)
        network = DepthNet()
        fill(network, load_state(path), path)
        return cls(FaceBoxes.from_file(find("faceboxes")), network).to(device)

    def to(self, device: str | torch.device) -> BuiltinDepth:
        self.detector.to(device)
        self.network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.network.maps.weight.device

    def faces(self, photo: np.ndarray) -> list[Face]:
        """Return the faces in an (H, W, 3) uint8 RGB photo, the largest first; none when the detector sees none."""
        check_photo(photo)
        return find_faces(photo, self.detector, self._faces)

    def group(self, photo: np.ndarray) -> list[Face]:
        """Return the faces of a photo that are worth drawing; see :func:`hida.depth.search.find_group`."""
        check_photo(photo)
        return find_group(photo, self.detector, self._faces)

    def _faces(self, photo: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> list[Face]:
        """Return the faces in ``boxes`` that are larger than a pixel."""
        found: list[Face] = []
        for box, score in zip(boxes.tolist(), scores.tolist(), strict=True):
            left, top, right, bottom = box
            mean = (right - left + bottom - top) / 2
            if mean < 1:
                continue
            side = mean * _GROW
            square = ((left + right - side) / 2, (top + bottom - side) / 2 + mean * _DOWN, side)
            found.append(BuiltinFace((left, top, right, bottom), score, self, photo, square))
        return found

    def whole(self, photo: np.ndarray) -> Face:
        """Return the photo as one face that fills it, of score 0, for pictures in which the detector sees none."""
        check_photo(photo)
        height, width = photo.shape[:2]
        side = max(height, width)
        square = ((width - side) / 2 - 0.5, (height - side) / 2 - 0.5, float(side))
        return BuiltinFace((0.0, 0.0, float(width), float(height)), 0.0, self, photo, square)

    @torch.inference_mode()
    def look(self, photo: np.ndarray, to_crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict from the crop of an RGB photo that the 2×3 ``to_crop`` draws.

        Returns:
            The crop's depth (128, 128) float32 in [0, 1] and the three points (3, 2) in pixels of the photo.
        """
        pixels = torch.from_numpy(warp(photo, to_crop, (SIDE, SIDE), fill="replicate", resample="bilinear"))
        x = pixels.to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        depth, points = self.network(x.contiguous(memory_format=torch.channels_last))
        back = invert(to_crop)
        crop_points = points[0].double().cpu().numpy() * SIDE - 0.5
        return _stretch(depth)[0, 0].float().cpu().numpy(), crop_points @ back[:, :2].T + back[:, 2]

    @torch.inference_mode()
    def depth_batch(self, photos: Tensor) -> Tensor:
        """Predict the depth of photos that are aligned already; no detector is run.

        Args:
            photos: (N, 3, H, W) in [−1, 1], each the aligned frame (eyes near (95, 107) and (152, 107), mouth
                (124, 169) of 250) at any size.

        Returns:
            (N, 1, H, W) float32 in [0, 1] on the photos' device, without gradient.

        Raises:
            HidaError: ``photos`` has another shape.
        """
        if photos.ndim != 4 or photos.shape[1] != 3 or min(photos.shape[2:]) < 8:
            raise HidaError(
                f"depth_batch takes photos of N×3×H×W, at least 8×8, not {tuple(photos.shape)}; resize them."
            )
        height, width = photos.shape[2:]
        left, right = (round(edge * width / FRAME_SIDE) for edge in (CROP_LEFT, CROP_LEFT + CROP_SIDE))
        top, bottom = (round(edge * height / FRAME_SIDE) for edge in (CROP_TOP, CROP_TOP + CROP_SIDE))
        result = torch.zeros(len(photos), 1, height, width, device=photos.device)
        if len(photos) == 0:
            return result
        crop = photos[:, :, top:bottom, left:right].to(self.device, torch.float32)
        crop = F.interpolate(crop, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        depth = _stretch(self.network(crop.contiguous(memory_format=torch.channels_last))[0].float())
        depth = F.interpolate(depth, (bottom - top, right - left), mode="bilinear", align_corners=False)
        result[:, :, top:bottom, left:right] = depth.to(photos.device)
        return result


def _stretch(depth: Tensor) -> Tensor:
    """Bring each map's nearest point to 1, as 3DDFA's is; a map that shows next to nothing is left alone."""
    nearest = depth.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(nearest > 0.2, depth / nearest.clamp_min(0.2), depth)


def _ratio(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(a[:, :2]) / np.linalg.det(b[:, :2]))))
