"""``python -m hida.train`` and ``torchrun -m hida.train``: the command ``hida train``."""

import sys

from hida.cli.main import main
from hida.cli.run import run_command

if __name__ == "__main__":
    sys.exit(run_command(main, ["train", *sys.argv[1:]]))
