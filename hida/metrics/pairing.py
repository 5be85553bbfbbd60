"""Pair predictions with their targets, by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hida.errors import HidaError
from hida.metrics.frechet import image_paths

_PREPARED = ("index.json", "journal.jsonl")  # the second alone: its preparation did not finish, as the reader says
# FS2K calls the sketch of photo1/image0110 sketch1/sketch0110.
_FS2K_SKETCH = re.compile(r"sketch(\d+)_sketch(\d+)")


@dataclass(frozen=True)
class Pair:
    """A prediction and its target; the style counts from 0, and is None where it is not known.

    ``attributes``: the annotations of a prepared pair.
    """

    name: str
    prediction: Path
    target: Path
    style: int | None = None
    photo: Path | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def is_prepared(folder: Path) -> bool:
    """Return whether the folder is a prepared data set rather than a folder of images."""
    return any((folder / name).is_file() for name in _PREPARED)


def find_pairs(
    prediction: Path,
    target: Path,
    photos: Path | None = None,
    only_common: bool = False,
    names: Collection[str] | None = None,
) -> tuple[list[Pair], list[str]]:
    """Pair a folder of predictions with a folder of targets or some of a prepared set.

    A picture's name is its path below the folder without suffix, "/" read as "_". Predictions of a prepared set's other
    pairs are left out.

    Args:
        prediction, target, photos: folders; a prepared set brings its own photos.
        only_common: score the names that both sides have, instead of refusing unpaired ones.
        names: of a prepared set, the pairs to score; by default its test split.

    Returns:
        The pairs in the order of the targets, and remarks on what was left out.

    Raises:
        HidaError: for a folder that is none or is empty, two files of one name, or an unpaired name.
    """
    found = _by_name(prediction)
    remarks: list[str] = []
    wanted: dict[str, Pair] = {}
    if is_prepared(target):
        from hida.data.prepared import PreparedSet

        prepared = PreparedSet.load(target)
        for pair in prepared.split("test") if names is None else (p for p in prepared.pairs if p.name in names):
            photo, sketch, _ = prepared.files(pair)
            name = _key(pair.name)
            wanted[name] = Pair(name, Path(), sketch, pair.style, photo, pair.attributes)
        others = {_key(pair.name) for pair in prepared.pairs} - wanted.keys()
        aside = [name for name in found if name in others]
        if aside:
            remarks.append(f"{len(aside):,} predictions of other pairs were left aside")
            found = {name: path for name, path in found.items() if name not in others}
        if not wanted:
            raise HidaError(f"'{target}' has no test pairs; prepare it with a test split.")
    elif (target / "anno_test.json").is_file():
        raise HidaError(f"'{target}' is FS2K as distributed; run 'hida prepare fs2k {target} OUT' and give OUT.")
    else:
        pictures = _by_name(photos) if photos is not None else {}
        targets = _by_name(target).items()
        wanted = {name: Pair(name, Path(), path, photo=pictures.get(name)) for name, path in targets}
    missing, extra = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    if not only_common:
        if missing:
            raise HidaError(
                f"{len(missing):,} of {len(wanted):,} targets have no prediction in '{prediction}' "
                f"({_some(missing)}); add them, or score the common names with --only-common."
            )
        if extra:
            raise HidaError(
                f"{len(extra):,} predictions have no target in '{target}' ({_some([str(found[n]) for n in extra])}); "
                "remove them, or score the common names with --only-common."
            )
    elif missing or extra:
        remarks.append(f"{len(missing):,} targets without and {len(extra):,} predictions beyond a pair were left aside")
    pairs = [replace(pair, prediction=found[name]) for name, pair in wanted.items() if name in found]
    if not pairs:
        raise HidaError(f"'{prediction}' and '{target}' have no name in common; name the predictions like the targets.")
    return pairs, remarks


def _key(name: str) -> str:
    """Return a name as it is compared: a Mac writes accents as characters of their own (NFD), others do not."""
    return unicodedata.normalize("NFC", name)


def _by_name(folder: Path) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for path in image_paths(folder):
        name = _key("_".join(path.relative_to(folder).with_suffix("").parts))
        sketch = _FS2K_SKETCH.fullmatch(name)
        if sketch:
            name = f"photo{sketch[1]}_image{sketch[2]}"
        if name in found:
            raise HidaError(f"'{found[name]}' and '{path}' both have the name {name}; remove one of them.")
        found[name] = path
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
