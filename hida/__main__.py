"""``python -m hida COMMAND …``."""

import sys

from hida.cli import entry

sys.exit(entry())
