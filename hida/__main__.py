"""``python -m hida COMMAND …``."""

from hida.cli.main import script

script()
