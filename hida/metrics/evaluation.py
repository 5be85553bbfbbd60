"""Score sketches against their targets under one written protocol.

    hida evaluate --pred DIR --target DIR                    anybody's sketches against a folder of targets
    hida evaluate --pred DIR --target PREPARED               ... against the test split of a prepared data set
    hida evaluate --weights small --target PREPARED          draw the test split first, then score it
    hida evaluate --weights RUN --target PREPARED --split held_out    ... the pairs that RUN held out, to tune by

Writes OUT/scores.json, OUT/scores.md and OUT/report.html. Every result is kept by the content of its images, so a
stopped run goes on where it was and a second run measures only what is new. Definitions: docs/metrics.md.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from hida.data.dataset import split_holdout
from hida.data.images import write_png
from hida.data.packed import prepared_folder
from hida.data.prepared import PreparedPair, PreparedSet
from hida.device import choose_device
from hida.errors import HidaError, run_command
from hida.files import write_bytes, write_json
from hida.metrics.pairing import find_pairs, is_prepared
from hida.metrics.protocol import METRICS
from hida.metrics.scoring import load_networks, score, summarise
from hida.metrics.store import Store
from hida.report import html_report, markdown
from hida.tuning import tune
from hida.weights import cache_folder

MetricName = Literal["fid", "kid", "lpips", "scoot", "fsim"]
_ALL: tuple[MetricName, ...] = ("fid", "kid", "lpips", "scoot", "fsim")
_DRAWN_AT_ONCE = 8


@dataclass(frozen=True)
class Command:
    """Score sketches against their targets: FID, KID, LPIPS, SCOOT, FSIM; overall and per style."""

    target: Path
    """folder of target sketches, or a prepared data set or a pack of it (its test split, with styles and photos)"""
    pred: Path | None = None
    """folder of sketches to score, named like the targets"""
    weights: str | None = None
    """draw the test split of a prepared data set with these weights instead: a built-in name, a file or a folder"""
    photos: Path | None = None
    """folder of photos to show in the report, named like the targets"""
    out: Path = Path("evaluation")
    """folder for scores.json, scores.md, report.html and, with --weights, the sketches drawn"""
    label: str | None = None
    """name of this evaluation in tables; by default the folder of sketches or the weights"""
    metrics: tuple[MetricName, ...] = _ALL
    """what to measure; scoot and fsim need no weights"""
    split: Literal["test", "held_out"] = "test"
    """with --weights: the test split, or the training pairs that were held out when these weights were trained, which
    is what to choose between trainings by"""
    limit: int = 0
    """with --weights: draw and score this many pairs, evenly spread over the split (0: all)"""
    only_common: bool = False
    """score the names that both folders have instead of refusing unpaired ones"""
    resize: bool = False
    """bring sketches of another size to their targets' (bicubic, antialiased) instead of refusing them"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    cache: str | None = None
    """file that keeps results by content, or "none"; by default metrics.sqlite in the cache folder"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``hida evaluate``."""
    command = tyro.cli(Command, args=argv, prog="hida evaluate", description=__doc__)
    if (command.pred is None) == (command.weights is None):
        raise HidaError("Give either --pred DIR with the sketches to score or --weights to draw them with.")
    if command.photos is not None and (is_prepared(command.target) or command.target.suffix == ".zip"):
        raise HidaError("--photos has no effect with a prepared data set, which brings its own; leave it out.")
    if command.limit < 0 or (command.limit and command.weights is None):
        raise HidaError("--limit must be 0 or more, and chooses what --weights draws; it has no effect with --pred.")
    if command.split != "test" and command.weights is None:
        raise HidaError("--split chooses what --weights draws; it has no effect with --pred.")
    if not command.metrics:
        raise HidaError(f"--metrics names none; choose from {', '.join(_ALL)}.")
    device, target = choose_device(command.device), command.target
    tune(device)
    if target.suffix == ".zip":
        target = prepared_folder(target)
    wanted = [metric.key for metric in METRICS if metric.key in command.metrics]
    prediction, names = command.pred, None
    if prediction is None:
        load_networks(wanted, device)
        prediction = command.out / "sketches"
        names = draw(command.weights, target, prediction, device, command.limit, command.split)
    pairs, remarks = find_pairs(prediction, target, command.photos, command.only_common, names)
    if command.split == "held_out":
        remarks.append("the pairs are of the training split, held out from these weights' training")
    if command.limit:
        remarks.append(f"the {len(pairs):,} pairs are spread evenly over the split (--limit {command.limit})")
    store = Store(_cache_path(command.cache))
    try:
        with tqdm(total=len(pairs), desc="scoring", unit="pair") as bar:
            scores = score(pairs, wanted, store, device, command.resize, bar.update)
    finally:
        store.close()
    result = {
        "label": command.label or _folder_label(Path(command.weights or prediction)),
        "prediction": command.weights or str(command.pred),
        "target": str(command.target),
        "remarks": remarks,
        **summarise(pairs, scores, wanted),
    }
    write_json(command.out / "scores.json", result)
    text = markdown(result)
    write_bytes(command.out / "scores.md", text.encode())
    write_bytes(command.out / "report.html", html_report(result, pairs).encode())
    print(text)
    print(f"written: {', '.join(str(command.out / name) for name in ('scores.json', 'scores.md', 'report.html'))}")


def spread(pairs: Sequence[PreparedPair], limit: int) -> list[PreparedPair]:
    """Return ``limit`` pairs evenly spread over ``pairs`` in their order, or all of them (0)."""
    if not limit or limit >= len(pairs):
        return list(pairs)
    return [pairs[(2 * k + 1) * len(pairs) // (2 * limit)] for k in range(limit)]


def draw(
    weights: str,
    target: Path,
    folder: Path,
    device: str = "cpu",
    limit: int = 0,
    split: Literal["test", "held_out"] = "test",
) -> list[str]:
    """Draw a prepared data set into ``folder``, and return the names; what these weights drew before is kept.

    ``split`` is "test" or "held_out", the training pairs set aside when these weights were trained; ``limit`` draws
    only so many pairs, those of :func:`spread`.

    Raises:
        HidaError: the target is no prepared data set, the weights cannot be loaded or held nothing out, or the folder
            holds other files.
    """
    from hida.drawing.sketcher import Sketcher

    if not is_prepared(target):
        raise HidaError(f"'{target}' is not a prepared data set, which --weights draws from; run hida prepare first.")
    prepared = PreparedSet.load(target)
    sketcher = Sketcher.from_pretrained(weights, device)
    pairs = prepared.split("test")
    if split == "held_out":
        options, listed = sketcher.config.train, prepared.split("train")
        pairs = [listed[k] for k in split_holdout(len(listed), options.holdout, options.seed)[1].tolist()]
        if not pairs:
            raise HidaError(f"the weights '{weights}' were trained on all training pairs: none was held out.")
    pairs = spread(pairs, limit)
    _claim(folder, _fingerprint(sketcher.generator, prepared))
    waiting = [pair for pair in pairs if not (folder / f"{pair.name}.png").is_file()]
    with tqdm(total=len(pairs), initial=len(pairs) - len(waiting), desc="drawing", unit="sketch") as bar:
        for start in range(0, len(waiting), _DRAWN_AT_ONCE):
            chunk = waiting[start : start + _DRAWN_AT_ONCE]
            arrays = [prepared.read(pair) for pair in chunk]
            photos = torch.from_numpy(np.stack([photo for photo, _, _ in arrays])).permute(0, 3, 1, 2)
            depths = torch.from_numpy(np.stack([depth for _, _, depth in arrays]))[:, None]
            styles = torch.tensor([pair.style for pair in chunk])
            drawn = sketcher.draw_aligned(photos.to(device), depths.to(device), styles.to(device)).cpu().numpy()
            for pair, sketch in zip(chunk, drawn[:, 0], strict=True):
                write_png(folder / f"{pair.name}.png", sketch)
            bar.update(len(chunk))
    return [pair.name for pair in pairs]


_MARK = "drawn.json"


def _claim(folder: Path, fingerprint: str) -> None:
    """Make the folder ours: sketches of other weights or another data set are removed, foreign files are refused."""
    mark = folder / _MARK
    if mark.is_file():
        try:
            same = json.loads(mark.read_text())["fingerprint"] == fingerprint
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise HidaError(f"'{folder}' holds files that were not drawn by this command; choose another --out.")
    write_json(mark, {"fingerprint": fingerprint})


def _fingerprint(generator: torch.nn.Module, prepared: PreparedSet) -> str:
    digest = hashlib.sha256((prepared.folder / "index.json").read_bytes())
    for name, value in sorted(generator.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cache_path(given: str | None) -> Path | None:
    if given == "none":
        return None
    return Path(given).expanduser() if given else cache_folder() / "metrics.sqlite"


def _folder_label(folder: Path) -> str:
    return folder.resolve().name or str(folder)


if __name__ == "__main__":
    sys.exit(run_command(main))
