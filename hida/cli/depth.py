"""Write the depth maps of photos as grey PNGs.

    hida depth photo.jpg --out depth
    hida depth photos/ --method midas --model intel-isl/MiDaS:DPT_Hybrid

Near is bright, the background is black.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image

from hida.cli.parsing import read_command, unset
from hida.cli.photos import for_each, list_photos, photo_source
from hida.cli.targets import name_targets
from hida.depth import load, predict, resolve
from hida.errors import HidaError, counted
from hida.files import require_folder_place, write_bytes
from hida.images.writing import encode


@dataclass(frozen=True)
class Command:
    """Write the depth maps of photos."""

    photos: Annotated[tyro.conf.Positional[tuple[Path, ...]], unset("PHOTO...")]
    """photos, or folders of photos"""
    out: Path = Path("depth")
    """folder to write to; each map is named after its photo"""
    method: Literal["auto", "tddfa", "midas", "builtin", "none"] = "auto"
    """tddfa (3DDFA_V2), builtin (ships with HIDA), midas (with --model), none (zeros); auto: tddfa or else builtin"""
    model: Annotated[str | None, unset("MODEL")] = None
    """for midas: a TorchScript or ONNX file, or a torch.hub name; all but ONNX run code: name only what you trust"""
    bits: Literal[8, 16] = 8
    """bits per pixel"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida depth``."""
    command: Command = read_command(Command, argv, "hida depth", __doc__)
    targets = name_targets(list_photos(command.photos), command.out)
    require_folder_place(command.out)
    method = resolve(command.method)
    load(method, command.model)  # so that what is wrong for every photo is told once
    largest, dtype = 2**command.bits - 1, np.uint8 if command.bits == 8 else np.uint16

    def write(photo: Path) -> None:
        depth = predict(photo_source(photo), method, model=command.model)
        write_bytes(targets[photo][0], encode(Image.fromarray(np.rint(depth * largest).astype(dtype)), marked=True))

    failed = for_each(targets, write, f"depth ({method})")
    if failed:
        raise HidaError(f"{failed} of {counted(len(targets), 'photo')} gave no depth; the reasons are above.")
    print(f"{counted(len(targets), 'depth map')} by {method} in {command.out}")
