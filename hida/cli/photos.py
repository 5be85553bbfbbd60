"""Which photos a command was given, where each one's results go, and the loop over them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from hida.errors import HidaError, printed
from hida.files import cut
from hida.images.io import image_files

_SHOWN = 40  # characters of a name before the bar
_LONGEST = 255  # bytes of a file's name, which file systems take
Frame = Literal["auto", "portrait", "face", "whole"]
# As hida.drawing's sketcher, finish and detail name them, which load torch.
Background = Literal["keep", "white", "transparent"]
Detail = Literal["coarse", "fine", "auto"]


def list_photos(given: Sequence[Path]) -> list[Path]:
    """Return the photos given by name and those directly in the given folders.

    Raises:
        HidaError: if there is none, or a folder holds none.
    """
    if not given:
        raise HidaError("no photo was given; give one or more photos, or folders of photos.")
    photos: list[Path] = []
    for path in given:
        photos += _inside(path) if path.is_dir() else [path]
    return photos


def _inside(folder: Path) -> list[Path]:
    """Return the photos in a folder, and say what is left out of it."""
    photos = image_files(folder)
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    deeper = sum(_holds_pictures(path) for path in visible)
    if not photos:
        more = f" itself, {deeper:,} folders in it do" if deeper else ""
        raise HidaError(f"the folder {folder} holds no pictures{more}; give photos, or another folder.")
    known = {*photos, folder / "Thumbs.db", folder / "desktop.ini"}
    others = sorted(path.name for path in visible if path.is_file() and path not in known)
    if others:
        named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        _note(f"{len(others):,} files in {folder} have no suffix of a picture and are left out ({named}).")
    if deeper:
        _note(f"{deeper:,} folders in {folder} hold pictures too, and are left out; give them by name.")
    return photos


def _holds_pictures(path: Path) -> bool:
    try:
        return path.is_dir() and bool(image_files(path))
    except OSError:  # a folder of somebody else
        return False


def _note(text: str) -> None:
    print(f"note: {printed(text)}", file=sys.stderr)


def require_one_for_map(photos: Sequence[Path], depth: str) -> None:
    """Check that a depth map given as a file is for one photo.

    Raises:
        HidaError: if ``depth`` is a file and there are several photos.
    """
    if len(photos) > 1 and Path(depth).is_file():
        raise HidaError(f"--depth {depth} is one map for {len(photos)} photos; give the photos one by one.")


def name_targets(photos: Sequence[Path], out: Path, suffixes: Sequence[str] = ("",)) -> dict[Path, list[Path]]:
    """Return for each photo the PNGs to write: ``out/STEM`` and a suffix each; a stem too long for it is cut.

    Raises:
        HidaError: if two photos would share a file, or a file is itself one of the photos: none is overwritten unasked.
    """
    targets: dict[Path, list[Path]] = {}
    taken: dict[Path, Path] = {}
    originals = {photo.resolve() for photo in photos}
    for photo in dict.fromkeys(photos):
        targets[photo] = [out / _named(photo.stem, f"{suffix}.png") for suffix in suffixes]
        for target in targets[photo]:
            if target in taken:
                raise HidaError(f"{taken[target]} and {photo} would both be written to {target}; do them one by one.")
            if target.resolve() in originals:
                raise HidaError(f"{target} is one of the photos; choose another folder with --out.")
            taken[target] = photo
    return targets


def _named(stem: str, ending: str) -> str:
    if len(os.fsencode(stem + ending)) <= _LONGEST:
        return stem + ending
    # What was cut off still tells names apart.
    ending = f"-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}{ending}"
    return cut(stem, _LONGEST - len(os.fsencode(ending))) + ending


@contextlib.contextmanager
def told_warnings() -> Iterator[None]:
    """Write warnings as a line each, above a progress bar if there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: tell(str(message))
        yield


def tell(text: str) -> None:
    """Write a line to stderr, above the progress bar if there is one."""
    tqdm.write(f"hida: {printed(text)}", file=sys.stderr)


def for_each(
    targets: Mapping[Path, Sequence[Path]],
    work: Callable[[Path], None],
    description: str | None = None,
    failures: dict[Path, str] | None = None,
) -> int:
    """Call ``work`` with every photo under a progress bar; one bad photo among several does not stop the others.

    Warnings and the reasons of failures are written above the bar, a line each, which names the photo if there are
    several.

    Args:
        targets: the photos with their files, of :func:`name_targets`.
        work: reads a photo, and writes its files once they are computed.
        description: what the bar says; if left out, the name of the photo at work.
        failures: receives the reason of each photo that failed, if given.

    Returns:
        How many photos failed.

    Raises:
        HidaError: if the only photo failed.
    """
    failed = 0
    several = len(targets) > 1
    with tqdm(targets, desc=description, unit="photo", disable=not several) as bar:
        for photo in bar:
            if description is None:
                name = printed(photo.name)
                bar.set_description(name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…")

            def named(text: str, name: str = str(photo)) -> str:
                return text if name in text else f"{name}: {text}"

            try:
                with warnings.catch_warnings(record=True) as found:
                    warnings.simplefilter("always", UserWarning)
                    work(photo)
            except (HidaError, MemoryError) as error:
                # Why it failed is all there is to say of it: its warnings are not told.
                memory = isinstance(error, MemoryError)
                reason = named("it does not fit in memory; scale it down." if memory else str(error))
                if not several:
                    raise HidaError(reason) from None
                tell(reason)
                failed += 1
                if failures is not None:
                    failures[photo] = reason
            else:
                for text in dict.fromkeys(str(warning.message) for warning in found):
                    tell(named(text) if several else text)
    return failed
