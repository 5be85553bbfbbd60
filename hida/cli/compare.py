"""Compare evaluations in one table, with paired differences.

    hida compare A/scores.json B/scores.json ...

Every difference is from the first file, over the images that both have, with a 95 % bootstrap interval. The paper's own
numbers are shown too, marked as reported: they were measured under another protocol (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hida.cli.parsing import read_command, unset
from hida.errors import HidaError
from hida.files import require_file_place, write_bytes


@dataclass(frozen=True)
class Command:
    """Compare evaluations: one table, and the paired differences from the first."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], unset("SCORES...")]
    """scores.json of two or more evaluations, or the folders that hold them"""
    out: Annotated[Path | None, unset("PATH")] = None
    """also write the result to this Markdown file"""
    paper: bool = True
    """also show the numbers that the paper reports, marked as reported"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida compare``."""
    command: Command = read_command(Command, argv, "hida compare", __doc__)
    if not command.files:
        raise HidaError("no evaluation was given; give at least one scores.json that hida evaluate wrote.")
    if command.out is not None:
        require_file_place(command.out)
    from hida.metrics.comparison import comparison
    from hida.metrics.scores import load

    text = comparison([load(path) for path in command.files], command.paper)
    if command.out is not None:
        write_bytes(command.out, text.encode("utf-8", "backslashreplace"))
    print(text)
