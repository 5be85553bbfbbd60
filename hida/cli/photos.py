"""Which photos a command was given, where each one's results go, and the loop over them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from hida.errors import HidaError
from hida.images.io import image_files

Frame = Literal["auto", "face", "whole"]  # as hida.drawing.sketcher names them, which loads torch


def list_photos(given: Sequence[Path]) -> list[Path]:
    """Return the photos given by name and those directly in the given folders.

    Raises:
        HidaError: if there is none, or a folder holds none.
    """
    if not given:
        raise HidaError("no photo was given; give one or more photos, or folders of photos.")
    photos: list[Path] = []
    for path in given:
        inside = image_files(path) if path.is_dir() else [path]
        if not inside:
            raise HidaError(f"the folder {path} holds no pictures; give photos, or another folder.")
        photos += inside
    return photos


def require_one_for_map(photos: Sequence[Path], depth: str) -> None:
    """Check that a depth map given as a file is for one photo.

    Raises:
        HidaError: if ``depth`` is a file and there are several photos.
    """
    if len(photos) > 1 and Path(depth).is_file():
        raise HidaError(f"--depth {depth} is one map for {len(photos)} photos; give the photos one by one.")


def name_targets(photos: Sequence[Path], out: Path, suffixes: Sequence[str] = ("",)) -> dict[Path, list[Path]]:
    """Return for each photo the PNGs to write: ``out/STEM`` and a suffix each.

    Raises:
        HidaError: if two photos would share a file, or a file is itself one of the photos: none is overwritten unasked.
    """
    targets: dict[Path, list[Path]] = {}
    taken: dict[Path, Path] = {}
    originals = {photo.resolve() for photo in photos}
    for photo in dict.fromkeys(photos):
        targets[photo] = [out / f"{photo.stem}{suffix}.png" for suffix in suffixes]
        for target in targets[photo]:
            if target in taken:
                raise HidaError(f"{taken[target]} and {photo} would both be written to {target}; do them one by one.")
            if target.resolve() in originals:
                raise HidaError(f"{target} is one of the photos; choose another folder with --out.")
            taken[target] = photo
    return targets


def for_each(
    targets: Mapping[Path, Sequence[Path]], work: Callable[[Path], None], description: str | None = None
) -> int:
    """Call ``work`` with every photo under a progress bar; one bad photo among several does not stop the others.

    Warnings and the reasons of failures are written above the bar, a line each.

    Args:
        targets: the photos with their files, of :func:`name_targets`.
        work: reads a photo, and writes its files once they are computed.
        description: what the bar says; if left out, the name of the photo at work.

    Returns:
        How many photos failed.

    Raises:
        HidaError: if the only photo failed.
    """
    failed = 0
    with warnings.catch_warnings(), tqdm(targets, desc=description, unit="photo", disable=len(targets) < 2) as bar:
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: tqdm.write(f"hida: {message}", file=sys.stderr)
        for photo in bar:
            if description is None:
                bar.set_description(photo.name)
            try:
                work(photo)
            except HidaError as error:
                reason = str(error) if str(photo) in str(error) else f"{photo}: {error}"
                if len(targets) == 1:
                    raise HidaError(reason) from None
                tqdm.write(f"hida: {reason}", file=sys.stderr)
                failed += 1
    return failed
