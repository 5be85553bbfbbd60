"""Train the built-in depth predictor: photos in, 3DDFA_V2's depth, mask and points as the teacher.

    python -m hida.depth.train_builtin --photos FS2K --out depth.safetensors

A folder that holds anno_train.json is read as FS2K: its training pairs only, and 100 test photos for the last report.
Needs the 3DDFA weights (``hida weights fetch tddfa --accept-licence``). 1,058 photos, 1,150 steps: 20 minutes on one
CPU core.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from hida.data.alignment import apply, compose, similarity, warp
from hida.data.images import image_files, read_image
from hida.depth.builtin import CROP_SIDE, SIDE, DepthNet, expected_points, frame_to_crop
from hida.depth.tddfa import TDDFA
from hida.errors import HidaError, run_command
from hida.files import atomic_path

# The cached picture shows this many times the canonical crop, so that shifted and shrunken crops find pixels.
CACHE_SIDE, CACHE_GROW = 288, 1.6


@dataclass(frozen=True)
class Options:
    """Train the built-in depth predictor."""

    photos: tuple[Path, ...]
    """Folders of face photos; one that holds anno_train.json is read as FS2K."""
    out: Path
    """The .safetensors file to write (EMA weights, float16)."""
    steps: int = 1150
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.02
    ema: float = 0.995
    held_out: int = 58
    """Photos kept out of training and measured at the end."""
    test: int = 100
    """FS2K test photos measured at the end."""
    seed: int = 0
    device: str = "cpu"
    amp: bool = True
    """bfloat16 autocast."""
    checkpoint: Path | None = None
    """Saved every 200 steps, and resumed from when it exists."""


@dataclass
class Faces:
    """Teacher's pictures, in the enlarged canonical crop.

    photo: (N,3,S,S) uint8, edges replicated; inside: (N,1,S,S) uint8, 255 within the photo; depth: (N,1,S,S) uint8;
    points: (N,3,2) in shares of the canonical crop.
    """

    photo: Tensor
    inside: Tensor
    depth: Tensor
    points: Tensor

    def __len__(self) -> int:
        return len(self.photo)

    def take(self, index: Tensor) -> Faces:
        return Faces(self.photo[index], self.inside[index], self.depth[index], self.points[index])

    def to(self, device: str) -> Faces:
        return Faces(*(tensor.to(device) for tensor in (self.photo, self.inside, self.depth, self.points)))


def list_photos(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(training photos, test photos); the test photos are FS2K's."""
    train: list[Path] = []
    test: list[Path] = []
    for folder in folders:
        if (folder / "anno_train.json").is_file():
            for name, into in (("train", train), ("test", test)):
                for entry in json.loads((folder / f"anno_{name}.json").read_text()):
                    stem = folder / "photo" / entry["image_name"]
                    into.extend(sorted(stem.parent.glob(f"{stem.name}.*"))[:1])
        elif folder.is_dir():
            train += image_files(folder)
        else:
            raise HidaError(f"There is no folder {folder}; give folders of face photos.")
    if not train:
        raise HidaError(f"No photo was found in {', '.join(map(str, folders))}.")
    return train, test


def teach(photos: Sequence[Path], teacher: TDDFA, label: str) -> Faces:
    """Run the teacher over photos; those without a face are left out."""
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
        raise HidaError("No face was found in any of the photos.")
    photo, inside, depth, points = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return Faces(photo, inside, depth, points.float())


def crop(faces: Faces, transform: Tensor, fill: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut crops out of the cached pictures.

    transform: (N,2,3), output crop to canonical crop, both in [-1,1]; fill: (N,3,1,1) in [0,1], laid beyond the
    photo's edge, negative to keep the replicated edge. Returns photo in [0,1], depth in [0,1], points in shares.
    """
    grid = F.affine_grid(transform / CACHE_GROW, (len(faces), 1, SIDE, SIDE), align_corners=False)
    stacked = torch.cat((faces.photo, faces.inside, faces.depth), 1).float() / 255
    drawn = F.grid_sample(stacked, grid, padding_mode="border", align_corners=False)
    photo, inside, depth = drawn[:, :3], drawn[:, 3:4], drawn[:, 4:]
    photo = torch.where(fill < 0, photo, photo * inside + fill * (1 - inside))
    linear, shift = transform[:, :, :2], transform[:, :, 2]
    points = (faces.points * 2 - 1 - shift[:, None]) @ torch.linalg.inv(linear).transpose(1, 2)
    return photo, depth, (points + 1) / 2


def plain(faces: Faces) -> tuple[Tensor, Tensor, Tensor]:
    """The canonical crops as they are."""
    count, device = len(faces), faces.photo.device
    identity = torch.eye(2, 3, device=device).expand(count, 2, 3)
    return crop(faces, identity, torch.ones(count, 3, 1, 1, device=device))


def augment(faces: Faces, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops: geometry, then light, then damage."""
    count, device = len(faces), faces.photo.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(count, *shape, generator=generator)).to(device)

    def some(share: float) -> Tensor:
        return uniform(0, 1, 1, 1, 1) < share

    # Half of the crops lie as a detector's do, half as an aligned face does.
    strength = torch.where(uniform(0, 1) < 0.65, 1.0, 0.25)
    angle, scale = uniform(-30, 30).deg2rad() * strength, torch.exp(uniform(-0.25, 0.25) * strength)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    shift = uniform(-0.24, 0.24, 2) * strength[:, None]
    transform = torch.stack((cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]), 1).view(count, 2, 3)
    fill = torch.where(some(0.5), uniform(0, 1, 1, 1, 1).round(), uniform(0, 1, 3, 1, 1))
    photo, depth, points = crop(faces, transform, torch.where(some(0.4), -1.0, fill))
    # A mirrored face's left eye lies on the picture's right.
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


def loss(network: DepthNet, photo: Tensor, depth: Tensor, points: Tensor) -> dict[str, Tensor]:
    """Terms to be summed, weights included."""
    mask_logits, depth_logits, heat = (output.float() for output in network.raw(photo * 2 - 1))
    mask = (depth > 0.02).float()
    inner = torch.sigmoid(depth_logits)
    final = torch.sigmoid(mask_logits) * inner
    area = mask.sum().clamp_min(1)
    difference = (inner - depth) * mask
    slope = (difference.diff(dim=2).abs().sum() + difference.diff(dim=3).abs().sum()) / area
    # Points that a crop left out teach nothing.
    seen = ((points > 0.02) & (points < 0.98)).all(-1, keepdim=True).float()
    size = heat.shape[-1]
    place = (torch.arange(size, device=heat.device) + 0.5) / size
    sigma = 1.5 / size
    across = torch.exp(-((place - points[..., :1]) ** 2) / (2 * sigma**2))
    down = torch.exp(-((place - points[..., 1:]) ** 2) / (2 * sigma**2))
    target = down[..., :, None] * across[..., None, :]
    target = target / target.sum((2, 3), keepdim=True).clamp_min(1e-6)
    spread = -(target.flatten(2) * heat.flatten(2).log_softmax(-1)).sum(-1, keepdim=True)
    return {
        "mask": F.binary_cross_entropy_with_logits(mask_logits, mask),
        "depth": 4 * difference.abs().sum() / area,
        "final": 4 * (final - depth).abs().mean(),
        "slope": 2 * slope,
        "points": 20 * ((expected_points(heat) - points).abs() * seen).sum() / seen.sum().clamp_min(1) / 2,
        "heat": 0.1 * (spread * seen).sum() / seen.sum().clamp_min(1),
    }


@torch.inference_mode()
def measure(network: DepthNet, faces: Faces) -> dict[str, float]:
    """Against the teacher on canonical crops: depth error and correlation over the crop, the mask's overlap, points."""
    network.eval()
    rows = []
    for index in torch.arange(len(faces)).split(32):
        photo, depth, points = plain(faces.take(index))
        found, found_points = network(photo * 2 - 1)
        a, b = found.flatten(1), depth.flatten(1)
        inside = b > 0.02
        both, either = ((a > 0.02) & inside).sum(1), ((a > 0.02) | inside).sum(1)
        correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)])
        distance = (found_points - points).norm(dim=-1).mean(1) * CROP_SIDE
        face_error = ((a - b).abs() * inside).sum(1) / inside.sum(1)
        rows.append(torch.stack(((a - b).abs().mean(1), face_error, correlation, both / either, distance), 1))
    mean = torch.cat(rows).mean(0).tolist()
    names = ("depth_mae", "depth_mae_on_face", "correlation", "mask_iou", "points_px_of_250")
    return {"n": len(faces), **{name: round(value, 5) for name, value in zip(names, mean, strict=True)}}


def save_weights(network: DepthNet, path: Path) -> None:
    """float16 convolutions; vectors (biases, norms) stay float32, where the range matters and the size does not."""
    state = {
        name: tensor.half().contiguous() if tensor.ndim > 1 else tensor.float().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def train(options: Options, faces: Faces) -> tuple[DepthNet, float]:
    """Returns the EMA network and the seconds it took."""
    torch.manual_seed(options.seed)
    device = options.device
    network = DepthNet().to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.ema), use_buffers=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.lr, total_steps=options.steps + 1, pct_start=0.08, final_div_factor=100
    )
    parts = {"network": network, "averaged": averaged, "optimiser": optimiser, "schedule": schedule}
    first, spent = 0, 0.0
    if options.checkpoint and options.checkpoint.is_file():
        saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first, spent = saved["step"], saved["seconds"]
    start = time.perf_counter() - spent
    bar = tqdm(range(first, options.steps), initial=first, total=options.steps, desc="train", unit="step")
    for step in bar:
        # A generator of its own for every step: resuming needs no stored state.
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        index = torch.randint(len(faces), (options.batch,), generator=generator)
        photo, depth, points = augment(faces.take(index).to(device), generator)
        network.train()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=options.amp):
            terms = loss(network, photo.contiguous(memory_format=torch.channels_last), depth, points)
        optimiser.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        averaged.update_parameters(network)
        if step % 10 == 0:
            bar.set_postfix({name: f"{term.item():.3f}" for name, term in terms.items()})
        if options.checkpoint and (step + 1) % 200 == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            with atomic_path(options.checkpoint) as temporary:
                torch.save({**state, "step": step + 1, "seconds": time.perf_counter() - start}, temporary)
    return averaged.module, time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, prog="python -m hida.depth.train_builtin")
    photos, test = list_photos(options.photos)
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(options.seed)).tolist()
    if len(photos) <= options.held_out:
        raise HidaError(f"{len(photos)} photos are too few when {options.held_out} are held out; give more photos.")
    teacher = TDDFA.load()
    held = teach([photos[i] for i in order[: options.held_out]], teacher, "held-out faces")
    faces = teach([photos[i] for i in order[options.held_out :]], teacher, "training faces")
    network, seconds = train(options, faces)
    save_weights(network, options.out)
    network = network.float().cpu()
    report = {"parameters": sum(p.numel() for p in network.parameters()), "photos": len(faces)}
    report |= {"steps": options.steps, "batch": options.batch, "minutes": round(seconds / 60, 1)}
    report["held_out"] = measure(network, held)
    if test and options.test:
        some = np.random.default_rng(options.seed).permutation(len(test))[: options.test]
        report["test"] = measure(network, teach([test[i] for i in some], teacher, "test faces"))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(run_command(main))
