"""Where results go: which file each photo's drawings are written to, and in which format."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hida.cli.photos import STDIN, photo_name
from hida.errors import HidaError
from hida.files import cut, require_file_place, require_folder_place, told_apart, write_bytes
from hida.images.tracing import require_tracer
from hida.images.writing import SUFFIXES, USUAL_SUFFIX, Format, format_of

STDOUT = Path("-")
_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
SHEETS = ("_sheet", "_sweep")  # suffixes of pictures that have the photo in them, which is not traced
_LONGEST = 255  # bytes of a file's name, which file systems take


@dataclass(frozen=True)
class Place:
    """What ``--out`` names: a folder, or one file, which is ``STDOUT`` for standard output."""

    path: Path
    is_folder: bool
    format: Format

    @property
    def is_stdout(self) -> bool:
        return not self.is_folder and self.path == STDOUT

    def targets(
        self, photos: Sequence[Path], suffixes: Sequence[str], given: Iterable[Path] = ()
    ) -> dict[Path, list[Path]]:
        """Return for each photo the files to write, one for each suffix.

        Args:
            given: other files that are read, of which none is to be overwritten.

        Raises:
            HidaError: as :func:`name_targets`, or for more than one drawing in one file, or for a sheet as an SVG.
        """
        if self.is_folder:
            usual = USUAL_SUFFIX[self.format]
            endings = [f"{name}{'.png' if self.format == 'svg' and name in SHEETS else usual}" for name in suffixes]
            return name_targets(photos, self.path, endings, "", given)
        photos = list(dict.fromkeys(photos))
        count = len(photos) * len(suffixes)
        if count != 1:
            what = f"{count} drawings of {'one photo' if len(photos) == 1 else f'{len(photos)} photos'}"
            how = (
                "one photo"
                if len(suffixes) == 1
                else "one style, such as --style 1"
                if len(photos) == 1
                else "one of each"
            )
            raise HidaError(f"--out {self.path} is one file for {what}; give {how}, or a folder with --out.")
        if self.format == "svg" and suffixes[0] in SHEETS:
            raise HidaError("a picture with the photo in it cannot be an SVG; give --out a file that ends in .png.")
        if not self.is_stdout:
            _require_free(self.path, [*photos, *given])
        return {photos[0]: [self.path]}

    def write(self, target: Path, data: bytes) -> None:
        """Write a file whole or not at all, or to standard output."""
        if self.is_stdout:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            write_bytes(target, data)


def read_place(out: str, kind: Format | None = None) -> Place:
    """Return what ``--out`` names: "-" is standard output, a name with a suffix a file, any other a folder.

    Devices and pipes that exist are files, and what leads to standard output is it. A folder that exists, or whose name
    ends in a slash, is one whatever its name. ``kind`` is ``--format``.

    Raises:
        HidaError: it cannot be written, or no format has this suffix, or another than ``kind``; standard output is a
            terminal or closed; the format needs a package that is not installed.
    """
    path = Path(out)
    if out in _STDOUT:
        out = str(STDOUT)
    ends = (os.sep, *([os.altsep] if os.altsep else []))
    special = path.exists() and not path.is_dir() and not path.is_file()  # a device or a pipe
    folder = path.is_dir() or out.endswith(ends) or not (path.suffix or special)
    if out == "-":
        place = Place(STDOUT, False, kind or "png")
        if getattr(sys.stdout, "buffer", None) is None:
            raise HidaError("--out - writes to standard output, which is closed; give a file or a folder.")
        if sys.stdout.isatty():
            raise HidaError("--out - would write a picture into the terminal; add > FILE or | PROGRAM, or give a file.")
    elif special:
        place = Place(path, False, kind or "png")
        require_file_place(path)
    elif folder:
        place = Place(path, True, kind or "png")
        require_folder_place(path)
    else:
        if path.suffix.lower() not in SUFFIXES:
            raise HidaError(
                f"--out {out} ends in '{path.suffix}', which no picture is written as; give a file that ends in "
                f"{', '.join(SUFFIXES)}, or a folder with a slash at its end."
            )
        place = Place(path, False, format_of(path))
        if kind not in (None, place.format):
            raise HidaError(f"--out {out} is a file, whose suffix says its format; leave out --format {kind}.")
        require_file_place(path)
    if place.format == "svg":
        require_tracer()
    return place


def name_targets(
    photos: Sequence[Path],
    out: Path,
    suffixes: Sequence[str] = ("",),
    ending: str = ".png",
    given: Iterable[Path] = (),
) -> dict[Path, list[Path]]:
    """Return for each photo the files to write: ``out/STEM``, a suffix each, and the ending.

    Photos that differ by their own suffix only keep it: ``c.jpg`` and ``c.png`` give ``c.jpg_style1.png`` and
    ``c.png_style1.png``; those of one name begin with their folder's: ``p-c_style1.png`` and ``q-c_style1.png``. What
    is read from standard input is called "stdin". A name too long for a file is cut.

    Args:
        given: other files that are read.

    Raises:
        HidaError: if two photos would share a file, or a file is itself one that is read: none is overwritten unasked.
    """
    targets: dict[Path, list[Path]] = {}
    taken: dict[Path, Path] = {}
    photos = list(dict.fromkeys(photos))
    given = [*photos, *given]
    # Some file systems take names for one that differ by the case of letters.
    names = told_apart(photos, [_stem, lambda photo: _stem(photo) if photo == STDIN else photo.name], "-")
    for photo in photos:
        name = names[photo]
        targets[photo] = [out / _named(name, f"{suffix}{ending}") for suffix in suffixes]
        for target in targets[photo]:
            if target in taken:
                raise HidaError(
                    f"{photo_name(taken[target])} and {photo_name(photo)} would both be written to {target}; do them "
                    "one by one, with an --out for each."
                )
            _require_free(target, given)
            taken[target] = photo
    return targets


def _stem(photo: Path) -> str:
    return "stdin" if photo == STDIN else photo.stem


def existing(targets: Mapping[Path, list[Path]]) -> dict[Path, list[Path]]:
    """Return the photos of which all files are there, with these."""
    return {photo: files for photo, files in targets.items() if all(file.is_file() for file in files)}


def _require_free(target: Path, given: Iterable[Path]) -> None:
    if target.resolve() in {path.resolve() for path in given}:
        raise HidaError(f"{target} is one of the photos or maps that are read; choose another place with --out.")


def _named(stem: str, ending: str) -> str:
    if len(os.fsencode(stem + ending)) <= _LONGEST:
        return stem + ending
    # What was cut off still tells names apart.
    ending = f"-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}{ending}"
    return cut(stem, _LONGEST - len(os.fsencode(ending))) + ending
