"""Set evaluations side by side, with paired differences.

    hida compare A/scores.json B/scores.json ...

Every difference is against the first file, over the images that both have, with a 95 % bootstrap interval. What the
paper reports stands beside them, marked as reported: it was measured under another protocol (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hida.errors import HidaError
from hida.files import write_bytes


@dataclass(frozen=True)
class Command:
    """Compare evaluations: one table, and the paired differences against the first."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """scores.json of two or more evaluations, or the folders that hold them"""
    out: Path | None = None
    """Markdown file to write as well"""
    paper: bool = True
    """show what the paper reports, marked so"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida compare``."""
    command = tyro.cli(Command, args=argv, prog="hida compare", description=__doc__)
    if not command.files:
        raise HidaError("Give at least one scores.json that hida evaluate wrote.")
    from hida.metrics.comparison import comparison, load

    text = comparison([load(path) for path in command.files], command.paper)
    if command.out is not None:
        write_bytes(command.out, text.encode())
    print(text)
