"""A user's own photo and sketch folders, with any number of styles.

    SRC/photo/NAME.*        + SRC/sketch/NAME.*          one style (as in APDrawing)
    SRC/photo/STYLE/NAME.*  + SRC/sketch/STYLE/NAME.*    a style for each folder, in the order of their names

or a table of :mod:`hida.data.table`: name is the picture's path under SRC/photo and SRC/sketch, with or without suffix.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from hida.data.prepared import MOST
from hida.data.source import Fault, Listed, SourcePair, SourceSet, check_pictures, is_picture, list_pictures
from hida.data.table import Row, read_table
from hida.documents import safe_name
from hida.errors import HidaError, counted, prints, shown

LAYOUT = "expected SRC/photo and SRC/sketch with pictures of the same names, or a folder for each style in both"


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
    listed = [_pictures(folder / kind) for kind in ("photo", "sketch")]
    photos, sketches = (found.pictures for found in listed)
    twice = listed[0].twice | listed[1].twice
    faults = [fault for found in listed for fault in found.faults]
    notes = [_note(found, kind) for found, kind in zip(listed, ("photo", "sketch"), strict=True) if found.others]
    if table is None:
        rows = _rows_from_folders(folder, photos, sketches)
    else:
        rows, wrong = read_table(Path(table))
        faults += wrong
    for row in rows:
        if not prints(row.style):
            raise HidaError(f"the style {shown(row.style)} has characters that do not print; rename it.")
    styles = tuple(sorted({row.style for row in rows}, key=_numbered))
    if len(styles) > MOST:
        raise HidaError(f"'{table or folder}' names {len(styles):,} styles; give each pair one of a few.")

    pairs, seen = [], set()
    for row in rows:
        stem = row.name if row.name in photos or row.name in sketches else re.sub(r"\.\w{2,5}$", "", row.name)
        absent = [kind for kind, files in (("photo", photos), ("sketch", sketches)) if stem not in files]
        if stem in seen:
            faults.append(Fault("duplicate", stem, "is twice in the table: keep one line."))
        elif absent:
            message = f"there is no {' and no '.join(f'{kind}/{stem}.*' for kind in absent)}."
            faults.append(Fault(f"missing {' and '.join(absent)}", stem, message))
        elif stem not in twice:  # which has its fault
            split = row.split or "train"
            pairs.append(
                SourcePair(
                    safe_name(stem.replace("/", "_")), split, styles.index(row.style), photos[stem], sketches[stem]
                )
            )
        seen.add(stem)
    pairs, clashes = _unique(pairs)
    faults += clashes
    if all(row.split is None for row in rows):
        pairs = _assign_splits(pairs, test_fraction, seed)
    sound, unreadable, transparent = check_pictures(pairs, workers, progress(len(pairs)))
    faults += unreadable
    if not sound and not faults:
        raise HidaError(f"'{folder}' holds no pairs ({LAYOUT}).")
    if transparent:
        notes.append(f"{counted(transparent, 'sketch is', 'sketches are')} transparent and laid over white.")
    return SourceSet("pairs", folder, styles, tuple(sound), tuple(faults), tuple(notes))


def _pictures(folder: Path) -> Listed:
    """Return all pictures directly in ``folder`` or one folder below, by their path without suffix.

    Pictures further below are faults.
    """
    found = list_pictures(folder)
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        inside = list_pictures(below)
        style = unicodedata.normalize("NFC", below.name)
        found.faults += inside.faults
        found.twice |= {f"{style}/{stem}" for stem in inside.twice}
        found.others += inside.others
        for stem, path in inside.pictures.items():  # the same style may be there in both forms of Unicode
            found.add(f"{style}/{stem}", path, f"{style}/{stem}")
        for path in sorted(path for path in below.iterdir() if path.is_dir() and not path.name.startswith(".")):
            lost = sum(is_picture(Path(name)) for _, _, names in os.walk(path) for name in names)
            if lost:
                message = f"holds {counted(lost, 'picture')} two folders deep: move all up to a style."
                found.faults.append(Fault("too deep", f"{folder.name}/{below.name}/{path.name}", message))
    return found


def _note(found: Listed, kind: str) -> str:
    names = ", ".join(path.name for path in found.others[:3]) + (", …" if len(found.others) > 3 else "")
    return f"{counted(len(found.others), 'file')} in {kind} without the suffix of a picture: left out ({names})."


def _rows_from_folders(folder: Path, photos: dict[str, Path], sketches: dict[str, Path]) -> list[Row]:
    names = sorted(photos.keys() | sketches.keys())
    nested = {"/" in name for name in names}
    if len(nested) > 1:
        loose = next(name for name in names if "/" not in name)
        raise HidaError(
            f"'{folder}' mixes folders of styles with loose pictures ('{loose}'); move every picture into a style."
        )
    return [Row(name, name.split("/")[0] if nested == {True} else "style 1", None) for name in names]


def _numbered(style: str) -> list[object]:
    """Return what styles are sorted by: numbers in them by their values, not "10" before "2"."""
    parts = re.split(r"(\d+)", style)
    return [(len(part.lstrip("0")), part.lstrip("0"), part) if k % 2 else part for k, part in enumerate(parts)]


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
