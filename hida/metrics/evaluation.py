"""Draw a set of sketches and score it under the protocol (what ``hida evaluate`` does with its options)."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from hida.config import Config
from hida.data.dataset import split_holdout
from hida.data.prepared import PreparedPair, PreparedSet
from hida.data.unpacking import prepared_folder
from hida.documents import DocumentError, read_json
from hida.drawing.sketcher import Sketcher
from hida.errors import HidaError, counted, printed, prints, shown, warn
from hida.files import atomic_path, is_ours, remove_leftovers, write_json
from hida.images.io import ImageError, read_image, write_png
from hida.metrics.groups import COUNTS, PROXY, labels_of
from hida.metrics.pairing import Pair, find_pairs, is_prepared
from hida.metrics.protocol import METRICS, USUAL
from hida.metrics.report import html_report, markdown
from hida.metrics.scoring import load_networks, lossy_files, score, summarise
from hida.metrics.store import Store
from hida.weights import cache_folder, checkpoint

FILES = ("scores.json", "scores.md", "report.html")
_SKETCHES = "sketches"
_MARK = "drawn.json"
_DRAWN_AT_ONCE = 8
_SHOWN = 40  # damaged pictures that are named


def evaluate(
    target: Path,
    out: Path,
    *,
    prediction: Path | None = None,
    weights: str | None = None,
    metrics: Sequence[str] = USUAL,
    photos: Path | None = None,
    label: str | None = None,
    by: Sequence[str] = (),
    split: Literal["test", "held_out"] = "test",
    limit: int = 0,
    only_common: bool = False,
    resize: bool = False,
    device: str = "cpu",
    cache: str | None = None,
) -> dict[str, Any]:
    """Score the sketches in ``prediction``, or those that ``weights`` draw, and write :data:`FILES` into ``out``.

    Args:
        target: folder of target sketches, a prepared data set, or a pack of one.
        metrics: keys of :data:`hida.metrics.protocol.METRICS`.
        photos: folder of photos to show in the report.
        label: name of the evaluation; by default that of the folder or the weights.
        by: annotations of a prepared set that the pairs are grouped by, of :data:`hida.metrics.groups.LABELS`.
        split, limit: which pairs ``weights`` draw; see :func:`draw`.
        only_common: as :func:`hida.metrics.pairing.find_pairs` takes it.
        resize: as :func:`hida.metrics.scoring.score` takes it.
        cache: file that keeps results by content, "none", or None for metrics.sqlite in the cache folder.

    Returns:
        What scores.json holds.

    Raises:
        HidaError: if pairs do not fit together, or a network or weights are missing.
    """
    if label is not None and not prints(label):
        raise HidaError(f"the label {shown(label)} has characters that do not print; choose another.")
    kept = _cache_path(cache)  # before anything is drawn: there may be no place for it
    where = prepared_folder(target)
    wanted = [metric.key for metric in METRICS if metric.key in metrics]
    if by and not is_prepared(where):
        raise HidaError(f"--by groups by FS2K's annotations, which '{where}' does not have; leave it out.")
    folder, names, minimised = prediction, None, []
    if weights is not None:
        load_networks(wanted, device)  # so that what is missing is told before anything is drawn
        folder = out / _SKETCHES
        names, config = draw(weights, where, folder, device, limit, split, by)
        minimised = trained_on(config)
    assert folder is not None
    pairs, remarks = find_pairs(folder, where, photos, only_common, names)
    if split == "held_out":
        remarks.append("the pairs are of the training split, held out from these weights' training")
    if limit:
        remarks.append(f"the {len(pairs):,} pairs are spread evenly over the split (--limit {limit})")
    if weights is not None:
        drawn_from = lossy_files("photos", (pair.photo for pair in pairs))
        remarks += [
            f"drawn from lossy pictures: {counted(n, 'photo')} in {kind}" for (_, kind), n in sorted(drawn_from.items())
        ]
    if by:
        labels = labels_of([pair.attributes for pair in pairs], by)  # before anything is measured
        remarks += [PROXY] * ("skin" in by) + [COUNTS]
        for name in by:
            if without := sum(name not in found for found in labels):
                remarks.append(f"{name}: {counted(without, 'pair is', 'pairs are')} in none of the groups")
    with Store(kept) as store:
        _require_readable(pairs, drawn=weights is not None, photos=photos is not None)
        with tqdm(total=len(pairs), desc="scoring", unit="pair") as bar:
            scores = score(pairs, wanted, store, device, resize, bar.update)
    result = {
        "label": label or printed(_folder_label(Path(weights or folder)).encode("utf-8", "backslashreplace").decode()),
        "prediction": weights or str(prediction),
        "target": str(target),
        "remarks": remarks,
        "trained_on": minimised,
        **summarise(pairs, scores, wanted, by),
    }
    # Made before the first is written: with a fault in a photo of the prepared set there is none of them.
    texts = {"scores.md": markdown(result), "report.html": html_report(result, pairs)}
    with contextlib.ExitStack() as written:  # all of them or none: a full disk is met before the first has its name
        for name, text in texts.items():
            written.enter_context(atomic_path(out / name)).write_bytes(text.encode("utf-8", "backslashreplace"))
        write_json(out / "scores.json", result)
    return result


def trained_on(config: Config) -> list[str]:
    """Return the metrics whose networks a training used: their scores are no independent evidence.

    What the weights were trained on that it began from, or a teacher, is not known.
    """
    alexnet = config.loss.weight_perceptual or config.discriminator.projected
    return ["lpips"] * bool(alexnet)


def _require_readable(pairs: Sequence[Pair], drawn: bool, photos: bool) -> None:
    """Read every picture that is needed before anything is measured; name each that cannot be read in a warning.

    Args:
        drawn: whether the predictions are our own drawings, which need no look.
        photos: whether to look at the photos of the report, too.

    Raises:
        HidaError: if there is any; it names the only one.
    """
    reasons = []
    paths = [path for pair in pairs for path in (None if drawn else pair.prediction, pair.target) if path is not None]
    paths += [pair.photo for pair in pairs if photos and pair.photo is not None]
    for path in tqdm(paths, desc="checking", unit="picture"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # said when the picture is used
                read_image(path)
        except ImageError as error:
            reasons.append(str(error))
    if len(reasons) == 1:
        raise HidaError(reasons[0])
    for reason in reasons[:_SHOWN]:
        warn(reason)
    if reasons:
        where = "named above" if len(reasons) <= _SHOWN else f"the first {_SHOWN} named above"
        raise HidaError(
            f"{len(reasons):,} of {len(paths):,} pictures cannot be read, {where}, and nothing was measured; replace "
            "them, or remove them and score the other pairs with --only-common."
        )


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
    by: Sequence[str] = (),
) -> tuple[list[str], Config]:
    """Draw a prepared data set into ``folder``; what these weights drew before is kept.

    Args:
        limit: how many pairs to draw, those of :func:`spread`; 0: all.
        split: "test", or "held_out", the training pairs set aside when these weights were trained.
        by: annotations that the pairs have to have, which is looked at before anything is drawn.

    Returns:
        The names of the pairs, and the configuration of the weights.

    Raises:
        HidaError: if the target is no prepared data set, the weights cannot be loaded or held nothing out, or the
            folder holds other files.
    """
    if not target.exists():
        raise HidaError(f"there is no such file or folder as '{target}'; check the path.")
    if not is_prepared(target):
        raise HidaError(f"'{target}' is not a prepared data set, which --weights draws from; run hida prepare first.")
    prepared = PreparedSet.load(target)
    sketcher = Sketcher.from_pretrained(weights, device)
    listed = prepared.split("test")
    if split == "held_out":
        options, training = sketcher.config.train, prepared.split("train")
        held_out = split_holdout(len(training), options.holdout, options.seed)[1]
        listed = tuple(training[k] for k in held_out.tolist())
        if not listed:
            raise HidaError(f"the weights '{weights}' saw every training pair, none was held out; use --split test.")
    pairs = spread(listed, limit)
    labels_of([pair.attributes for pair in pairs], by)
    _claim(folder, _fingerprint(sketcher.generator, prepared))
    waiting = {pair.name for pair in pairs if not _sketch(folder, pair).is_file()}
    with tqdm(total=len(pairs), initial=len(pairs) - len(waiting), desc="drawing", unit="sketch") as bar:
        for start in range(0, len(pairs), _DRAWN_AT_ONCE):
            # Always the same together, or a run that was stopped would round otherwise than one that was not.
            chunk = pairs[start : start + _DRAWN_AT_ONCE]
            if waiting.isdisjoint(pair.name for pair in chunk):
                continue
            arrays = [prepared.read(pair) for pair in chunk]
            photos = torch.from_numpy(np.stack([photo for photo, _, _ in arrays])).permute(0, 3, 1, 2)
            depths = torch.from_numpy(np.stack([depth for _, _, depth in arrays]))[:, None]
            styles = torch.tensor([pair.style for pair in chunk])
            drawn = sketcher.draw_aligned(photos.to(device), depths.to(device), styles.to(device)).cpu().numpy()
            for pair, sketch in zip(chunk, drawn[:, 0], strict=True):
                if pair.name in waiting:
                    write_png(_sketch(folder, pair), sketch)
                    bar.update()
    return [pair.name for pair in pairs], sketcher.config


def sketch_of(out: Path, pair: PreparedPair) -> Path:
    """Return the file in which :func:`evaluate` left the sketch of a pair that weights have drawn."""
    return _sketch(out / _SKETCHES, pair)


def _sketch(folder: Path, pair: PreparedPair) -> Path:
    return folder / f"{pair.name}.png"


def _claim(folder: Path, fingerprint: str) -> None:
    """Mark the folder as ours: sketches of other weights or data are removed, folders with other files are refused."""
    mark = folder / _MARK
    if mark.is_file():
        try:
            same = read_json(mark).field("fingerprint").raw == fingerprint
        except DocumentError:
            same = False
        if not same:
            shutil.rmtree(folder)
    elif folder.exists() and not all(is_ours(path.name) for path in folder.iterdir()):
        raise HidaError(f"'{folder}' holds files that were not drawn by this command; choose another --out.")
    remove_leftovers(folder)
    write_json(mark, {"fingerprint": fingerprint})


def _fingerprint(generator: torch.nn.Module, prepared: PreparedSet) -> str:
    index = hashlib.sha256((prepared.folder / "index.json").read_bytes()).hexdigest()
    return f"{index} {checkpoint.digest(generator.state_dict())}"


def _cache_path(given: str | None) -> Path | None:
    if given == "none":
        return None
    if not given:
        return cache_folder() / "metrics.sqlite"
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise HidaError(f"the home folder that '{given}' begins with is not known; give a whole path.") from None


def _folder_label(folder: Path) -> str:
    return folder.resolve().name or str(folder)
