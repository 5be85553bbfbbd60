"""The command ``hida``: a name, then that command's own options."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from hida.cli.run import end_process, run_command
from hida.errors import HidaError
from hida.version import __version__

# Each command is a module of this folder, named like it, with a main(argv); it is imported only when it is called.
COMMANDS = {
    "sketch": "draw sketches of photos",
    "train": "train on a prepared data set",
    "prepare": "make a training set: check, align and add depth to FS2K or your own pairs",
    "pack": "put a prepared data set into one file",
    "evaluate": "score sketches: FID, KID, LPIPS, SCOOT, FSIM",
    "compare": "compare evaluations in one table, with paired differences",
    "ablate": "train and score the paper's ablations under one budget",
    "inspect": "show what the modules do inside the network",
    "presets": "list the presets: what each changes and costs",
    "import-released": "turn the authors' checkpoint into HIDA weights",
    "export-released": "write weights as the authors' code reads them",
    "depth": "write depth maps of photos",
    "train-depth": "train the built-in depth predictor",
    "weights": "list weights, fetch them, or extract a run's",
    "info": "show what is installed, built and found",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names with the other words.

    Raises:
        HidaError: if there is no such command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] == "--version":
        print(f"hida {__version__}")
        return
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}."
        raise HidaError(f"there is no command {words[0]!r}; {hint}")
    _require_values(words)
    import_module(f"hida.cli.{words[0].replace('-', '_')}").main(words[1:])


def _require_values(words: Sequence[str]) -> None:
    """Refuse what a path would turn into another: nothing into the current folder, // into /."""
    for position, word in enumerate(words):
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if not word:
            raise HidaError(f"argument {position} of hida {words[0]} is empty; give a value, or leave it out.")
        if equals and not value:
            raise HidaError(f"{name} is empty; give a value, or leave it out.")
        if re.match(r"[a-z][a-z0-9+.-]*://", value, re.IGNORECASE) and "--label" not in (name, words[position - 1]):
            raise HidaError(f"'{value}' is a web address; give the path of a file or folder on this machine.")


def usage() -> str:
    """Return what ``hida --help`` prints."""
    rows = [f"  {name:<17}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        (
            "HIDA: pencil sketches from face photos (ICCV 2023).",
            "",
            "usage: hida COMMAND [OPTIONS]      (hida COMMAND --help lists a command's options)",
            "",
            *rows,
        )
    )


def entry() -> int:
    """Run the console script ``hida``; return its exit status."""
    return run_command(main)


def script() -> NoReturn:
    """Run the console script ``hida``, and end its process."""
    end_process(entry)


if __name__ == "__main__":
    script()
