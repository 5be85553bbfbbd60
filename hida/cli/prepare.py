"""Make a training set of aligned photo, sketch and depth PNGs.

    hida prepare fs2k FS2K OUT       FS2K as its authors distribute it
    hida prepare pairs SRC OUT       your own photo and sketch folders, in any number of styles

The source is checked first; every fault is named and listed in OUT/faults.json, and nothing else is written unless
--allow-faults leaves the faulty pairs out. Photo and sketch of a pair are aligned by the same similarity transform. The
same command continues a run that was stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from hida.cli.parsing import read_command, unset
from hida.errors import HidaError, counted, printed
from hida.files import folder_lock, is_ours, require_folder_place

if TYPE_CHECKING:
    from hida.data.prepared import PreparedSet
    from hida.depth.face import FaceModel

Depth = Literal["auto", "tddfa", "builtin", "none"]
PhotoFill = Literal["replicate", "white", "black"]
SketchFill = Literal["paper", "white", "replicate", "black"]


@dataclass(frozen=True)
class _Common:
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """folder with the photos and sketches"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """folder to write: new, empty, or begun by this command"""
    depth: Depth = "auto"
    """depth maps: tddfa (3DDFA_V2), builtin (ships with HIDA), none (all zero); auto: tddfa if found, else builtin"""
    workers: int = min(os.cpu_count() or 1, 8)
    """number of processes"""
    fill_photo: PhotoFill = "replicate"
    """what continues a photo beyond its edge"""
    fill_sketch: SketchFill = "paper"
    """what continues a sketch beyond its edge; paper: the median of its own outermost pixels"""
    allow_faults: bool = False
    """leave faulty pairs out instead of stopping"""


@dataclass(frozen=True)
class FS2K(_Common):
    """Check, align and add depth to FS2K (2,104 pairs, three styles)."""


@dataclass(frozen=True)
class Pairs(_Common):
    """Check, align and add depth to your own pairs: SRC/photo[/STYLE] and SRC/sketch[/STYLE], with equal file names."""

    table: Annotated[Path | None, unset("PATH")] = None
    """CSV or JSON table with the columns name, style and, optionally, split, instead of a folder for each style"""
    test_fraction: float = 0.1
    """share of each style for the test split, unless the table has a split column"""
    seed: int = 0
    """seed that decides which pairs these are"""


Command = (
    Annotated[FS2K, tyro.conf.subcommand("fs2k", prefix_name=False)]
    | Annotated[Pairs, tyro.conf.subcommand("pairs", prefix_name=False)]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida prepare``."""
    command: Command = read_command(Command, argv, "hida prepare", __doc__)
    from hida.data.fs2k import read_fs2k
    from hida.data.pairs import read_pairs
    from hida.data.preparation import Settings, check_source, prepare

    if command.workers < 1:
        raise HidaError(f"--workers is {command.workers}; give 1 or more.")
    _check_folders(command.source, command.out)
    began = time.monotonic()
    with folder_lock(command.out, "hida prepare"):
        if isinstance(command, Pairs):
            source = read_pairs(
                command.source, command.table, command.test_fraction, command.seed, command.workers, _checking
            )
        else:
            source = read_fs2k(command.source, workers=command.workers, progress=_checking)
        check_source(source, command.out, command.allow_faults)
        method, faces = choose_models(command.depth)
        settings = Settings(source.source, method, faces, command.fill_photo, command.fill_sketch)
        model, workers, allow = partial(load_model, faces), command.workers, command.allow_faults
        made = prepare(source, command.out, settings, model, workers, allow)
    print(summary(made))
    print(f"prepared in {time.monotonic() - began:.0f} s: {command.out}")


def _checking(total: int) -> Callable[[], object]:
    """Show a progress bar over ``total`` pairs; return what advances it by one."""
    return partial(tqdm(total=total, desc="checking", unit="pair").update, 1)


def choose_models(depth: Depth) -> tuple[str, str]:
    """Return the depth method and the face model that ``depth`` means on this machine.

    Without depth a face model is needed too, since pairs are aligned by facial points.

    Raises:
        HidaError: if the model cannot be loaded.
    """
    faces = depth
    if depth in ("auto", "none"):
        try:
            load_model("tddfa")
            faces = "tddfa"
        except HidaError as error:
            faces = "builtin"
            print(f"note: 3DDFA_V2 is not available, the built-in model is used instead: {error}", file=sys.stderr)
    # Loaded here, so that what is missing is said once and before any worker starts.
    load_model(faces)
    if depth == "none":
        print(f"note: no depth, every depth map is zero (--depth none); {faces} finds the faces.", file=sys.stderr)
        return "none", faces
    return faces, faces


def load_model(name: str) -> FaceModel:
    """Load the face model "tddfa" or "builtin".

    Raises:
        HidaError: naming the files that are missing, and how to get them.
    """
    from hida.depth import face_model

    return face_model(name)


def summary(prepared: PreparedSet) -> str:
    """Return a few lines that say what a prepared set holds."""
    from hida.data.source import SPLITS
    from hida.images.alignment import is_identity

    lines = []
    for split in SPLITS:
        pairs = prepared.split(split)
        by_style = [sum(pair.style == style for pair in pairs) for style in range(len(prepared.styles))]
        counts = ", ".join(f"{printed(name)} {count:,}" for name, count in zip(prepared.styles, by_style, strict=True))
        lines.append(f"{split}: {counted(len(pairs), 'pair')} ({counts})")
    exact = sum(is_identity(np.array(pair.matrix)) for pair in prepared.pairs)
    several = sum(pair.faces > 1 for pair in prepared.pairs)
    lines.append(f"{exact:,} came aligned and keep their pixels, {len(prepared.pairs) - exact:,} were aligned;")
    lines[-1] += f" {counted(several, 'photo')} with several faces, the largest is taken; depth: {prepared.depth}"
    return "\n".join(lines)


def _check_folders(source: Path, out: Path) -> None:
    """Refuse to write where there is anything but an earlier run's output."""
    from hida.data.preparation import FAULTS
    from hida.data.prepared import FOLDERS, INDEX, JOURNAL

    if not source.is_dir():
        raise HidaError(f"'{source}' is not a folder; give the folder with the photos and sketches.")
    if out.exists() and not out.is_dir():
        raise HidaError(f"'{out}' is a file; give a folder to write.")
    require_folder_place(out)
    ours = {*FOLDERS, INDEX, JOURNAL, FAULTS}
    found = {path.name for path in out.iterdir() if not is_ours(path.name)} if out.is_dir() else set()
    if out.resolve() == source.resolve() or found - ours or (found and not found & {INDEX, JOURNAL, FAULTS}):
        raise HidaError(f"'{out}' holds other files already; give a new or empty folder to write.")
