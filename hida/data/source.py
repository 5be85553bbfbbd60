"""What a source folder of photo–sketch pairs holds, and each thing that is wrong with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hida.errors import printed
from hida.images.io import IMAGE_SUFFIXES, ImageError, read_image
from hida.images.opening import is_transparent

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: what kind of thing, with which pair or file, and a sentence."""

    kind: str
    name: str
    message: str

    def __str__(self) -> str:
        return printed(f"{self.kind}: {self.name}: {self.message}")  # it names files, whose names may hold anything


@dataclass(frozen=True)
class SourcePair:
    """A photo and the sketch drawn from it. ``name`` serves as a file name; ``style`` counts from 0."""

    name: str
    split: str
    style: int
    photo: Path
    sketch: Path
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceSet:
    """The sound pairs of a folder, its faults, and remarks on what is unusual but accepted."""

    source: str
    folder: Path
    styles: tuple[str, ...]
    pairs: tuple[SourcePair, ...]
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, list[int]]:
        """Return the number of pairs by split and style: {"train": [357, 350, 351], ...}."""
        table = {split: [0] * len(self.styles) for split in SPLITS}
        for pair in self.pairs:
            table[pair.split][pair.style] += 1
        return table


@dataclass
class Listed:
    """The files of a folder.

    Args:
        pictures: by stem; of two with one stem the first.
        twice: the stems that occur twice: which picture is meant is not known.
        others: files that are no pictures by their suffix.
        faults: one for each file beyond the first of its stem.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    others: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, stem: str, path: Path, place: str) -> None:
        """Take a picture into the list; ``place`` names it in a fault."""
        first = self.pictures.setdefault(stem, path)
        if first is not path:
            self.twice.add(stem)
            both = (first.name, path.name) if first.parent == path.parent else (first, path)
            message = f"both {both[0]} and {both[1]} are in {path.parent.name}: keep one of them."
            self.faults.append(Fault("ambiguous", place, message))


def list_pictures(folder: Path) -> Listed:
    """Return the files of ``folder``; hidden ones and those that file managers leave are skipped.

    Suffixes count in any case. Stems are in Unicode's NFC: a Mac writes accents as characters of their own, and the
    partner may come from elsewhere.
    """
    found = Listed()
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini") or path.is_dir():
            continue
        stem = unicodedata.normalize("NFC", path.stem)
        if is_picture(path):
            found.add(stem, path, f"{folder.name}/{stem}")
        else:
            found.others.append(path)
    return found


def is_picture(path: Path) -> bool:
    """Return whether a file is taken for a picture, by its suffix; hidden ones are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def check_pictures(
    pairs: Iterable[SourcePair], workers: int = 2, advance: Callable[[], object] = lambda: None
) -> tuple[list[SourcePair], list[Fault], int]:
    """Read every picture in full; return the sound pairs, the faults, and how many sketches are transparent.

    A pair is sound when both pictures can be read and have one size. ``advance`` is called after each pair.
    """
    sound: list[SourcePair] = []
    faults: list[Fault] = []
    transparent = 0
    pairs = list(pairs)
    # Threads suffice: Pillow decodes outside the interpreter lock.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for pair, (found, see_through) in zip(pairs, pool.map(_check_pair, pairs), strict=True):
            advance()
            faults += found
            transparent += see_through
            if not found:
                sound.append(pair)
    return sound, faults, transparent


def _check_pair(pair: SourcePair) -> tuple[list[Fault], bool]:
    faults, sizes, see_through = [], [], False
    for path in (pair.photo, pair.sketch):
        try:
            sizes.append(read_image(path).size)
        except ImageError as error:
            faults.append(Fault("unreadable", f"{path.parent.name}/{path.name}", str(error)))
    if not faults:
        see_through = is_transparent(pair.sketch)
        if sizes[0] != sizes[1]:
            photo, sketch = (f"{width}×{height}" for width, height in sizes)
            message = f"the photo is {photo} and the sketch {sketch}: a pair must share one size."
            faults.append(Fault("size", pair.name, message))
    return faults, see_through
