"""Files that are either whole or absent: written under a temporary name, fsynced, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hida.errors import HidaError


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` (same suffix) that replaces it on success and vanishes on failure."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with named_as(target):
        # The suffix is kept because image writers choose their format by it; a long name would become too long.
        prefix, suffix = f".{cut(target.stem, 40)}.", f".part{cut(target.suffix, 20)}"
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with named_as(target):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            make_usual(temporary, 0o666)
            os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_usual(path: Path, mode: int) -> None:
    """Give what tempfile made, for its owner only, the ``mode`` that the umask would have left it."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def cut(name: str, most: int) -> str:
    """Return the beginning of a file's name, at most ``most`` bytes: file systems bound bytes, not characters."""
    data = os.fsencode(name)
    return name if len(data) <= most else data[:most].decode("utf-8", "ignore")


@contextlib.contextmanager
def named_as(target: Path) -> Iterator[None]:
    """Let errors of the file system name ``target``, which the user knows, instead of the temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or ".part" not in str(error.filename):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(target)) from None


def write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``target`` whole or not at all."""
    with atomic_path(target) as path:
        path.write_bytes(data)


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` to ``target`` as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Names on disk need not be valid UTF-8; what Python makes of them is escaped as JSON does it.
    write_bytes(target, text.encode("utf-8", "backslashreplace"))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_file_place(path: str | os.PathLike[str]) -> None:
    """Check, before any work, that a file can be written at ``path``.

    Raises:
        HidaError: if it is a folder, or what is above it is no folder or may not be written.
    """
    path = Path(path)
    if path.is_dir():
        raise HidaError(f"'{path}' is a folder; give the name of a file to write, such as one in it.")
    _require_place(path, path.parent)


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
