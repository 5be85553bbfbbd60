"""Put a prepared data set into one small file, to copy to another machine.

    hida pack data/fs2k fs2k.zip                     all pairs, 52 MiB for FS2K
    hida pack data/fs2k train.zip --split train      one split
    hida train --data fs2k.zip …                     train and evaluate take the file in place of the folder

The pictures are stored as lossy WebP; the loss is printed and recorded in the file. The data set's licence still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from hida.cli.parsing import read_command
from hida.data.packed import QUALITY, pack, require_pack_place
from hida.data.prepared import PreparedSet
from hida.data.source import SPLITS
from hida.errors import HidaError, counted


@dataclass(frozen=True)
class Command:
    """Put a prepared data set into one small file."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """folder that hida prepare wrote"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.zip")]
    """file to write"""
    split: Literal["all", "train", "test"] = "all"
    """which pairs to store"""
    quality_photo: int = QUALITY["photo"]
    """WebP quality of photos, 0 to 100; 101: lossless"""
    quality_sketch: int = QUALITY["sketch"]
    """WebP quality of sketches, likewise"""
    quality_depth: int = QUALITY["depth"]
    """WebP quality of depth maps, likewise"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida pack``."""
    command: Command = read_command(Command, argv, "hida pack", __doc__)
    quality = {kind: getattr(command, f"quality_{kind}") for kind in QUALITY}
    for kind, value in quality.items():
        if not 0 <= value <= 101:
            raise HidaError(f"--quality-{kind} is {value}; give 0 to 100, or 101 for no loss.")
    require_pack_place(command.out)
    prepared = PreparedSet.load(command.data)
    splits = SPLITS if command.split == "all" else (command.split,)
    total = sum(len(prepared.split(split)) for split in splits)
    with tqdm(total=total, desc="packing", unit="pair") as bar:
        lost = pack(prepared, command.out, splits, quality, bar.update)
    for kind, psnr in lost.items():
        print(f"{kind:<7} quality {quality[kind]:>3}: PSNR {psnr['mean']:.1f} dB, at least {psnr['least']:.1f} dB")
    print(f"{counted(total, 'pair')}, {command.out.stat().st_size / 2**20:.1f} MiB: {command.out}")
