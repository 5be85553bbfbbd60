"""FID and KID: distances between two sets of images in the 2015 Inception's feature space.

Source: Heusel et al., NeurIPS 2017 (arXiv:1706.08500), FID; Bińkowski et al., ICLR 2018 (arXiv:1801.01401), KID.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hida.errors import HidaError
from hida.metrics.inception import load_inception
from hida.metrics.inputs import as_batch

_BATCH = 16
_NORMAL = 1.959964  # of 95 %


def fid(a: Any, b: Any, tap: int = 2048) -> float:
    """Compute the Fréchet distance of the Inception features of two sets of images.

    It is 0 for equal sets, symmetric, and biased upwards for small n: never compare values of unequal n.

    Args:
        a, b: a folder (searched to any depth), a list of paths, or a uint8 or [0, 1] float tensor (N, 1|3, H, W).
            Files are read as RGB, grey is copied to three channels, each image is brought to 299×299.
        tap: 2048 (pool3, the published FID), 768, 192 or 64.

    Raises:
        HidaError: for fewer than two images on a side, an unreadable file, or missing Inception weights.
    """
    return frechet_distance(features(a, tap), features(b, tap))


def kid(a: Any, b: Any, subsets: int = 0, subset_size: int = 1000, seed: int = 0) -> float:
    """Compute the squared maximum mean discrepancy of pool3 features, kernel (x·y/2048 + 1)³.

    The estimate is unbiased, so it may be below 0. By default it uses all pairs at once, which is the limit of the mean
    over random subsets that other tools report.

    Args:
        a, b: as :func:`fid` takes them.
        subsets: if above 0, the result is the mean over so many random subsets.
        subset_size: images per subset, at most those of the smaller set.
        seed: of the random subsets.

    Raises:
        HidaError: as :func:`fid` does, or for subsets of fewer than two images.
    """
    return kernel_distance(features(a), features(b), subsets, subset_size, seed)


def features(images: Any, tap: int = 2048) -> np.ndarray:
    """Return the Inception features (N, tap) float64 of a set, given as :func:`fid` takes it."""
    rows = [np.zeros((0, tap))]
    rows += [inception_features(batch, tap) for batch in _batches(images)]
    return np.concatenate(rows)


def inception_features(batch: Tensor, tap: int = 2048) -> np.ndarray:
    """Return the features (N, tap) float64, computed in float32, of a uint8 or [0, 1] float batch (N, 1|3, H, W)."""
    pixels, _ = as_batch(batch)
    network = load_inception(device=pixels.device)
    found = [np.zeros((0, tap))]
    with torch.inference_mode():
        for part in pixels.split(_BATCH):
            scaled = (part / 255).float().expand(-1, 3, -1, -1)
            found.append(network(scaled.contiguous(memory_format=torch.channels_last), tap).double().cpu().numpy())
    return np.concatenate(found)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Compute ‖μ₁−μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of two feature sets (N, D), (M, D), in float64.

    The trace of the root is the nuclear norm of A·Bᵀ for centred features A, B with Σ = AᵀA: no matrix root, and
    exactly real and non-negative.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    for x in (a, b):
        if len(x) < 2:
            raise HidaError(f"FID needs at least two images in each set, not {len(x)}; add some.")
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a, root_b = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    cross = np.linalg.svd(_fewer_rows(root_a) @ _fewer_rows(root_b).T, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum()
    # Never negative but for rounding.
    return max(0.0, float(np.square(mean_a - mean_b).sum() + spread - 2 * cross))


def _fewer_rows(x: np.ndarray) -> np.ndarray:
    """Return the triangular factor, which has the same products, of a matrix with more rows than columns."""
    return np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x


def kernel_distance(a: np.ndarray, b: np.ndarray, subsets: int = 0, subset_size: int = 1000, seed: int = 0) -> float:
    """Compute the unbiased squared MMD of two feature sets (N, D), (M, D); see :func:`kid`."""
    for x in (a, b):
        if len(x) < 2:
            raise HidaError(f"KID needs at least two images in each set, not {len(x)}; add some.")
    aa, bb, ab = _kernels(a, b)
    if subsets <= 0:
        return _discrepancy(aa, bb, ab)
    size = min(subset_size, len(a), len(b))
    if size < 2:
        raise HidaError("KID needs subsets of at least two images; raise subset_size.")
    draw = np.random.default_rng(seed)
    estimates = []
    for _ in range(subsets):
        i, j = (draw.choice(len(x), size, replace=False) for x in (a, b))
        estimates.append(_discrepancy(aa[np.ix_(i, i)], bb[np.ix_(j, j)], ab[np.ix_(i, j)]))
    return float(np.mean(estimates))


def kernel_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """Compute a 95 % interval of :func:`kernel_distance` of paired features (N, D) and (N, D), by the jackknife.

    Each pair is left out once; the variance of these estimates gives that of the whole one, which is taken as normal.
    A bootstrap would draw pairs twice, and each of them is at no distance from itself.

    Returns:
        (low, high); None for fewer than four pairs.

    Source: Efron and Stein, "The jackknife estimate of variance", 1981.
    """
    n = len(a)
    if n < 4 or len(b) != n:
        return None
    aa, bb, ab = _kernels(a, b)
    within = np.zeros(n)
    for kernel in (aa, bb):
        others = kernel.sum(1) - np.diag(kernel)
        within += (others.sum() - 2 * others) / ((n - 1) * (n - 2))
    across = (ab.sum() - ab.sum(0) - ab.sum(1) + np.diag(ab)) / (n - 1) ** 2
    without = within - 2 * across
    error = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
    whole = _discrepancy(aa, bb, ab)
    return whole - _NORMAL * error, whole + _NORMAL * error


def _kernels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return KID's kernel (x·y/D + 1)³ within ``a``, within ``b``, and of ``a`` with ``b``, in float64."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    aa, bb, ab = (np.power(x @ y.T / a.shape[1] + 1, 3) for x, y in ((a, a), (b, b), (a, b)))
    return aa, bb, ab


def _discrepancy(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> float:
    within = sum((x.sum() - np.trace(x)) / (len(x) * (len(x) - 1)) for x in (aa, bb))
    return float(within - 2 * ab.mean())


def _batches(images: Any) -> Iterator[Tensor]:
    if isinstance(images, Tensor | np.ndarray):
        yield torch.as_tensor(images)
        return
    paths = image_paths(images) if isinstance(images, str | os.PathLike) else list(images)
    yield from _files_by_size(paths)


def image_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return every picture below ``folder`` by suffix, hidden ones left out, sorted.

    Raises:
        HidaError: if there is none.
    """
    from hida.images.io import IMAGE_SUFFIXES

    folder = Path(folder)
    if not folder.exists():
        raise HidaError(f"{folder} is not a folder, there is no such file or folder; check the path.")
    if not folder.is_dir():
        raise HidaError(f"{folder} is not a folder; give a folder of images.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise HidaError(f"{folder} holds no images; give a folder of PNG files.")
    return found


def _files_by_size(paths: Sequence[str | os.PathLike[str]]) -> Iterable[Tensor]:
    """Yield uint8 RGB batches in order; a batch ends where the size changes."""
    from hida.images.io import read_image

    waiting: list[Tensor] = []
    for path in paths:
        pixels = torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)
        if waiting and (len(waiting) == _BATCH or waiting[0].shape != pixels.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(pixels)
    if waiting:
        yield torch.stack(waiting)
