"""The training set of the built-in predictor: photos, the teacher's depth and points, and random crops of them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hida.depth.builtin.network import SIDE, frame_to_crop
from hida.depth.tddfa import TDDFA
from hida.documents import DocumentError, read_json
from hida.errors import HidaError
from hida.images.alignment import apply, compose, similarity, warp
from hida.images.io import image_files, read_image

# The cached picture shows this many times the canonical crop, so that shifted and shrunken crops find pixels.
CACHE_SIDE, CACHE_GROW = 288, 1.6


@dataclass
class Faces:
    """Photos and the teacher's answers, in the enlarged canonical crop.

    Args:
        photo: (N, 3, S, S) uint8, edges replicated.
        inside: (N, 1, S, S) uint8, 255 within the photo.
        depth: (N, 1, S, S) uint8.
        points: (N, 3, 2) in shares of the canonical crop.
    """

    photo: Tensor
    inside: Tensor
    depth: Tensor
    points: Tensor

    def __len__(self) -> int:
        return len(self.photo)

    def take(self, index: Tensor) -> Faces:
        return Faces(self.photo[index], self.inside[index], self.depth[index], self.points[index])

    def to(self, device: str | torch.device) -> Faces:
        return Faces(*(tensor.to(device) for tensor in (self.photo, self.inside, self.depth, self.points)))


def list_photos(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the training photos and the test photos of ``folders``; the test photos are FS2K's.

    Raises:
        HidaError: a folder is missing, or none holds a photo.
    """
    train: list[Path] = []
    test: list[Path] = []
    for folder in folders:
        if (folder / "anno_train.json").is_file():
            for name, into in (("train", train), ("test", test)):
                for image in _listed(folder / f"anno_{name}.json"):
                    stem = folder / "photo" / image
                    into.extend(sorted(stem.parent.glob(f"{glob.escape(stem.name)}.*"))[:1])
        elif folder.is_dir():
            train += image_files(folder)
        else:
            raise HidaError(f"there is no folder {folder}; give folders of face photos.")
    if not train:
        raise HidaError(f"no photo was found in {', '.join(map(str, folders))}; give folders of face photos.")
    return train, test


def _listed(annotation: Path) -> list[str]:
    """Return the photos that an annotation of FS2K names."""
    try:
        return [entry.field("image_name").path() for entry in read_json(annotation).items()]
    except DocumentError as error:
        raise HidaError(f"'{annotation}' is damaged ({error}); take the file from the data set again.") from None


def teach(photos: Sequence[Path], teacher: TDDFA, label: str) -> Faces:
    """Run the teacher over photos; those without a face are left out.

    Raises:
        HidaError: none shows a face.
    """
    margin = (CACHE_GROW - 1) / 2
    scale = CACHE_SIDE / CACHE_GROW / SIDE
    # Canonical crop of 128 -> cached picture: scaled about the pixel edges, shifted by the margin.
    enlarge = np.array([[scale, 0, 0], [0, scale, 0]])
    enlarge[:, 2] = margin * SIDE * scale + 0.5 * scale - 0.5
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for path in tqdm(photos, desc=label, unit="photo"):
        photo = np.asarray(read_image(path))
        faces = teacher.faces(photo)
        if not faces:
            continue
        to_crop = compose(similarity(faces[0].points), frame_to_crop())
        to_cache = compose(to_crop, enlarge)
        size = (CACHE_SIDE, CACHE_SIDE)
        inside = np.full(photo.shape[:2], 255, np.uint8)
        rows.append(
            (
                warp(photo, to_cache, size, fill="replicate").transpose(2, 0, 1),
                warp(inside, to_cache, size, fill="black", resample="nearest")[None],
                np.rint(faces[0].depth(size, to_cache) * 255).astype(np.uint8)[None],
                (apply(to_crop, faces[0].points) + 0.5) / SIDE,
            )
        )
    if not rows:
        raise HidaError("no face was found in any of the photos; give photos of faces, upright and not cut off.")
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return Faces(columns[0], columns[1], columns[2], columns[3].float())


def crop(faces: Faces, transform: Tensor, fill: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut crops out of the cached pictures.

    Args:
        faces: the training set, or a part of it.
        transform: (N, 2, 3), output crop to canonical crop, both in [−1, 1].
        fill: (N, 3, 1, 1) in [0, 1], laid beyond the photo's edge, negative to keep the replicated edge.

    Returns:
        Photo in [0, 1], depth in [0, 1], points in shares of the crop.
    """
    grid = F.affine_grid(transform / CACHE_GROW, [len(faces), 1, SIDE, SIDE], align_corners=False)
    stacked = torch.cat((faces.photo, faces.inside, faces.depth), 1).float() / 255
    drawn = F.grid_sample(stacked, grid, padding_mode="border", align_corners=False)
    photo, inside, depth = drawn[:, :3], drawn[:, 3:4], drawn[:, 4:]
    photo = torch.where(fill < 0, photo, photo * inside + fill * (1 - inside))
    linear, shift = transform[:, :, :2], transform[:, :, 2]
    points = (faces.points * 2 - 1 - shift[:, None]) @ torch.linalg.inv(linear).transpose(1, 2)
    return photo, depth, (points + 1) / 2


def plain(faces: Faces) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the canonical crops as they are; returns as :func:`crop`."""
    count, device = len(faces), faces.photo.device
    identity = torch.eye(2, 3, device=device).expand(count, 2, 3)
    return crop(faces, identity, torch.ones(count, 3, 1, 1, device=device))


def augment(faces: Faces, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Cut random crops: geometry, then light, then damage; returns as :func:`crop`."""
    count, device = len(faces), faces.photo.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(count, *shape, generator=generator)).to(device)

    def some(share: float) -> Tensor:
        return uniform(0, 1, 1, 1, 1) < share

    # Half of the crops are placed as a detector's are, half as an aligned face is.
    strength = torch.where(uniform(0, 1) < 0.65, 1.0, 0.25)
    angle, scale = uniform(-30, 30).deg2rad() * strength, torch.exp(uniform(-0.25, 0.25) * strength)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    shift = uniform(-0.24, 0.24, 2) * strength[:, None]
    transform = torch.stack((cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]), 1).view(count, 2, 3)
    fill = torch.where(some(0.5), uniform(0, 1, 1, 1, 1).round(), uniform(0, 1, 3, 1, 1))
    photo, depth, points = crop(faces, transform, torch.where(some(0.4), -1.0, fill))
    # A mirrored face's left eye is on the picture's right.
    points = torch.where(mirror[:, None, None] < 0, points[:, [1, 0, 2]], points)

    photo = photo * uniform(0.65, 1.4, 1, 1, 1) * uniform(0.85, 1.15, 3, 1, 1)
    centre = photo.mean((1, 2, 3), keepdim=True)
    photo = (photo - centre) * uniform(0.6, 1.4, 1, 1, 1) + centre + uniform(-0.08, 0.08, 1, 1, 1)
    photo = photo.clamp(0, 1) ** torch.exp(uniform(-0.35, 0.35, 1, 1, 1))
    grey = photo.mean(1, keepdim=True)
    saturation = torch.where(some(0.2), 0.0, uniform(0.5, 1.3, 1, 1, 1))
    photo = grey + (photo - grey) * saturation
    # Light from one side.
    ramp = torch.linspace(-1, 1, SIDE, device=device)
    slope = uniform(-0.3, 0.3, 1, 1, 1) * ramp + uniform(-0.2, 0.2, 1, 1, 1) * ramp[:, None]
    photo = photo * (1 + torch.where(some(0.4), slope, torch.zeros_like(slope)))

    small = F.interpolate(F.avg_pool2d(photo, 2), scale_factor=2.0, mode="bilinear")
    smaller = F.interpolate(F.avg_pool2d(photo, 4), scale_factor=4.0, mode="bilinear")
    photo = torch.where(some(0.25), small, torch.where(some(0.12), smaller, photo))
    noise = torch.randn(photo.shape, generator=generator).to(device)
    photo = (
        photo + torch.where(some(0.35), uniform(0, 0.06, 1, 1, 1), torch.zeros(count, 1, 1, 1, device=device)) * noise
    )
    # A rectangle of one colour over part of the face: hands, hair, microphones.
    x0, y0 = uniform(0, 0.9, 1, 1, 1), uniform(0, 0.9, 1, 1, 1)
    x1, y1 = x0 + uniform(0.08, 0.35, 1, 1, 1), y0 + uniform(0.08, 0.35, 1, 1, 1)
    place = (torch.arange(SIDE, device=device) + 0.5) / SIDE
    hole = (place > x0) & (place < x1) & (place[:, None] > y0) & (place[:, None] < y1) & some(0.35)
    photo = torch.where(hole, uniform(0, 1, 3, 1, 1), photo)
    return photo.clamp(0, 1), depth, points
