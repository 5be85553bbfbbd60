"""Turn the authors' released checkpoint into HIDA weights.

    hida import-released _ckpt_epoch_749.ckpt released.safetensors
    hida sketch photo.jpg --weights released.safetensors

Every tensor is read by its name and shape; nothing in the checkpoint is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hida.cli.parsing import read_command, unset


@dataclass(frozen=True)
class Command:
    """Turn the authors' checkpoint into HIDA weights."""

    ckpt: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CKPT")]
    """the released PyTorch Lightning checkpoint"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """weights file to write (.safetensors), or a folder for weights.safetensors and config.json"""
    keep_unused: bool = True
    """also store the tensors that the network never uses, so that export-released gives the same file back"""
    unused: Annotated[tuple[str, ...], unset("NAME...")] = ()
    """further modules to ignore, by the beginning of their names; unknown ones are refused otherwise"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida import-released``."""
    command: Command = read_command(Command, argv, "hida import-released", __doc__)
    from hida.errors import HidaError, label
    from hida.files import write_json
    from hida.weights import checkpoint
    from hida.weights.released.importing import convert, read, record
    from hida.weights.released.layout import BUFFERS, GENERATOR

    folder = command.out.suffix != ".safetensors"
    target = command.out / "weights.safetensors" if folder else command.out
    if checkpoint.holds_checkpoint(target):
        raise HidaError(f"'{target}' is a checkpoint of a run, which the weights would replace; choose another name.")
    state = read(command.ckpt)
    config, tensors, unused = convert(state, command.ckpt, command.unused)
    idle = [n for n in unused if n.startswith(GENERATOR) and not n.endswith(BUFFERS)]
    numbers, rest = sum(unused[n].numel() for n in idle), len(unused) - len(idle)
    used = sum(value.numel() for name, value in tensors.items() if name.startswith("generator."))
    if command.keep_unused:
        tensors |= {f"unused.{name}": value for name, value in unused.items()}
    source = {"released": command.ckpt.name, "unused": sorted(unused), "tensors": record(state)}
    checkpoint.save(target, checkpoint.WEIGHTS, config, source, tensors)
    if folder:
        write_json(command.out / "config.json", config.to_dict())
    print("\n".join(f"not used: {label(name)} {tuple(unused[name].shape)}" for name in sorted(unused)))
    print(f"{used:,} parameters of the generator are used, {numbers:,} in {len(idle)} tensors are not")
    print(f"{used + numbers:,} parameters are accounted for; {rest} further tensors are statistics or no network's")
    print(f"written: {target}")
