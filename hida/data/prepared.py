"""The prepared set: aligned photo, sketch and depth PNGs, one index, and its only reader.

    OUT/index.json                 {"version", "source", "size", "template", "fill", "depth", "styles", "pairs": [...]}
    OUT/photo/NAME.png             RGB      OUT/sketch/NAME.png   8-bit grey
    OUT/depth/NAME.png             8-bit grey, 255 nearest, 0 farthest and background

Every path in the index is relative to OUT, so that the folder can be moved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hida.data.source import SPLITS
from hida.errors import HidaError
from hida.files import write_json
from hida.images.io import read_image

VERSION = 1
INDEX = "index.json"
JOURNAL = "journal.jsonl"  # what a preparation has finished so far
FOLDERS = ("photo", "sketch", "depth")

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
            way = f"hida prepare fs2k SRC {folder}'"
            if not begun and folder.is_dir() and any(folder.iterdir()):  # photos that are to be prepared, then
                kind = "fs2k" if (folder / "anno_train.json").exists() else "pairs"
                way = f"hida prepare {kind} {folder} OUT' and give OUT"
            raise HidaError(f"'{folder}' is not a prepared data set ({reason}); run '{way}.")
        try:
            raw = json.loads(index.read_text(encoding="utf-8"))
            if raw["version"] != VERSION:
                raise HidaError(
                    f"'{index}' has format {raw['version']}, this program reads {VERSION}; run hida prepare again."
                )
            pairs = tuple(_pair(entry, len(raw["styles"])) for entry in raw["pairs"])
            loaded = cls(
                folder=folder,
                source=str(raw["source"]),
                size=int(raw["size"]),
                template=tuple((float(x), float(y)) for x, y in raw["template"]),
                fill=dict(raw["fill"]),
                depth=str(raw["depth"]),
                styles=tuple(map(str, raw["styles"])),
                pairs=pairs,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise HidaError(f"'{index}' is damaged ({reason}); run hida prepare again.") from None
        absent = next((file for pair in pairs for file in loaded.files(pair) if not file.is_file()), None)
        if absent:
            raise HidaError(f"'{folder}' is incomplete, '{absent}' is missing; run hida prepare again to complete it.")
        return loaded

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


def _pair(entry: dict[str, Any], styles: int) -> PreparedPair:
    matrix, points = (tuple(tuple(map(float, row)) for row in entry[key]) for key in ("matrix", "points"))
    pair = PreparedPair(**{**entry, "matrix": matrix, "points": points})
    if pair.split not in SPLITS:
        raise ValueError(f"{pair.name} has the split {pair.split!r}")
    if not 0 <= pair.style < styles:
        raise ValueError(f"{pair.name} has the style {pair.style}, there are {styles}")
    for file in (pair.photo, pair.sketch, pair.depth):
        # A data set from elsewhere must not make this program open files outside its folder.
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or "\\" in file or ":" in file:
            raise ValueError(f"{pair.name} names a file outside the folder: {file}")
    return pair
