"""A file's sha256: computed when it is first used, and remembered in the cache with the file's size and times."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from hida.documents import DocumentError, read_json
from hida.files import write_json

FOLDER = "verified"
_known: dict[str, list[object]] = {}


def sha256(path: Path) -> str:
    """Return a file's sha256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_sha256(path: Path, cache: Path | None) -> str:
    """Return a file's sha256, from memory where the file has not been touched since it was computed.

    Args:
        path: the file.
        cache: the folder whose ``verified`` remembers; without one, or if it is read-only, only this process does.

    Raises:
        OSError: the file cannot be read.
    """
    name = os.path.abspath(path)
    state = os.stat(path)
    # The time of the last change of contents or name is the system's own: copying a file's dates does not set it.
    stamp: list[object] = [name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    entry = cache / FOLDER / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json" if cache else None
    for found in (_known.get(name), entry and _read(entry)):
        if found and found[:-1] == stamp and isinstance(found[-1], str):
            return found[-1]
    actual = sha256(path)
    _known[name] = [*stamp, actual]
    # The cache may be read-only, or full, and the name no text.
    with contextlib.suppress(OSError, ValueError):
        if entry:
            write_json(entry, _known[name])
    return actual


def _read(entry: Path) -> list[object] | None:
    try:
        found = read_json(entry, 1 << 16).raw
    except (OSError, DocumentError):
        return None
    return found if isinstance(found, list) and len(found) == 6 else None
