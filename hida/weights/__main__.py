"""``hida weights list`` and ``hida weights fetch NAME…``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from hida import weights
from hida.errors import HidaError, run_command


@dataclass(frozen=True)
class List:
    """List every file of weights: its size, its licence and where it lies on this machine."""


@dataclass(frozen=True)
class Fetch:
    """Download weights into the cache."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Names from `hida weights list`, or a group: tddfa, metrics, all."""
    accept_licence: bool = False
    """Accept the licence of restricted weights (the Basel Face Model: non-commercial, no redistribution)."""


Command = (
    Annotated[List, tyro.conf.subcommand("list", prefix_name=False)]
    | Annotated[Fetch, tyro.conf.subcommand("fetch", prefix_name=False)]
)


def main(argv: Sequence[str] | None = None) -> None:
    command = tyro.cli(Command, args=argv, prog="hida weights", description="The weights that HIDA uses.")
    if isinstance(command, List):
        _list()
    else:
        _fetch(command)


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
        raise HidaError("Say which weights to fetch; `hida weights list` shows their names.")
    groups = {**weights.GROUPS, "all": tuple(weights.ASSETS)}
    names = list(dict.fromkeys(name for given in command.names for name in groups.get(given, (given,))))
    for name in names:
        weights.get(name)
    for name in names:
        print(f"{name}: {weights.fetch(name, accept_licence=command.accept_licence)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
