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

from hida.data.images import write_png
from hida.data.targets import list_photos, name_targets
from hida.depth import load, predict, resolve
from hida.errors import HidaError, run_command


@dataclass(frozen=True)
class Options:
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
    options = tyro.cli(Options, args=argv, prog="hida depth")
    targets = name_targets(list_photos(options.photos), options.out)
    method = resolve(options.method)
    load(method, options.model)  # what concerns every photo is said once, before any
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: tqdm.write(f"hida: {message}", file=sys.stderr)
        for photo, (target,) in tqdm(targets.items(), desc=f"depth ({method})", unit="photo", disable=len(targets) < 2):
            try:
                depth = predict(photo, method, model=options.model)
            except HidaError as error:
                reason = str(error) if str(photo) in str(error) else f"{photo}: {error}"
                if len(targets) == 1:
                    raise HidaError(reason) from None
                tqdm.write(f"hida: {reason}", file=sys.stderr)
                faults.append(photo)
                continue
            largest = 2**options.bits - 1
            write_png(target, np.rint(depth * largest).astype(np.uint8 if options.bits == 8 else np.uint16))
    if faults:
        raise HidaError(f"{len(faults)} of {len(targets)} photos gave no depth; the reasons stand above.")
    print(f"{len(targets)} depth map{'s' if len(targets) > 1 else ''} by {method} in {options.out}")


if __name__ == "__main__":
    sys.exit(run_command(main))
