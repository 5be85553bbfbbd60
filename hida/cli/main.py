"""The command ``hida``: a name, then that command's own options."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from hida.cli.run import run_command
from hida.errors import HidaError
from hida.version import __version__

# Each command is a module of this folder with a main(argv), imported only when it is called.
COMMANDS = {
    "sketch": ("sketch", "draw sketches of photos"),
    "train": ("train", "train on a prepared data set"),
    "prepare": ("prepare", "validate, align and add depth: FS2K, or pairs of your own"),
    "pack": ("pack", "put a prepared data set into one file to carry"),
    "evaluate": ("evaluate", "score sketches: FID, KID, LPIPS, SCOOT, FSIM"),
    "compare": ("compare", "put several evaluations into one table"),
    "ablate": ("ablate", "train and score the paper's ablations under one budget"),
    "inspect": ("inspect", "show what the modules do inside the network"),
    "presets": ("presets", "list the presets, what they change and what they cost"),
    "import-released": ("import_released", "read the authors' checkpoint"),
    "export-released": ("export_released", "write weights as the authors' code reads them"),
    "depth": ("depth", "write depth maps of photos"),
    "train-depth": ("train_depth", "train the built-in depth predictor"),
    "weights": ("weights", "list and fetch weights"),
    "info": ("info", "say what is installed, built and found"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Dispatch ``hida COMMAND …``."""
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
    import_module(f"hida.cli.{COMMANDS[words[0]][0]}").main(words[1:])


def usage() -> str:
    rows = [f"  {name:<17}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        (
            "HIDA: pencil sketches from face photos (ICCV 2023).",
            "",
            "usage: hida COMMAND [OPTIONS]      (hida COMMAND --help tells a command's options)",
            "",
            *rows,
        )
    )


def entry() -> int:
    """Run the console script."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(entry())
