"""``python -m hida.sketch``: the command ``hida sketch``."""

import sys

from hida.cli.run import run_command
from hida.cli.sketch import main

if __name__ == "__main__":
    sys.exit(run_command(main))
