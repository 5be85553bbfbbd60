"""List weights, fetch them, or extract a run's: ``hida weights list``, ``fetch NAME…`` and ``snapshot RUN OUT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hida import weights
from hida.cli.parsing import read_command, unset
from hida.errors import HidaError


@dataclass(frozen=True)
class List:
    """List every weights file: its size, its licence and where it is on this machine."""


@dataclass(frozen=True)
class Fetch:
    """Download weights into the cache."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], unset("NAME...")]
    """names from `hida weights list`, or a group: tddfa, metrics, all"""
    accept_licence: bool = False
    """accept the licence of restricted weights (the Basel Face Model: non-commercial, no redistribution)"""


@dataclass(frozen=True)
class Snapshot:
    """Write the EMA weights of a run's newest checkpoint, as the run itself does at its end."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """folder of the run, which may still be training, or one of its checkpoints"""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """the .safetensors file to write"""


Command = (
    Annotated[List, tyro.conf.subcommand("list", prefix_name=False)]
    | Annotated[Fetch, tyro.conf.subcommand("fetch", prefix_name=False)]
    | Annotated[Snapshot, tyro.conf.subcommand("snapshot", prefix_name=False)]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida weights``."""
    command: Command = read_command(Command, argv, "hida weights", "The weights that HIDA uses.")
    if isinstance(command, List):
        _list()
    elif isinstance(command, Fetch):
        _fetch(command)
    else:
        _snapshot(command)


def _list() -> None:
    for asset in weights.ASSETS.values():
        try:
            path = weights.find(asset.name)
            size, where = f"{path.stat().st_size / 1e6:.1f} MB", str(path)
        except HidaError:
            size = f"{asset.size / 1e6:.1f} MB" if asset.size else "?"
            where = f"not on this machine: {weights.fetch_command(asset)}"
        print(f"{asset.name:<17}{size:>8}  {asset.description}\n{'':<27}licence: {asset.licence}\n{'':<27}{where}")


def _fetch(command: Fetch) -> None:
    if not command.names:
        raise HidaError("no weights were named; give names from `hida weights list`.")
    groups = {**weights.GROUPS, "all": tuple(weights.ASSETS)}
    names = list(dict.fromkeys(name for given in command.names for name in groups.get(given, (given,))))
    for name in names:
        weights.get(name)
    for name in names:
        print(f"{name}: {weights.fetch(name, accept_licence=command.accept_licence)}")


def _snapshot(command: Snapshot) -> None:
    from hida.weights import checkpoint  # loads torch, which the other commands do without

    if not command.run:
        raise HidaError("the name of the run is empty; give the folder that hida train --out has written.")
    if not command.out:
        raise HidaError("the name of the file to write is empty; give it one that ends in .safetensors.")
    run, out = Path(command.run), Path(command.out)  # as words, since the path of no word is '.'
    checkpoint.require_target(out, (".safetensors",), (run, *checkpoint.checkpoint_paths(run)))
    if not run.exists():
        raise HidaError(f"there is no run '{run}'; give the folder that hida train --out has written.")
    found = checkpoint.write_snapshot(run, out)
    print(f"{out}: the weights of {found.path}, iteration {found.iteration}")
