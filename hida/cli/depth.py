"""Write the depth of photos as PNGs.

hida depth photo.jpg --out depth
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

from hida.cli.photos import list_photos, name_targets
from hida.depth import load, predict, resolve
from hida.errors import HidaError
from hida.images.io import write_png


@dataclass(frozen=True)
class Command:
    """Write the depth of photos as grey PNGs: near is bright, the background black."""

    photos: tyro.conf.Positional[tuple[Path, ...]]
    """Photos, or folders of photos."""
    out: Path = Path("depth")
    """The folder to write to; a map is named after its photo."""
    method: Literal["auto", "tddfa", "midas", "builtin", "none"] = "auto"
    """tddfa: 3DDFA_V2, after `hida weights fetch tddfa --accept-licence`; builtin: ships with HIDA; midas: needs
    --model; none: zeros; auto: tddfa where its weights are found, else builtin."""
    model: str | None = None
    """For midas: a TorchScript or ONNX file, or a torch.hub name such as intel-isl/MiDaS:DPT_Hybrid. TorchScript and
    torch.hub run code: name only what you trust."""
    bits: Literal[8, 16] = 8
    """Bits of a pixel."""


def main(argv: Sequence[str] | None = None) -> None:
    command = tyro.cli(Command, args=argv, prog="hida depth")
    targets = name_targets(list_photos(command.photos), command.out)
    method = resolve(command.method)
    load(method, command.model)  # what concerns every photo is said once, before any
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: tqdm.write(f"hida: {message}", file=sys.stderr)
        for photo, (target,) in tqdm(targets.items(), desc=f"depth ({method})", unit="photo", disable=len(targets) < 2):
            try:
                depth = predict(photo, method, model=command.model)
            except HidaError as error:
                reason = str(error) if str(photo) in str(error) else f"{photo}: {error}"
                if len(targets) == 1:
                    raise HidaError(reason) from None
                tqdm.write(f"hida: {reason}", file=sys.stderr)
                faults.append(photo)
                continue
            largest = 2**command.bits - 1
            write_png(target, np.rint(depth * largest).astype(np.uint8 if command.bits == 8 else np.uint16))
    if faults:
        raise HidaError(f"{len(faults)} of {len(targets)} photos gave no depth; the reasons stand above.")
    print(f"{len(targets)} depth map{'s' if len(targets) > 1 else ''} by {method} in {command.out}")
