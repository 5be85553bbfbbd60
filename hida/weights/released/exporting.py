"""Write weights of the released network as the authors' code reads them.

hida export-released released.safetensors released.ckpt
hida export-released runs/mine mine.ckpt
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from hida import checkpoint, released
from hida.checkpoint import Checkpoint, CheckpointError
from hida.config import GeneratorConfig
from hida.errors import run_command
from hida.files import atomic_path
from hida.released import ReleasedError


@dataclass(frozen=True)
class Command:
    """Write a Lightning checkpoint with the authors' names, which their code and import-released both read."""

    weights: tyro.conf.Positional[Path]
    """weights or checkpoint file of the released network, or a run's folder"""
    out: tyro.conf.Positional[Path]
    """the .ckpt to write"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida export-released``."""
    command = tyro.cli(Command, args=argv, prog="hida export-released")
    loaded = checkpoint.load_weights(command.weights)
    state, remarks = convert(loaded)
    with atomic_path(command.out) as temporary:
        torch.save({"epoch": 0, "global_step": int(loaded.state.get("iteration", 0)), "state_dict": state}, temporary)
    for remark in remarks:
        print(remark)
    print(f"written: {command.out}")


def convert(loaded: Checkpoint) -> tuple[dict[str, Tensor], list[str]]:
    """Return the ``state_dict`` under the authors' names, and remarks on what it has not or is zero.

    Raises:
        ReleasedError: the weights are of another network.
    """
    config = loaded.config.generator
    # Dropout is off when the network draws.
    like = dataclasses.replace(GeneratorConfig(), base_width=config.base_width, dropout=config.dropout)
    differing = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(like, f.name)]
    if differing:
        raise ReleasedError(
            f"'{loaded.path}' differs from the released network in {', '.join(differing)}; the authors' code would "
            "compute something else with it."
        )
    remarks = []
    layout = released.generator_layout(config)
    own = _fitting(checkpoint.generator_tensors(loaded), released.own_shapes(config), loaded.path)
    state = released.to_theirs(layout, own)
    kept = loaded.part("unused")
    shapes = released.unused_shapes(config)
    # An imported file says which of them its checkpoint had.
    empty = [name for name in loaded.state.get("unused", shapes) if name in shapes and name not in kept]
    if empty:
        remarks.append(f"{len(empty)} tensors that the network never uses are zero")
    state |= {name: torch.zeros(shapes[name]) for name in empty} | kept
    judge = loaded.part("discriminator")
    if judge:
        own = _fitting(judge, released.own_shapes(loaded.config.discriminator), loaded.path)
        state |= released.to_theirs(released.discriminator_layout(), own)
    else:
        remarks.append("these weights have no discriminator, so the file has none either")
    return {
        name: value.float().clone() if value.is_floating_point() else value for name, value in state.items()
    }, remarks


def _fitting(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], path: Path) -> dict[str, Tensor]:
    for name in shapes.keys() | tensors.keys():
        if name not in shapes or name not in tensors or tuple(tensors[name].shape) != shapes[name]:
            raise CheckpointError(f"'{path}' does not fit its configuration: {name}.")
    return tensors


if __name__ == "__main__":
    sys.exit(run_command(main))
