"""The prepared set: aligned photo, sketch and depth PNGs, one index, and its only reader.

    OUT/index.json                 {"version", "source", "size", "template", "fill", "depth", "styles", "pairs": [...]}
    OUT/photo/NAME.png             RGB      OUT/sketch/NAME.png   8-bit grey
    OUT/depth/NAME.png             8-bit grey, 255 nearest, 0 farthest and background

Every path in the index is relative to OUT, so that the folder can be moved.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hida.data.source import SPLITS
from hida.documents import DocumentError, Value, read_json
from hida.errors import HidaError, shown
from hida.files import write_json
from hida.images.io import read_image

VERSION = 1
INDEX = "index.json"
JOURNAL = "journal.jsonl"  # what a preparation has finished so far
FOLDERS = ("photo", "sketch", "depth")
MOST = 10_000  # styles of a set, faces of a photo, pixels of a side

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PreparedPair:
    """One aligned pair.

    Args:
        matrix: the 2×3 similarity from the source's pixels to the frame.
        points: left-image eye, right-image eye and mouth in the source.
        faces: how many were found (the largest is taken).
    """

    name: str
    split: str
    style: int
    photo: str
    sketch: str
    depth: str
    matrix: Matrix
    points: Points
    faces: int
    attributes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, entry: Value, styles: int) -> PreparedPair:
        """Check an entry of an index or a journal.

        Raises:
            DocumentError: naming the field that is wrong.
        """
        entry.only(tuple(cls.__dataclass_fields__))
        attributes = entry.optional("attributes")
        return cls(
            name=entry.field("name").name(),
            split=entry.field("split").one_of(SPLITS),
            style=entry.field("style").whole(0, styles - 1),
            photo=entry.field("photo").path(),
            sketch=entry.field("sketch").path(),
            depth=entry.field("depth").path(),
            matrix=_numbers(entry.field("matrix"), 2, 3),
            points=_numbers(entry.field("points"), 3, 2),
            faces=entry.field("faces").whole(0, MOST),
            attributes={} if attributes is None else {key: value.raw for key, value in attributes.fields().items()},
        )


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder; the module's docstring lists its files."""

    folder: Path
    source: str
    size: int
    template: Points
    fill: dict[str, str]
    depth: str
    styles: tuple[str, ...]
    pairs: tuple[PreparedPair, ...]

    @classmethod
    def load(cls, folder: str | Path) -> PreparedSet:
        """Read and check ``OUT/index.json``.

        Raises:
            HidaError: if the folder is not a whole prepared set.
        """
        folder = Path(folder)
        index = folder / INDEX
        if not index.is_file():
            begun = (folder / JOURNAL).exists()
            reason = "its preparation did not finish" if begun else f"it has no {INDEX}"
            if not folder.exists():
                reason = "there is no such file or folder"
            way = f"hida prepare fs2k SRC {folder}'"
            if folder.suffix.lower() == ".zip" and not folder.is_dir():
                way = f"hida prepare fs2k SRC OUT' and 'hida pack OUT {folder}'"
            if not begun and folder.is_dir() and any(folder.iterdir()):  # photos that are to be prepared, then
                kind = "fs2k" if (folder / "anno_train.json").exists() else "pairs"
                way = f"hida prepare {kind} {folder} OUT' and give OUT"
            raise HidaError(f"'{folder}' is not a prepared data set ({reason}); run '{way}.")
        try:
            loaded = cls.read_index(read_json(index), folder)
        except DocumentError as error:
            raise HidaError(f"'{index}' is damaged ({error}); run hida prepare again.") from None
        absent = next((file for pair in loaded.pairs for file in loaded.files(pair) if not file.is_file()), None)
        if absent:
            encoding = sys.getfilesystemencoding()
            unreadable = encoding != "utf-8" and not absent.name.isascii()
            way = f"read names as UTF-8, not {encoding} (PYTHONUTF8=1), or " if unreadable else ""
            raise HidaError(f"'{folder}' is incomplete, '{absent}' is missing; {way}run hida prepare again.")
        return loaded

    @classmethod
    def read_index(cls, raw: Value, folder: Path) -> PreparedSet:
        """Check the content of an index; whether the pictures are there is not looked at.

        Raises:
            DocumentError: naming the field that is wrong.
            HidaError: if it is of another version.
        """
        if raw.field("version").raw != VERSION or isinstance(raw.field("version").raw, bool):
            found = shown(raw.field("version").raw)
            raise HidaError(f"'{folder}' has an index of format {found}, this program reads {VERSION}; prepare again.")
        styles = tuple(style.text() for style in raw.field("styles").items(1, MOST))
        pairs = tuple(PreparedPair.read(entry, len(styles)) for entry in raw.field("pairs").items())
        names: set[str] = set()
        for k, pair in enumerate(pairs):
            # Compared as the file systems do that know neither case nor the two ways to write an accent.
            name = unicodedata.normalize("NFC", pair.name).casefold()
            if name in names:
                raise DocumentError(f"pairs[{k}].name is {shown(pair.name)}, which another pair has")
            names.add(name)
        return cls(
            folder=folder,
            source=raw.field("source").text(),
            size=raw.field("size").whole(1, MOST),
            template=_numbers(raw.field("template"), 3, 2),
            fill={key: value.text() for key, value in raw.field("fill").fields().items()},
            depth=raw.field("depth").text(),
            styles=styles,
            pairs=pairs,
        )

    def save(self) -> None:
        """Write the index, whole or not at all."""
        content = {"version": VERSION, **{key: value for key, value in asdict(self).items() if key != "folder"}}
        write_json(self.folder / INDEX, content)

    def split(self, name: str) -> tuple[PreparedPair, ...]:
        """Return the pairs of "train" or "test", in the order of the index.

        Raises:
            HidaError: for another split.
        """
        if name not in SPLITS:
            raise HidaError(f"there is no split '{name}'; choose one of {', '.join(SPLITS)}.")
        return tuple(pair for pair in self.pairs if pair.split == name)

    def files(self, pair: PreparedPair) -> tuple[Path, Path, Path]:
        """Return the paths of the photo, the sketch and the depth map."""
        return self.folder / pair.photo, self.folder / pair.sketch, self.folder / pair.depth

    def read(self, pair: PreparedPair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read photo H×W×3, sketch H×W and depth H×W, all uint8.

        Raises:
            HidaError: if one is damaged or of another size.
        """
        arrays = []
        for path, mode in zip(self.files(pair), ("RGB", "L", "L"), strict=True):
            image = read_image(path).convert(mode)
            if image.size != (self.size, self.size):
                raise HidaError(
                    f"'{path}' is {image.width}×{image.height}, not {self.size}×{self.size}; run hida prepare again."
                )
            arrays.append(np.array(image))
        return arrays[0], arrays[1], arrays[2]


def _numbers(value: Value, rows: int, columns: int) -> Any:
    """Return a matrix of numbers as tuples."""
    return tuple(tuple(number.number() for number in row.items(columns, columns)) for row in value.items(rows, rows))
