"""``python -m hida.evaluate``: the command ``hida evaluate``."""

import sys

from hida.cli.main import main
from hida.cli.run import run_command

if __name__ == "__main__":
    sys.exit(run_command(main, ["evaluate", *sys.argv[1:]]))
