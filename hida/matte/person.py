"""The matte of the people in any photo: seen as a whole, seen closer around each face, and refined to full size.

The network takes squares of 256 pixels and knows one person's head and shoulders best. A photo is therefore seen as a
whole, squeezed into the square as the network was trained, and once more around every face that fills little of it.
What is computed so is rough: a guided filter brings the edges of the photo into it. Coordinates are pixels with
integers at pixel centres.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hida import weights
from hida.errors import HidaWarning, warn
from hida.images.alignment import apply, invert, scale_of, similarity
from hida.matte.guided import guided_filter
from hida.matte.network import SIDE, SelfieSegmentation

WORK = 768
"""Longest side of the picture on which the matte is put together."""
CLOSE_UP, CLOSE_CENTRE = 790.0, (123.5, 233.0)
"""Side of the square around a face, and its middle, in pixels of the frame where faces are aligned: head and chest."""
WORTHWHILE = 0.8
"""A close-up is taken where its side is below this share of the photo's longest side."""
MOST_CLOSE_UPS = 32
WHOLE = 0.25
"""Weight of what was seen of the whole photo; a close-up's is 1."""
FADE = 0.15
"""Share of a close-up's side over which it gives way to what was seen of the whole."""
FACE = (123.5, 135.0), (42.0, 60.0)
"""Middle and half axes, in the same frame, of an ellipse inside of any face: always a person's."""
PARTS = 128, 0.35
"""Longest side of the picture in which separate parts are looked for, and how sure a part's pixels are."""
NEAR = 4
"""Pixels of that picture around people where the matte is believed: hair in the wind is there."""
PART = 0.25
"""A part without a face is kept if it is this share of the largest one with a face."""
LEAST = 0.02
"""A photo without a face shows a person if at least this share of its pixels is one's."""
RADIUS, STRENGTH = 1 / 96, 1e-3
"""Of the guided filter: radius as a share of the longest side, about 3 pixels of the network's picture, and the
variance of an edge in a photo on [0, 1]."""


class NoPersonWarning(HidaWarning):
    """No person was found in a photo whose background was to be left out."""


@torch.inference_mode()
def person_matte(
    photo: np.ndarray, faces: Sequence[np.ndarray] = (), device: str | torch.device = "cpu"
) -> np.ndarray | None:
    """Return how much of each pixel is a person's.

    Args:
        photo: (H, W, 3) uint8 RGB.
        faces: for each face that is known the points (3, 2) of its eyes and its mouth, the largest face first. They
            tell how the photo is turned, where to look closer, and which parts are people. None is needed.
        device: where the network runs.

    Returns:
        (H, W) uint8, 255 inside of people, or None, with a warning, if there are none.
    """
    quarters = _quarters(faces)
    if quarters:
        height, width = photo.shape[:2]
        upright = [_turn(face, (width, height), quarters) for face in faces]
        turned = person_matte(np.rot90(photo, quarters), upright, device)
        return None if turned is None else np.ascontiguousarray(np.rot90(turned, -quarters))
    image = Image.fromarray(np.ascontiguousarray(photo))
    scale = min(1.0, WORK / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    small = np.array([[scale, 0, scale / 2 - 0.5], [0, scale, scale / 2 - 0.5]])
    frames = [similarity(apply(small, face)) for face in faces]
    network = _network(str(weights.find("matte")), str(device))
    rough = _rough(network, image, frames[:MOST_CLOSE_UPS], (width, height))
    for frame in frames:
        torch.maximum(rough, _inside_face(frame, (width, height)), out=rough)
    if not frames and (rough > 0.5).float().mean() < LEAST:
        warn("no person was found in the photo: its background is kept", NoPersonWarning)
        return None
    rough *= _near_people(rough, [apply(invert(frame), FACE[0]) for frame in frames])
    grey = image.convert("L")
    guide = torch.from_numpy(np.array(grey.resize((width, height), Image.Resampling.BOX))).float() / 255
    a, b = guided_filter(guide, rough, max(2, round(max(width, height) * RADIUS)), STRENGTH)
    full = F.interpolate(torch.stack((a / 255, b))[None], grey.size[::-1], mode="bilinear", align_corners=False)[0]
    matte = full[0].mul_(torch.from_numpy(np.array(grey))).add_(full[1])
    return matte.clamp_(0, 1).mul_(255).round_().to(torch.uint8).numpy()


@functools.lru_cache(maxsize=4)
def _network(path: str, device: str) -> SelfieSegmentation:
    return SelfieSegmentation.from_file(path).to(device)


def _rough(
    network: SelfieSegmentation, image: Image.Image, frames: Sequence[np.ndarray], size: tuple[int, int]
) -> Tensor:
    """Return (H, W) in [0, 1] of ``size``: the photo as a whole, and where there are close-ups mostly those."""
    width, height = size
    total = WHOLE * _enlarged(_seen(network, image, (0, 0, *image.size)), size)
    weight = torch.full((height, width), WHOLE)
    for frame in frames:
        side = CLOSE_UP / scale_of(frame)
        if side >= WORTHWHILE * max(size):
            continue
        x, y = apply(invert(frame), CLOSE_CENTRE)
        left, right = (round(min(max(at, 0), width)) for at in (x - side / 2, x + side / 2))
        top, bottom = (round(min(max(at, 0), height)) for at in (y - side / 2, y + side / 2))
        if left >= right or top >= bottom:
            continue
        factors = np.array(image.size * 2) / (width, height, width, height)
        seen = _seen(network, image, tuple((np.array([left, top, right, bottom]) * factors).tolist()))
        window = _ramp(top, bottom, height, FADE * side)[:, None] * _ramp(left, right, width, FADE * side)
        total[top:bottom, left:right] += window * _enlarged(seen, (right - left, bottom - top))
        weight[top:bottom, left:right] += window
    return total / weight


def _seen(network: SelfieSegmentation, image: Image.Image, box: tuple[float, float, float, float]) -> Tensor:
    """Return what the network makes of a part of the photo, (1, 1, 256, 256): its mean over the part and its mirror."""
    square = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    device = next(network.parameters()).device
    x = torch.from_numpy(np.array(square)).to(device).permute(2, 0, 1)[None].float() / 255
    both = network(torch.cat((x, x.flip(3))))
    return ((both[:1] + both[1:].flip(3)) / 2).cpu()


def _enlarged(seen: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(seen, size[::-1], mode="bilinear", align_corners=False, antialias=True)[0, 0]


def _ramp(start: int, end: int, length: int, over: float) -> Tensor:
    """Return weights for places ``start`` to ``end`` of a length, which rise over ``over`` from ends within it."""
    at = torch.arange(end - start) + 0.5
    rising = at / over if start > 0 else torch.ones_like(at)
    falling = (end - start - at) / over if end < length else torch.ones_like(at)
    return torch.minimum(rising, falling).clamp(0, 1)


def _inside_face(frame: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return (H, W): 1 in the middle of the face that the matrix ``frame`` brings to its place, 0 outside of it."""
    x, y = torch.arange(size[0], dtype=torch.float32), torch.arange(size[1], dtype=torch.float32)[:, None]
    (a, b, c), (d, e, f) = frame.tolist()
    (u, v), (half_width, half_height) = FACE
    distance = ((a * x + b * y + c - u) / half_width) ** 2 + ((d * x + e * y + f - v) / half_height) ** 2
    return (3 * (1 - distance)).clamp(0, 1)


def _near_people(rough: Tensor, faces: Sequence[np.ndarray]) -> Tensor:
    """Return (H, W): 1 near people, 0 elsewhere.

    What the network is sure of is divided into connected parts; people are those with a face, and any other that is
    not small.

    Args:
        rough: (H, W) in [0, 1].
        faces: (2,), the middles of the faces in it.
    """
    longest, sure = PARTS
    scale = min(1.0, longest / max(rough.shape))
    rows, columns = (max(1, round(length * scale)) for length in rough.shape)
    mask = (F.interpolate(rough[None, None], (rows, columns), mode="area") > sure).float()
    # The largest number of a part spreads through it.
    numbers = mask * (torch.arange(rows * columns) + 1.0).view(1, 1, rows, columns)
    while True:
        spread = F.max_pool2d(numbers, 3, 1, 1) * mask
        if torch.equal(spread, numbers):
            break
        numbers = spread
    counts = torch.bincount(numbers.flatten().long())
    counts[0] = 0
    kept = torch.zeros_like(counts, dtype=torch.bool)
    for x, y in faces:
        column, row = (
            min(max(round((float(at) + 0.5) * scale - 0.5), 0), length - 1) for at, length in ((x, columns), (y, rows))
        )
        kept[int(numbers[0, 0, row, column])] = True
    kept[0] = False
    kept |= counts >= PART * (counts[kept] if kept.any() else counts).max()
    kept[0] = False
    people = kept[numbers.long()].float()
    near = F.max_pool2d(people, 2 * NEAR + 1, 1, NEAR)
    return F.interpolate(near, rough.shape, mode="bilinear", align_corners=False)[0, 0]


def _quarters(faces: Sequence[np.ndarray]) -> int:
    """Return by how many quarters (of np.rot90) the largest face becomes upright."""
    if not len(faces):
        return 0
    x, y = faces[0][1] - faces[0][0]
    return round(math.atan2(y, x) / (math.pi / 2)) % 4


def _turn(points: np.ndarray, size: tuple[int, int], quarters: int) -> np.ndarray:
    """Return ``points`` of a photo of ``size`` in pixels of ``np.rot90(photo, quarters)``."""
    width, height = size
    for _ in range(quarters):
        points = np.stack((points[:, 1], width - 1 - points[:, 0]), 1)
        width, height = height, width
    return points
