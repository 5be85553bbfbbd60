"""Write weights of the released network as the authors' code reads them.

    hida export-released released.safetensors released.ckpt
    hida export-released runs/mine mine.ckpt

The file is a Lightning checkpoint with the authors' tensor names, which their code and import-released both read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hida.cli.parsing import read_command


@dataclass(frozen=True)
class Command:
    """Write weights as the authors' code reads them."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """weights or checkpoint file of the released network, or a run's folder"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.ckpt")]
    """the file to write (.ckpt; or .pt, .pth)"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida export-released``."""
    command: Command = read_command(Command, argv, "hida export-released", __doc__)
    from hida.files import atomic_path
    from hida.weights import checkpoint, generator_path
    from hida.weights.released.exporting import convert
    from hida.weights.saving import save_torch

    given = generator_path(command.weights)
    checkpoint.require_target(command.out, (".ckpt", ".pt", ".pth"), (given,))
    loaded = checkpoint.load_weights(given)
    state, remarks = convert(loaded)
    with atomic_path(command.out) as temporary:
        save_torch(temporary, {"epoch": 0, "global_step": loaded.iteration, "state_dict": state})
    for remark in remarks:
        print(remark)
    print(f"written: {command.out}")
