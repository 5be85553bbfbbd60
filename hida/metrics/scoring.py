"""Score pairs of images with every metric; each result is kept by the content of its images."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hida.errors import HidaError, counted
from hida.images.compression import lossy_compression
from hida.metrics.bootstrap import mean_interval
from hida.metrics.frechet import frechet_distance, inception_features, kernel_distance, kernel_interval
from hida.metrics.fsim import fsim
from hida.metrics.groups import LABELS, group_name, labels_of
from hida.metrics.inception import load_inception
from hida.metrics.lpips import load_lpips, lpips
from hida.metrics.pairing import Pair
from hida.metrics.protocol import METRICS, NAME, PAIRS, RULES, SIZE, STYLE_COUNTS
from hida.metrics.scoot import scoot
from hida.metrics.store import Kind, Store, content_hash

SCHEMA = 1
_CHUNK = 16
_PIECE = 4  # images one worker takes at a time; fewer of large ones, so that what is measured is soon kept
_PIECE_PIXELS = 1 << 20
_PAIRWISE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "lpips": lpips,
    "lpips_vgg": functools.partial(lpips, net="vgg"),
    "scoot": scoot,
    "fsim": fsim,
}
# Part of every key: raise a metric's number when its values change.
_VERSIONS = {
    "lpips": "lpips-alex-1",
    "lpips_vgg": "lpips-vgg-1",
    "scoot": "scoot-1",
    "fsim": "fsim-1",
    "inception": "inception-2048-1",
}
# What the store may hold of each. SCOOT and FSIM are at most 1, up to rounding; the other bounds are generous.
_KINDS = {"lpips": Kind(1, 1e3), "lpips_vgg": Kind(1, 1e3), "scoot": Kind(1, 1 + 1e-5), "fsim": Kind(1, 1 + 1e-5)}
_FEATURES = Kind(2048, 1e4, np.float32)


@dataclass(frozen=True)
class Scores:
    """What was measured of N pairs.

    Args:
        values: of each pair-wise metric, (N,).
        predictions, targets: Inception features (N, 2048), None if not asked for.
        hashes: of the targets' content.
        sizes: (height, width) of the targets.
        resized: how many predictions were resized.
        lossy: how many files of a side ("predictions", "targets") have a lossy compression, by both names.
    """

    values: dict[str, np.ndarray]
    predictions: np.ndarray | None
    targets: np.ndarray | None
    hashes: list[str]
    sizes: set[tuple[int, int]]
    resized: int
    lossy: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def distance(self, measure: Callable[[np.ndarray, np.ndarray], float], rows: np.ndarray) -> float | None:
        """Return a distance of both sides' features; one image has no covariance: undefined (None), not zero."""
        if self.predictions is None or self.targets is None or len(rows) < 2:
            return None
        return measure(self.predictions[rows], self.targets[rows])


def load_networks(metrics: Sequence[str], device: str = "cpu") -> None:
    """Load the networks that the metrics need, so that what is missing is told before any work is done.

    Raises:
        HidaError: if a network's weights are not available.
    """
    for key, net in (("lpips", "alex"), ("lpips_vgg", "vgg")):
        if key in metrics:
            load_lpips(net, device=torch.device(device))
    if "fid" in metrics or "kid" in metrics:
        load_inception(device=torch.device(device))


def score(
    pairs: Sequence[Pair],
    metrics: Sequence[str],
    store: Store,
    device: str = "cpu",
    resize: bool = False,
    progress: Callable[[int], Any] = lambda count: None,
) -> Scores:
    """Measure every pair.

    Args:
        metrics: keys of :data:`METRICS`.
        store: keeps the results; those up to the last call of ``progress``, and all that are some seconds old, survive
            a kill.
        resize: bring predictions of another size to the target's, bicubic and antialiased, instead of refusing them.
        progress: called with the number of pairs just done.

    Raises:
        HidaError: for an unreadable image or one of another size than its target (the message names the file), or
            weights that are not available.
    """
    pairwise = [key for key in metrics if key in _PAIRWISE]
    with_features = "fid" in metrics or "kid" in metrics
    load_networks(metrics, device)
    values: dict[str, list[float]] = {key: [] for key in pairwise}
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    hashes: list[str] = []
    sizes: set[tuple[int, int]] = set()
    resized = 0
    lossy: Counter[tuple[str, str]] = Counter()
    with _workers(device) as parallel:
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            predictions, targets, changed = _read(chunk, resize)
            resized += changed
            lossy.update(lossy_files("predictions", [pair.prediction for pair in chunk]))
            lossy.update(lossy_files("targets", [pair.target for pair in chunk]))
            paths = [pair.prediction for pair in chunk]
            names = [(content_hash(a), content_hash(b)) for a, b in zip(predictions, targets, strict=True)]
            for key in pairwise:
                values[key] += _measure(key, paths, predictions, targets, names, store, device, parallel)
            if with_features:
                for side, images, column in zip(sides, (predictions, targets), zip(*names, strict=True), strict=True):
                    side += _features(images, column, store, device, parallel)
            hashes += [name for _, name in names]
            sizes |= {target.shape for target in targets}
            store.commit()
            progress(len(chunk))
    columns = {key: np.array(column) for key, column in values.items()}
    left, right = (np.stack(side).astype(np.float64) if with_features else None for side in sides)
    return Scores(columns, left, right, hashes, sizes, resized, lossy)


Parallel = Callable[[Callable[[list[int]], Any], list[list[int]]], Iterable[Any]]


@contextmanager
def _workers(device: str) -> Iterator[Parallel]:
    """Yield a map over pieces of a batch: on the CPU one single-threaded worker per core.

    The metrics are many small operations; shared among cores each of them would wait for the slowest, which on a busy
    machine costs many times the work itself.
    """
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)  # a run that is stopped waits for what has begun only
        torch.set_num_threads(threads)


def _measure(
    key: str,
    paths: list[Path],
    predictions: list[np.ndarray],
    targets: list[np.ndarray],
    names: list[tuple[str, str]],
    store: Store,
    device: str,
    parallel: Parallel,
) -> list[float]:
    def measure(rows: list[int]) -> np.ndarray:
        a, b = (_tensor([images[i] for i in rows], device) for images in (predictions, targets))
        try:
            return np.array(_PAIRWISE[key](a, b).tolist())[:, None]
        except HidaError as error:
            raise HidaError(f"'{paths[rows[0]]}': {error}") from None

    keys = [f"{_VERSIONS[key]}/{a}/{b}" for a, b in names]
    return [float(value[0]) for value in _kept(keys, targets, measure, _KINDS[key], store, parallel)]


def _features(
    images: list[np.ndarray], names: Sequence[str], store: Store, device: str, parallel: Parallel
) -> list[np.ndarray]:
    def measure(rows: list[int]) -> np.ndarray:
        return inception_features(_tensor([images[i] for i in rows], device)).astype(np.float32)

    keys = [f"{_VERSIONS['inception']}/{name}" for name in names]
    return _kept(keys, images, measure, _FEATURES, store, parallel)


def _kept(
    keys: list[str],
    images: list[np.ndarray],
    measure: Callable[[list[int]], np.ndarray],
    kind: Kind,
    store: Store,
    parallel: Parallel,
) -> list[np.ndarray]:
    """Return the result of every key, from the store; what is missing or damaged is measured, in pieces, and put."""
    stored = {key: store.get(key, kind) for key in keys}
    known = {key: value for key, value in stored.items() if value is not None}
    missing = {key: i for i, key in enumerate(keys) if key not in known}
    pieces = _pieces(images, list(missing.values()))
    for rows, found in zip(pieces, parallel(measure, pieces), strict=True):
        for i, row in zip(rows, found, strict=True):
            known[keys[i]] = row
            store.put(keys[i], row)
    return [known[key] for key in keys]


def summarise(pairs: Sequence[Pair], scores: Scores, metrics: Sequence[str], by: Sequence[str] = ()) -> dict[str, Any]:
    """Return the evaluation as scores.json holds it: overall, each style and group, with n and intervals, every pair.

    Args:
        by: annotations that pairs are grouped by, of :data:`hida.metrics.groups.LABELS`.

    Raises:
        HidaError: if a pair lacks one of them.
    """
    labels = labels_of([pair.attributes for pair in pairs], by)
    styles = sorted({pair.style for pair in pairs if pair.style is not None})
    groups = {"overall": np.arange(len(pairs))}
    for style in styles:
        groups[f"style {style + 1}"] = np.array([i for i, pair in enumerate(pairs) if pair.style == style])
    for name in by:
        for label in LABELS[name]:
            rows = np.array([i for i, found in enumerate(labels) if found.get(name) == label], dtype=np.int64)
            if len(rows):
                groups[group_name(name, label)] = rows
    records = []
    for i, pair in enumerate(pairs):
        record: dict[str, Any] = {"name": pair.name, "style": None if pair.style is None else pair.style + 1}
        record |= {"target": scores.hashes[i]}
        if by:
            record["by"] = labels[i]
        records.append(record | {key: float(column[i]) for key, column in scores.values.items()})
    return {
        "schema": SCHEMA,
        "protocol": {"name": NAME, "rules": list(RULES), "deviations": _deviations(pairs, scores)},
        "metrics": [metric.key for metric in METRICS if metric.key in metrics],
        "groups": {name: _group(scores, rows, metrics) for name, rows in groups.items()},
        "pairs": records,
    }


def _group(scores: Scores, rows: np.ndarray, metrics: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"n": len(rows)}
    for key, distance in (("fid", frechet_distance), ("kid", kernel_distance)):
        if key in metrics:
            result[key] = {"value": scores.distance(distance, rows)}
    if "kid" in result and scores.predictions is not None and scores.targets is not None:
        ends = kernel_interval(scores.predictions[rows], scores.targets[rows])
        low, high = ends if ends is not None else (None, None)
        result["kid"] |= {"low": low, "high": high}
    columns = {key: column[rows] for key, column in scores.values.items()}
    if columns:
        interval = mean_interval(np.stack(list(columns.values()), 1))
        for k, (key, column) in enumerate(columns.items()):
            low, high = (None, None) if interval is None else (float(side[k]) for side in interval)
            result[key] = {"value": float(column.mean()), "low": low, "high": high}
    return result


def _deviations(pairs: Sequence[Pair], scores: Scores) -> list[str]:
    """Return what keeps the numbers from being comparable under the protocol's name."""
    found = []
    counts = tuple(sum(pair.style == style for pair in pairs) for style in range(len(STYLE_COUNTS)))
    if len(pairs) != PAIRS or counts != STYLE_COUNTS:
        found.append(f"{counted(len(pairs), 'pair')} instead of the {PAIRS:,} test pairs of FS2K")
    if scores.sizes != {(SIZE, SIZE)}:
        found.append("sizes " + ", ".join(f"{w}×{h}" for h, w in sorted(scores.sizes)[:3]) + f", not {SIZE}×{SIZE}")
    if scores.resized:
        found.append(f"{scores.resized:,} predictions were resized to their targets")
    return found + [f"{count:,} {side} are {kind}" for (side, kind), count in sorted(scores.lossy.items())]


def lossy_files(side: str, paths: Iterable[Path | None]) -> Counter[tuple[str, str]]:
    """Count the files of a side that lost something of their pixels, by (side, compression)."""
    kinds = (lossy_compression(path) for path in paths if path is not None)
    return Counter((side, kind) for kind in kinds if kind is not None)


def _read(chunk: Sequence[Pair], resize: bool) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Read grey predictions and targets; return also how many predictions had to be resized."""
    targets = [_read_grey(pair.target) for pair in chunk]
    predictions, resized = [], 0
    for pair, target in zip(chunk, targets, strict=True):
        image = _read_grey(pair.prediction)
        if image.shape != target.shape:
            if not resize:
                raise HidaError(_size_fault(pair, image, target))
            image, resized = _resize(image, *target.shape), resized + 1
        predictions.append(image)
    return predictions, targets, resized


def _read_grey(path: Path) -> np.ndarray:
    from hida.images.io import read_image

    return np.array(read_image(path).convert("L"))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _size_fault(pair: Pair, image: np.ndarray, target: np.ndarray) -> str:
    (h, w), (height, width) = image.shape, target.shape
    return (
        f"'{pair.prediction}' is {w}×{h} but its target '{pair.target}' {width}×{height}; "
        "save the sketch at that size, or have it resized with --resize."
    )


def _pieces(images: list[np.ndarray], rows: list[int]) -> list[list[int]]:
    """Return the rows in batches of one size, small enough to be shared among workers."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in rows:
        groups.setdefault(images[i].shape, []).append(i)
    pieces = []
    for (height, width), group in groups.items():
        count = max(1, min(_PIECE, _PIECE_PIXELS // (height * width)))
        pieces += [group[k : k + count] for k in range(0, len(group), count)]
    return pieces


def _tensor(images: list[np.ndarray], device: str) -> Tensor:
    return torch.from_numpy(np.stack(images))[:, None].to(device)
