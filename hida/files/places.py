"""Whether a result can be written where it is to go: asked before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from hida.errors import HidaError


def require_file_place(path: str | os.PathLike[str]) -> None:
    """Check, before any work, that a file can be written at ``path``.

    Raises:
        HidaError: if it is a folder, or what is above it is no folder or may not be written.
    """
    path = Path(path)
    if path.is_dir():
        raise HidaError(f"'{path}' is a folder; give the name of a file to write, such as one in it.")
    if not path.exists() or path.is_file():
        # A link stays one: what it leads to is written.
        _require_place(path, Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise HidaError(f"'{path}' may not be written; choose another name.")


def require_folder_place(path: str | os.PathLike[str]) -> None:
    """Check, before any work, that ``path`` is a folder that may be written, or that one can be made there.

    Raises:
        HidaError: if it cannot.
    """
    _require_place(Path(path), Path(path))


def _require_place(path: Path, folder: Path) -> None:
    there = next((above for above in (folder, *folder.parents) if above.exists() or above.is_symlink()), Path("."))
    if not there.is_dir():
        raise HidaError(f"there is a file where a folder was expected ('{there}'); choose another path than '{path}'.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise HidaError(f"'{path}' cannot be written, since permission is denied in '{there}'; choose another place.")
