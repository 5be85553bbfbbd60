"""Read and check FS2K: 2,104 photo–sketch pairs in three styles; its JSON files give the split and the style.

Source: Fan et al., "Facial-Sketch Synthesis: A New Challenge", https://arxiv.org/abs/2112.15439.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hida.data.source import Fault, SourcePair, SourceSet, check_pictures, list_pictures
from hida.documents import DocumentError, read_json
from hida.documents.names import LONGEST
from hida.errors import HidaError, counted, shown

STYLES = ("style 1", "style 2", "style 3")

# Pairs by split and style as the JSON files have them (the paper swaps the 350 and the 351).
EXPECTED: Mapping[str, tuple[int, ...]] = {"train": (357, 350, 351), "test": (619, 381, 46)}

LAYOUT = "expected anno_train.json, anno_test.json, photo/photo1 to photo3 and sketch/sketch1 to sketch3 directly in it"

# Whole-number fields and how many values each takes; colours are lists of numbers. The data set's README writes
# skin_patch where its files have skin_color: either is taken.
_INTEGERS = {"hair": 2, "hair_color": 5, "gender": 2, "earring": 2, "smile": 2, "frontal_face": 2, "style": 3}
_COLOURS = (("skin_color", "skin_patch"), ("lip_color",), ("eye_color",))
_COLOUR = 100_000  # the files have some beyond 2,000
_NAME = re.compile(r"photo([1-9])/image(\w+?)(\.\w+)?")


def read_fs2k(
    folder: str | Path,
    expected: Mapping[str, tuple[int, ...]] = EXPECTED,
    workers: int = 2,
    progress: Callable[[int], Callable[[], object]] = lambda total: lambda: None,
) -> SourceSet:
    """Read FS2K from ``folder`` and check everything: entries, counts, partners, suffixes, sizes, every picture.

    Args:
        expected: pairs by split and style. Counts are checked when nothing else is wrong, since a broken entry changes
            them too; until then a deviation is a note.
        progress: called with the number of pairs; returns what is called after each.

    Returns:
        The sound pairs, and a :class:`Fault` for everything that is wrong.

    Raises:
        HidaError: if the folder is not laid out as FS2K is.
    """
    reader = _Reader(Path(folder))
    pairs = [pair for split in expected for pair in reader.read(split)]
    sound, unreadable, transparent = check_pictures(pairs, workers, progress(len(pairs)))
    faults = reader.faults + unreadable
    notes = []
    if transparent:
        notes.append(f"{counted(transparent, 'sketch is', 'sketches are')} transparent and laid over white.")
    if not faults:
        faults = _count_faults(SourceSet("fs2k", reader.folder, STYLES, tuple(sound)), expected, reader.unnamed())
    elif any(reader.entries.get(split) != sum(counts) for split, counts in expected.items()):
        found = ", ".join(
            f"{split} {reader.entries.get(split, 0):,} of {sum(counts):,}" for split, counts in expected.items()
        )
        notes.append(f"annotated pairs: {found}; counts are checked once the other faults are mended.")
    return SourceSet("fs2k", reader.folder, STYLES, tuple(sound), tuple(faults), tuple(notes))


def _count_faults(source: SourceSet, expected: Mapping[str, tuple[int, ...]], unnamed: list[str]) -> list[Fault]:
    faults = []
    for split, counts in source.counts().items():
        wanted = list(expected.get(split, ()))
        if counts != wanted:
            message = (
                f"{counted(sum(counts), 'pair')} ({'/'.join(map(str, counts))} by style) instead of {sum(wanted):,} "
                f"({'/'.join(map(str, wanted))})"
            )
            faults.append(Fault("count", f"anno_{split}.json", f"{message}: take the file from the data set again."))
    for name in unnamed:
        faults.append(Fault("unlisted", name, "is in the folders but in no annotation: add its entry or remove it."))
    return faults


class _Reader:
    """The pictures of photoN and sketchN by stem, and what the annotations say of them so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Fault] = []
        self.entries: dict[str, int] = {}
        self.splits: dict[str, str] = {}  # photo1/image0110 -> the split that first named it
        self.pictures: dict[str, Path] = {}  # photo1/image0110 or sketch1/sketch0110 -> its file
        self.twice: set[str] = set()  # those of which there are two files
        self.others: dict[str, Path] = {}  # the same for files that are no pictures
        self._scan()

    def _scan(self) -> None:
        if not self.folder.is_dir():
            raise HidaError(f"'{self.folder}' is not a folder; give the folder of FS2K ({LAYOUT}).")
        needed = ("anno_train.json", "anno_test.json", "photo", "sketch")
        missing = [name for name in needed if not (self.folder / name).exists()]
        if missing:
            inside = next((path for path in sorted(self.folder.glob("*/")) if (path / needed[0]).exists()), None)
            hint = f"; did you mean '{inside}'?" if inside else "."
            raise HidaError(f"'{self.folder}' is not FS2K, it has no {', '.join(missing)} ({LAYOUT}){hint}")
        numbers: dict[str, set[str]] = {}
        for kind in ("photo", "sketch"):
            folders = [path for path in sorted((self.folder / kind).glob(f"{kind}[1-9]")) if path.is_dir()]
            numbers[kind] = {path.name.removeprefix(kind) for path in folders}
            for path in folders:
                listed = list_pictures(path)
                self.faults += listed.faults
                self.pictures |= {f"{path.name}/{stem}": file for stem, file in listed.pictures.items()}
                self.twice |= {f"{path.name}/{stem}" for stem in listed.twice}
                self.others |= {f"{path.name}/{file.stem}": file for file in listed.others}
        wanted = numbers["photo"] | numbers["sketch"] or {"1", "2", "3"}
        missing = [f"{kind}/{kind}{n}" for kind in numbers for n in sorted(wanted - numbers[kind])]
        if missing:
            raise HidaError(f"'{self.folder}' is not FS2K, it has no {', '.join(missing)} ({LAYOUT}).")

    def unnamed(self) -> list[str]:
        """Return the pairs, by the photo's name, whose photo or sketch is in the folders without an entry."""
        named = {name.replace("sketch", "photo", 1).replace("/sketch", "/image") for name in self.pictures}
        return sorted(named - set(self.splits))

    def read(self, split: str) -> list[SourcePair]:
        """Read one annotation file; return the pairs that it names rightly, and note every fault."""
        annotation = self.folder / f"anno_{split}.json"
        try:
            entries = read_json(annotation).raw
        except DocumentError as error:
            message = f"cannot be read ({error}): take the file from the data set again."
            self.faults.append(Fault("annotation", annotation.name, message))
            return []
        if not isinstance(entries, list):
            message = f"holds {shown(entries)}, not a list of entries: take the file from the data set again."
            self.faults.append(Fault("annotation", annotation.name, message))
            return []
        self.entries[split] = len(entries)
        pairs = [self._pair(entry, split, f"anno_{split}.json entry {k + 1}") for k, entry in enumerate(entries)]
        return [pair for pair in pairs if pair is not None]

    def _pair(self, entry: Any, split: str, place: str) -> SourcePair | None:
        """Check one entry: one fault for all that is wrong in it, one for each picture that is named but missing."""
        name = entry.get("image_name") if isinstance(entry, dict) else None
        match = _match(name)
        problems = _problems(entry)
        if match is None:
            known = name if isinstance(name, str) and name.isprintable() and len(name) <= LONGEST else place
            self.faults.append(Fault("entry", known, f"{place}: {'; '.join(problems)}."))
            return None
        stem = f"photo{match[1]}/image{match[2]}"
        first = self.splits.setdefault(stem, place)
        if first != place:
            kind = "duplicate" if first.split()[0] == place.split()[0] else "overlap"
            self.faults.append(Fault(kind, stem, f"{place} repeats {first}: keep one of them."))
            return None
        if problems:
            self.faults.append(Fault("entry", stem, f"{place}: {'; '.join(problems)}."))
        files = {"photo": stem, "sketch": f"sketch{match[1]}/sketch{match[2]}"}
        found = {kind: self.pictures[file] for kind, file in files.items() if file in self.pictures}
        if not found and not problems:
            message = f"{place} names it, but neither photo/{files['photo']} nor sketch/{files['sketch']} is there."
            self.faults.append(Fault("entry", stem, message))
        for kind in [kind for kind in files if found and kind not in found]:
            other = self.others.get(files[kind])
            hint = f" ({other.name} has the suffix of no known picture format)" if other else ""
            message = f"{place} names it, but {kind}/{files[kind]}.jpg or .png is not there{hint}."
            self.faults.append(Fault(f"missing {kind}", files[kind], message))
        if problems or len(found) < 2 or not self.twice.isdisjoint(files.values()):
            return None
        attributes = {key: value for key, value in entry.items() if key not in ("image_name", "style")}
        return SourcePair(stem.replace("/", "_"), split, entry["style"], attributes=attributes, **found)


def _match(name: Any) -> re.Match[str] | None:
    """Return the parts of an image_name; None if it is none, or could not be a file's name."""
    return _NAME.fullmatch(name) if isinstance(name, str) and len(name.encode("utf-8", "replace")) <= LONGEST else None


def _problems(entry: Any) -> list[str]:
    """Return everything that is wrong with the fields of an entry."""
    if not isinstance(entry, dict):
        return [f"holds {shown(entry)}, not an object with named fields"]
    fields = [("image_name",), *((name,) for name in _INTEGERS), *_COLOURS]
    missing = [names[0] for names in fields if not any(name in entry for name in names)]
    problems = [f"lacks {', '.join(missing)}"] if missing else []
    if "image_name" in entry and _match(entry["image_name"]) is None:
        problems.append(f"image_name is {reprlib.repr(entry['image_name'])}, not of the form photo1/image0110")
    for name, count in _INTEGERS.items():
        value = entry.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            problems.append(f"{name} is {reprlib.repr(value)}, not a whole number 0 to {count - 1}")
    for names in _COLOURS:
        for name in names:
            value = entry.get(name, [0])
            numbers = isinstance(value, list) and all(type(v) in (int, float) and abs(v) <= _COLOUR for v in value)
            if not numbers or not value:
                problems.append(f"{name} is {reprlib.repr(value)}, not a list of numbers of at most {_COLOUR:,}")
    return problems
