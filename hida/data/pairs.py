"""A user's own photo and sketch folders, with any number of styles.

    SRC/photo/NAME.*        + SRC/sketch/NAME.*          one style (as in APDrawing)
    SRC/photo/STYLE/NAME.*  + SRC/sketch/STYLE/NAME.*    a style for each folder, in the order of their names

or a table (CSV with a header line, or a JSON list of objects) with the columns name, style and, optionally, split
(train or test): name is the picture's path under SRC/photo and SRC/sketch, with or without suffix.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hida.data.source import SPLITS, Fault, SourcePair, SourceSet, check_pictures, pictures_by_stem
from hida.errors import HidaError

LAYOUT = "expected SRC/photo and SRC/sketch with pictures of the same names, or a folder for each style in both"


class _Row(NamedTuple):
    """One pair as a table or the folders name it; without a split it is assigned at random."""

    name: str
    style: str
    split: str | None


def read_pairs(
    folder: str | Path,
    table: str | Path | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
) -> SourceSet:
    """Read a user's pairs and check each: a partner of the same stem, one size, both readable.

    Args:
        table: file that names the pairs; if left out, the folders do.
        test_fraction: share of each style that becomes the test split, unless the table has a split column. The choice
            depends on ``seed`` and the names only: adding pairs does not move the others.
        progress: called with the number of pairs; returns what is called after each.

    Returns:
        The sound pairs, and a :class:`Fault` for each pair with which something is wrong.

    Raises:
        HidaError: if the folder or the table is laid out otherwise.
    """
    folder = Path(folder)
    if not 0 <= test_fraction < 1:
        raise HidaError(f"the test fraction is {test_fraction:g}; give a number from 0 up to, but below, 1.")
    for kind in ("photo", "sketch"):
        if not (folder / kind).is_dir():
            raise HidaError(f"'{folder}' has no folder '{kind}' ({LAYOUT}).")
    photos, photo_faults = _pictures(folder / "photo")
    sketches, sketch_faults = _pictures(folder / "sketch")
    faults = photo_faults + sketch_faults
    if table is None:
        rows = _rows_from_folders(folder, photos, sketches)
    else:
        rows, wrong = _rows_from_table(Path(table))
        faults += wrong
    # Numbered styles in the order of their numbers, not "10" before "2".
    styles = tuple(
        sorted(
            {row.style for row in rows},
            key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)],
        )
    )

    pairs, seen = [], set()
    for row in rows:
        stem = row.name if row.name in photos or row.name in sketches else _without_suffix(row.name)
        absent = [kind for kind, files in (("photo", photos), ("sketch", sketches)) if stem not in files]
        if stem in seen:
            faults.append(Fault("duplicate", stem, "is twice in the table: keep one line."))
        elif absent:
            message = f"there is no {' and no '.join(f'{kind}/{stem}.*' for kind in absent)}."
            faults.append(Fault(f"missing {' and '.join(absent)}", stem, message))
        else:
            split = row.split or "train"
            pairs.append(SourcePair(_flat(stem), split, styles.index(row.style), photos[stem], sketches[stem]))
        seen.add(stem)
    pairs, clashes = _unique(pairs)
    faults += clashes
    if all(row.split is None for row in rows):
        pairs = _assign_splits(pairs, test_fraction, seed)
    sound, unreadable, transparent = check_pictures(pairs, workers, progress(len(pairs)))
    faults += unreadable
    if not sound and not faults:
        raise HidaError(f"'{folder}' holds no pairs ({LAYOUT}).")
    notes = (f"{transparent} sketches are transparent: they are laid over white.",) if transparent else ()
    return SourceSet("pairs", folder, styles, tuple(sound), tuple(faults), notes)


def _pictures(folder: Path) -> tuple[dict[str, Path], list[Fault]]:
    """Return all pictures directly in ``folder`` or one folder below, by their path without suffix."""
    pictures, faults, _ = pictures_by_stem(folder)
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        more, wrong, _ = pictures_by_stem(below)
        pictures |= {f"{below.name}/{stem}": path for stem, path in more.items()}
        faults += wrong
    return pictures, faults


def _rows_from_folders(folder: Path, photos: dict[str, Path], sketches: dict[str, Path]) -> list[_Row]:
    names = sorted(photos.keys() | sketches.keys())
    nested = {"/" in name for name in names}
    if len(nested) > 1:
        loose = next(name for name in names if "/" not in name)
        raise HidaError(
            f"'{folder}' mixes folders of styles with loose pictures ('{loose}'); move every picture into a style."
        )
    return [_Row(name, name.split("/")[0] if nested == {True} else "style 1", None) for name in names]


def _rows_from_table(table: Path) -> tuple[list[_Row], list[Fault]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if table.suffix.lower() == ".json" else list(csv.DictReader(text.splitlines()))
    except OSError as error:
        raise HidaError(f"the table '{table}' cannot be read ({error.strerror}); check the path.") from None
    except (ValueError, csv.Error) as error:
        raise HidaError(f"the table '{table}' is neither valid CSV nor JSON ({error}); correct it there.") from None
    if not isinstance(rows, list) or not rows:
        raise HidaError(f"the table '{table}' has no lines; give the columns name, style and, optionally, split.")
    good, faults = [], []
    has_split = any(isinstance(row, dict) and row.get("split") for row in rows)
    for number, row in enumerate(rows, 1):
        row = row if isinstance(row, dict) else {}
        name, style, split = (row.get(key) for key in ("name", "style", "split"))
        problems = []
        if not isinstance(name, str) or not name.strip():
            problems.append("name is missing")
        if isinstance(style, bool) or not isinstance(style, (str, int)) or not str(style).strip():
            problems.append("style is missing")
        if has_split and split not in SPLITS:
            problems.append(f"split is {split!r}, not train or test")
        if problems:
            label = name if isinstance(name, str) and name else f"line {number}"
            faults.append(Fault("entry", label, f"{table.name} line {number}: {'; '.join(problems)}."))
        else:
            good.append(_Row(str(name).strip(), str(style).strip(), split if has_split else None))
    return good, faults


def _without_suffix(name: str) -> str:
    return re.sub(r"\.\w{2,5}$", "", name)


def _flat(stem: str) -> str:
    """Return a file name for a pair, of characters that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", stem.replace("/", "_"))


def _unique(pairs: list[SourcePair]) -> tuple[list[SourcePair], list[Fault]]:
    kept: dict[str, SourcePair] = {}
    faults = []
    for pair in pairs:
        # Compared without case, for file systems that do not tell a.png from A.png.
        if pair.name.lower() in kept:
            other = kept[pair.name.lower()].photo
            message = f"'{pair.photo}' and '{other}' would share one file name: rename one of them."
            faults.append(Fault("ambiguous", pair.name, message))
        else:
            kept[pair.name.lower()] = pair
    return list(kept.values()), faults


def _assign_splits(pairs: list[SourcePair], test_fraction: float, seed: int) -> list[SourcePair]:
    """Put the share ``test_fraction`` of each style into the test split, by a hash of seed and name."""
    chosen: set[str] = set()
    for style in {pair.style for pair in pairs}:
        names = [pair.name for pair in pairs if pair.style == style]
        names.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        chosen.update(names[: round(test_fraction * len(names))])
    return [
        SourcePair(p.name, "test" if p.name in chosen else "train", p.style, p.photo, p.sketch, p.attributes)
        for p in pairs
    ]
