"""Which photos a command was given, and the loop over them."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from tqdm import tqdm

from hida.errors import HidaError, counted, printed
from hida.images.io import image_files
from hida.images.writing import is_marked

_SHOWN = 40  # characters of a name before the bar
STDIN = Path("-")  # among the photos
_STDIN = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
Frame = Literal["auto", "portrait", "face", "whole"]
# As hida.drawing's sketcher, finish and detail name them, which load torch.
Background = Literal["keep", "white", "transparent"]
Detail = Literal["coarse", "fine", "auto"]


def list_photos(given: Sequence[Path]) -> list[Path]:
    """Return the photos given by name and those directly in the given folders; "-" is standard input.

    What commands have made of photos is left out: among files of a folder, and among names, which may be a pattern of
    the shell's, unless nothing else is given. A file that is given twice is there once.

    Raises:
        HidaError: if there is none, or a folder holds none, or standard input is a terminal.
    """
    if not given:
        raise HidaError("no photo was given; give one or more photos, or folders of photos.")
    if STDIN in given:
        if getattr(sys.stdin, "buffer", None) is None:
            raise HidaError("the photo - is read from standard input, which is closed; give a file.")
        if sys.stdin.isatty():
            raise HidaError("the photo - is read from standard input, which is the terminal; add < FILE.")
    given = [STDIN if str(path) in _STDIN else path for path in given]
    named = [path for path in given if path != STDIN and not path.is_dir()]
    ours = {path for path in named if is_marked(path)}
    if len(ours) == len(given):
        ours = set()
    _note_left_out([path.name for path in given if path in ours], "made by hida")
    photos: dict[Path, Path] = {}
    for path in given:
        for photo in _inside(path) if path.is_dir() else [path] if path not in ours else []:
            photos.setdefault(photo if photo == STDIN else Path(os.path.abspath(photo)), photo)
    return list(photos.values())


def photo_source(photo: Path) -> Path | BinaryIO:
    """Return what a photo is read from."""
    return sys.stdin.buffer if photo == STDIN else photo


def photo_name(photo: Path) -> str:
    """Return a photo's path for messages."""
    return "stdin" if photo == STDIN else str(photo)


def _inside(folder: Path) -> list[Path]:
    """Return the photos in a folder, and say what is left out of it."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    ours = {path for path in visible if path.is_file() and is_marked(path)}
    pictures = image_files(folder)
    photos = [path for path in pictures if path not in ours]
    deeper = sum(_holds_photos(path) for path in visible)
    if not photos:
        made = " but what hida has drawn" if pictures else ""
        more = f" itself, {counted(deeper, 'folder in it does', 'folders in it do')}" if deeper else ""
        raise HidaError(f"the folder {folder} holds no pictures{made}{more}; give photos, or another folder.")
    known = {*pictures, *ours, folder / "Thumbs.db", folder / "desktop.ini"}
    others = sorted(path.name for path in visible if path.is_file() and path not in known)
    _note_left_out(sorted(path.name for path in ours), f"in {folder} made by hida")
    _note_left_out(others, f"in {folder} without the suffix of a picture")
    if deeper:
        holds = counted(deeper, f"folder in {folder} holds", f"folders in {folder} hold")
        _note(f"{holds} pictures too: left out; to draw them, give the name of the folder.")
    return photos


def _holds_photos(path: Path) -> bool:
    try:
        return path.is_dir() and any(not is_marked(picture) for picture in image_files(path))
    except OSError:  # a folder of somebody else
        return False


def _note_left_out(names: Sequence[str], what: str) -> None:
    if names:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        _note(f"{counted(len(names), 'file')} {what}: left out ({some}).")


def _note(text: str) -> None:
    print(f"note: {printed(text)}", file=sys.stderr)


def require_depth(photos: Sequence[Path], depth: str) -> None:
    """Check what does not depend on the photos: that ``depth`` is a method or a map, and a map is for one photo.

    Raises:
        HidaError: if it is neither, or a map for several photos.
    """
    from hida.depth import require_method

    require_method(depth)
    if len(photos) > 1 and Path(depth).is_file():
        raise HidaError(f"--depth {depth} is one map for {counted(len(photos), 'photo')}; give the photos one by one.")


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


class Outcome(NamedTuple):
    """What became of one photo."""

    value: Any = None
    warnings: Sequence[str] = ()
    failure: str | None = None


def attempt(work: Callable[[Path], Any], photo: Path) -> Outcome:
    """Call ``work`` with a photo, and return what it returns, or why it failed."""
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", UserWarning)
            value = work(photo)
    except MemoryError:
        return Outcome(failure="it does not fit in memory; scale it down.")
    except HidaError as error:
        # Why it failed is all there is to say of it: its warnings are not told.
        return Outcome(failure=str(error))
    return Outcome(value, [str(warning.message) for warning in found])


def for_each(
    photos: Collection[Path],
    work: Callable[[Path], Any] | None = None,
    description: str | None = None,
    outcomes: Iterator[tuple[Path, Outcome]] | None = None,
    failures: dict[Path, str] | None = None,
) -> int:
    """Call ``work`` with every photo under a progress bar; one bad photo among several does not stop the others.

    Warnings and the reasons of failures are written above the bar, a line each, which names the photo if there are
    several.

    Args:
        photos: those to go through.
        work: reads a photo, and writes its files once they are computed.
        description: what the bar says; if left out, the name of the photo at work.
        outcomes: instead of ``work``, yields what became of the photos, in any order.
        failures: receives the reason of each photo that failed, if given.

    Returns:
        How many photos failed.

    Raises:
        HidaError: if the only photo failed.
    """
    failed = 0
    several = len(photos) > 1
    with tqdm(total=len(photos), desc=description, unit="photo", disable=not several) as bar:

        def one_by_one() -> Iterator[tuple[Path, Outcome]]:
            for photo in photos:
                if description is None:
                    name = printed("stdin" if photo == STDIN else photo.name)
                    bar.set_description(name if len(name) <= _SHOWN else f"{name[: _SHOWN - 1]}…")
                assert work is not None
                yield photo, attempt(work, photo)

        for photo, outcome in outcomes or one_by_one():
            name = photo_name(photo)
            if outcome.failure is not None:
                reason = outcome.failure if name in outcome.failure else f"{name}: {outcome.failure}"
                if not several:
                    raise HidaError(reason)
                tell(reason)
                failed += 1
                if failures is not None:
                    failures[photo] = reason
            for text in dict.fromkeys(outcome.warnings):
                tell(text if name in text or not several else f"{name}: {text}")
            bar.update()
    return failed
