"""``python -m hida.sketch``: the command ``hida sketch``."""

import sys

from hida.cli.main import main
from hida.cli.run import run_command

if __name__ == "__main__":
    sys.exit(run_command(main, ["sketch", *sys.argv[1:]]))
