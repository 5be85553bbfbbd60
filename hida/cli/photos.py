"""Which photos a command was given, and where each one's results go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hida.errors import HidaError
from hida.images.io import image_files

Frame = Literal["auto", "face", "whole"]  # as hida.drawing.sketcher names them, which loads torch


def list_photos(given: Sequence[Path]) -> list[Path]:
    """Return the photos given outright and those inside given folders.

    Raises:
        HidaError: if there is none, or a folder holds none.
    """
    if not given:
        raise HidaError("Give one or more photos, or folders of photos.")
    photos: list[Path] = []
    for path in given:
        inside = image_files(path) if path.is_dir() else [path]
        if not inside:
            raise HidaError(f"The folder {path} holds no pictures.")
        photos += inside
    return photos


def name_targets(photos: Sequence[Path], out: Path, suffixes: Sequence[str] = ("",)) -> dict[Path, list[Path]]:
    """Return for each photo the PNGs ``out/STEM SUFFIX.png`` it is drawn to.

    Raises:
        HidaError: if two photos would share one, or one is itself a photo: nothing may be overwritten unasked.
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
