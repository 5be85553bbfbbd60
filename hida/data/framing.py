"""From stored bytes to network input: random crops for training, the centred frame for drawing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hida.config import AugmentConfig, Fill
from hida.data.dataset import PairTensors
from hida.errors import HidaError

CROP = 256


class Batch(NamedTuple):
    """Network input: photo (N, 3, 256, 256) in [−1, 1], depth (N, 1, ·, ·) in [0, 1], style (N,), sketch in [−1, 1].

    ``teacher``: the sketch that another network drew, or None.
    """

    photo: Tensor
    depth: Tensor
    style: Tensor
    sketch: Tensor
    teacher: Tensor | None = None

    @property
    def taught(self) -> Tensor:
        """The teacher's sketch, of a batch that has to have one."""
        if self.teacher is None:
            raise ValueError("the pairs were given no teacher's sketches")
        return self.teacher


class Frame(NamedTuple):
    """Where each crop is: top, left (N,) in source pixels, and whether it is mirrored (N,)."""

    top: Tensor
    left: Tensor
    flip: Tensor

    def pixels(self, side: int) -> Pixels:
        """Return the pixels of the crops in pictures of a ``side``."""
        steps = torch.arange(CROP, device=self.top.device)
        columns = torch.where(self.flip[:, None], CROP - 1 - steps, steps) + self.left[:, None]
        rows = steps + self.top[:, None]
        inner_rows, inner_columns = rows.clamp(0, side - 1), columns.clamp(0, side - 1)
        inside = (rows == inner_rows)[:, :, None] & (columns == inner_columns)[:, None, :]
        return Pixels(inner_rows, inner_columns, inside)


class Pixels(NamedTuple):
    """The rows and columns (N, 256) of crops, the nearest ones of the picture, and where they are in it (N, 256, 256).

    Computed once for all pictures of a batch.
    """

    rows: Tensor
    columns: Tensor
    inside: Tensor


def draw_plan(index: Tensor, side: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw at random how each pair is framed: where it is cropped and mirrored, and how turned, scaled and re-coloured.

    Args:
        index: (N,), which pairs.
        side: of the stored pictures.
        generator: a CPU generator, the only source of random numbers, so that a resumed run draws the same ones.

    Returns:
        (N, 10), one row per pair, all that a device needs: index, top, left, flip, angle in radians, factor, and the
        four strengths of :func:`_jitter`. float32 is exact for every whole number that occurs.

    Raises:
        HidaError: if the pictures with their border are smaller than the crop.
    """
    n = len(index)
    if side + 2 * config.pad < CROP:
        raise HidaError(
            f"pictures of {side}×{side} with a border of {config.pad} are smaller than the crop of {CROP}×{CROP}; "
            f"set --augment.pad to {math.ceil((CROP - side) / 2)} or more."
        )

    def uniform(low: float, high: float, count: int = 1) -> Tensor:
        return torch.rand(count, n, generator=generator) * (high - low) + low

    room = side + 2 * config.pad - CROP
    top, left = torch.randint(0, room + 1, (2, n), generator=generator) - config.pad
    flip = torch.rand(n, generator=generator) < (0.5 if config.flip else 0.0)
    angle, factor, strength = torch.zeros(n), torch.ones(n), torch.zeros(4, n)
    if config.rotate or config.scale:
        angle = uniform(-config.rotate, config.rotate)[0] * math.pi / 180
        factor = 1 + uniform(-config.scale, config.scale)[0]
    if config.jitter:
        strength = config.jitter * uniform(-1, 1, 4)
    return torch.stack([column.float() for column in (index, top, left, flip, angle, factor, *strength)], 1)


def planned_batch(pairs: PairTensors, plan: Tensor, config: AugmentConfig) -> Batch:
    """Cut a batch out of ``pairs`` by ``plan`` (of :func:`draw_plan`, on the same device), without synchronising."""
    index, top, left, flip = plan[:, :4].long().unbind(1)
    angle, factor = plan[:, 4], plan[:, 5]
    pixels = Frame(top, left, flip.bool()).pixels(pairs.photo.shape[-1])
    photo = crop(pairs.photo, pixels, config.fill_photo, index)
    sketch = crop(pairs.sketch, pixels, config.fill_sketch, index)
    depth = crop(pairs.depth, pixels, "black", index)
    batch = _batch(photo, depth, pairs.style[index], sketch)
    if pairs.teacher is not None:
        batch = batch._replace(teacher=crop(pairs.teacher, pixels, config.fill_sketch, index).float() / 127.5 - 1)
    if config.rotate or config.scale:
        batch = _turn(batch, angle, factor, config)
    if config.jitter:
        batch = batch._replace(photo=_jitter(batch.photo, plan[:, 6:].T))
    return batch


def centred_batch(pairs: PairTensors, config: AugmentConfig) -> Batch:
    """Frame ``pairs`` for drawing: the middle 256×256 with the preset's fill, nothing random."""
    n, side = len(pairs), pairs.photo.shape[-1]
    offset = torch.full((n,), (side - CROP) // 2, device=pairs.photo.device)
    pixels = Frame(offset, offset, torch.zeros_like(offset, dtype=torch.bool)).pixels(side)
    photo = crop(pairs.photo, pixels, config.fill_photo)
    sketch = crop(pairs.sketch, pixels, config.fill_sketch)
    return _batch(photo, crop(pairs.depth, pixels, "black"), pairs.style, sketch)


def crop(images: Tensor, pixels: Pixels, fill: Fill, index: Tensor | None = None) -> Tensor:
    """Cut 256×256 crops, which may reach beyond the border, out of uint8 images.

    Args:
        images: (N, C, S, S).
        index: (K,), the pictures of the K crops; all of them, in order, if left out.

    Returns:
        (K, C, 256, 256) uint8.
    """
    item = (torch.arange(images.shape[0], device=images.device) if index is None else index)[:, None, None]
    # Contiguous: a CPU's convolutions would adopt the NHWC layout of this result, and are slower in it.
    result = images.permute(0, 2, 3, 1)[item, pixels.rows[:, :, None], pixels.columns[:, None, :]].permute(0, 3, 1, 2)
    result = result.contiguous()
    if fill == "replicate":
        return result
    return torch.where(pixels.inside[:, None], result, 255 if fill == "white" else 0)


def _batch(photo: Tensor, depth: Tensor, style: Tensor, sketch: Tensor) -> Batch:
    return Batch(photo.float() / 127.5 - 1, depth.float() / 255, style, sketch.float() / 127.5 - 1)


def _turn(batch: Batch, angle: Tensor, factor: Tensor, config: AugmentConfig) -> Batch:
    """Rotate and scale photo, depth and sketch together about the centre, bilinearly."""
    cos, sin, zero = angle.cos() / factor, angle.sin() / factor, torch.zeros_like(angle)
    matrix = torch.stack((torch.stack((cos, -sin, zero), 1), torch.stack((sin, cos, zero), 1)), 1)
    grid = functional.affine_grid(matrix, list(batch.depth.shape), align_corners=False)

    def sample(image: Tensor, fill: Fill, black: float) -> Tensor:
        if fill == "replicate":
            return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
        # Shifted so that the fill colour is the zero that grid_sample pads with.
        base = black if fill == "black" else 1.0
        return functional.grid_sample(image - base, grid, align_corners=False) + base

    return batch._replace(
        photo=sample(batch.photo, config.fill_photo, -1.0),
        depth=sample(batch.depth, "black", 0.0),
        sketch=sample(batch.sketch, config.fill_sketch, -1.0),
        teacher=None if batch.teacher is None else sample(batch.teacher, config.fill_sketch, -1.0),
    )


def _jitter(photo: Tensor, strength: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and gamma by ``strength`` (4, N) in [−1, 1]."""
    brightness, contrast, saturation, gamma = strength[:, :, None, None, None]
    image = (photo + 1) / 2
    image = image.clamp_min(1e-4) ** torch.exp(gamma)
    grey = 0.299 * image[:, :1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:]
    image = grey + (image - grey) * (1 + saturation)
    mean = grey.mean((2, 3), keepdim=True)
    image = (image - mean) * (1 + contrast) + mean + brightness / 2
    return image.clamp(0, 1) * 2 - 1
