"""Open safetensors files of any name: the library takes names in UTF-8 only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors


@contextlib.contextmanager
def readable_name(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a name of an existing file that is UTF-8: its own, or, while it is held open, that of its descriptor."""
    name, unicode = os.fspath(path), sys.getfilesystemencoding() == "utf-8"
    if name.isascii() or (unicode and not any("\ud800" <= character <= "\udfff" for character in name)):
        yield name
        return
    with Path(name).open("rb") as file:
        yield f"/dev/fd/{file.fileno()}"


@contextlib.contextmanager
def safe_open(path: str | os.PathLike[str], framework: str) -> Iterator[Any]:
    """Open a safetensors file, as ``safetensors.safe_open`` does."""
    with readable_name(path) as name, safetensors.safe_open(name, framework=framework) as file:
        yield file
