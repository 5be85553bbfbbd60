"""Train the built-in depth predictor: photos in, 3DDFA_V2's depth, mask and points as the teacher."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from hida.depth.builtin import progress
from hida.depth.builtin.network import CROP_SIDE, DepthNet, expected_points
from hida.depth.builtin.options import Options, require_usable
from hida.depth.builtin.progress import Progress
from hida.depth.builtin.training_set import Faces, augment, list_photos, plain, teach
from hida.depth.tddfa import TDDFA
from hida.device import choose_device, to_channels_last
from hida.errors import HidaError, Interrupted, counted
from hida.files import atomic_path
from hida.weights.saving import save_tensors

SAVE_EVERY = 200
"""steps between two checkpoints"""


def loss(network: DepthNet, photo: Tensor, depth: Tensor, points: Tensor) -> dict[str, Tensor]:
    """Return the terms of the loss, weights included; their sum is minimised."""
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
    """Compare with the teacher on canonical crops: depth error and correlation, the mask's overlap, the points."""
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
    """Write convolutions in float16; vectors (biases, norms) stay float32: their range matters, their size does not."""
    state = {
        name: tensor.half() if tensor.ndim > 1 else tensor.float()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with atomic_path(path) as temporary:
        save_tensors(temporary, state, {})


@torch.no_grad()
def recalibrate(network: DepthNet, faces: Faces, generator: torch.Generator, batches: int = 32) -> None:
    """Give the EMA weights norms of their own: the statistics of other weights do not fit, averaged or not."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    network.train()
    for _ in range(batches):
        index = torch.randint(len(faces), (64,), generator=generator)
        network.raw(augment(faces.take(index).to(norms[0].weight.device), generator)[0] * 2 - 1)
    network.eval()


def train(options: Options, faces: Faces, before: Progress | None = None) -> tuple[DepthNet, float]:
    """Train on ``faces``; return the EMA network and the seconds it took.

    With ``options.checkpoint``, a signal that would end the process does so after the step has been saved.

    Args:
        before: what ``options.checkpoint`` holds of an earlier part of the same training.
    """
    torch.manual_seed(options.seed)
    device = choose_device(options.device)
    network = to_channels_last(DepthNet().to(device))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    networks, chosen = progress.Networks(network, averaged), progress.choices(options, len(faces))

    def schedule_after(step: int) -> torch.optim.lr_scheduler.OneCycleLR:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            options.lr,
            total_steps=options.steps + 1,
            pct_start=0.08,
            final_div_factor=100,
            last_epoch=step - 1,
        )

    schedule, first = schedule_after(0), 0
    start = time.perf_counter()
    if before and options.checkpoint:
        progress.require_same(before, chosen, options.checkpoint)
        progress.restore(before, networks, optimiser, options.checkpoint)
        first, start = before.step, start - before.seconds
        schedule = schedule_after(first) if first else schedule
    bar = tqdm(range(first, options.steps), initial=first, total=options.steps, desc="train", unit="step")
    with progress.held_signals(bool(options.checkpoint)) as signals:
        for step in bar:
            # A generator of its own for every step: resuming needs no stored state.
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
            index = torch.randint(len(faces), (options.batch,), generator=generator)
            photo, depth, points = augment(faces.take(index).to(device), generator)
            network.train()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=options.amp):
                terms = loss(network, photo.contiguous(memory_format=torch.channels_last), depth, points)
            optimiser.zero_grad(set_to_none=True)
            sum(terms.values(), torch.zeros((), device=device)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            averaged.update_parameters(network)
            if step % 10 == 0:
                bar.set_postfix({name: f"{term.item():.3f}" for name, term in terms.items()})
            if options.checkpoint and (signals or (step + 1) % SAVE_EVERY == 0):
                seconds, tensors = time.perf_counter() - start, progress.collect(networks, optimiser)
                progress.save(options.checkpoint, Progress(step + 1, seconds, chosen, tensors))
            if signals:
                bar.close()
                made = counted(step + 1, "step")
                print(f"stopped after {made}: the same command continues from '{options.checkpoint}'.")
                break
    if signals:
        signal.raise_signal(signals[0])
        raise Interrupted(number=signals[0])  # where that had no effect
    trained = averaged.module
    assert isinstance(trained, DepthNet)  # AveragedModel does not say that it copies what it is given
    recalibrate(trained, faces, torch.Generator().manual_seed(options.seed))
    return trained, time.perf_counter() - start


def run(options: Options) -> dict[str, Any]:
    """Train and save the predictor; return the report: sizes, minutes, errors on held-out and test photos.

    Raises:
        HidaError: an option is wrong, there are fewer photos than are held out, or the teacher's weights are missing.
    """
    require_usable(options)
    choose_device(options.device)
    before = progress.read(options.checkpoint) if options.checkpoint and options.checkpoint.exists() else None
    if before and options.checkpoint:
        unknown = int(before.options.get("faces", 0))  # until the photos are read
        progress.require_same(before, progress.choices(options, unknown), options.checkpoint)
    photos, test = list_photos(options.photos)
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(options.seed)).tolist()
    if len(photos) <= options.held_out:
        raise HidaError(f"{len(photos)} photos are too few when {options.held_out} are held out; give more photos.")
    teacher = TDDFA.load()
    held = teach([photos[i] for i in order[: options.held_out]], teacher, "held-out faces")
    faces = teach([photos[i] for i in order[options.held_out :]], teacher, "training faces")
    network, seconds = train(options, faces, before)
    save_weights(network, options.out)
    network = network.float().cpu()
    report: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters()), "photos": len(faces)}
    report |= {"steps": options.steps, "batch": options.batch, "minutes": round(seconds / 60, 1)}
    report["held_out"] = measure(network, held)
    if test and options.test:
        some = np.random.default_rng(options.seed).permutation(len(test))[: options.test]
        report["test"] = measure(network, teach([test[i] for i in some], teacher, "test faces"))
    return report
