"""``python -m hida.train`` and ``torchrun -m hida.train``: the command ``hida train``."""

import sys

from hida.cli.run import run_command
from hida.cli.train import main

if __name__ == "__main__":
    sys.exit(run_command(main))
