"""``python -m hida COMMAND …``."""

import sys

from hida.cli.main import entry

sys.exit(entry())
