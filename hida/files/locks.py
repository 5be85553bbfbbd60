"""Locks on files and folders, which a process that ends in any way leaves open.

They are the system's own (``flock``): nothing has to be removed after a crash. Where a system or a file system has
none, nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hida.errors import HidaError, printed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".hida-lock"
_LONGEST = 400  # bytes read of what a lock says of its holder
_EVERY = 0.2  # seconds between two tries of who waits


def hold(handle: int, path: str | os.PathLike[str], wait: bool = False) -> Literal["held", "busy", "gone", "none"]:
    """Lock an open file or folder until it is closed; with ``wait`` as soon as no other process has it.

    Returns:
        "held"; "busy" if another process has it; "gone" if it is no longer the one at ``path``, since another process
        has removed it; "none" where there are no locks.
    """
    if fcntl is None:
        return "none"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return "busy" if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else "none"
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return "held"
    return "gone"


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], what: str, wait: bool = False) -> Iterator[None]:
    """Keep ``folder``, which is made where it is missing, for this process; the file ``.hida-lock`` says so.

    Args:
        what: what this process does, such as "hida train", as it is told to those who come later.
        wait: wait until another process has left the folder, after one line about it on stderr.

    Raises:
        HidaError: unless ``wait``, if another process has it: who, and since when.
    """
    folder = Path(folder)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    path, handle, told = folder / LOCK, None, False
    try:
        while handle is None:
            with contextlib.suppress(FileNotFoundError):  # it goes with its last user, if that has made it
                folder.mkdir(parents=True, exist_ok=True)
                handle = _take(path)
            if handle is None and path.exists():
                holder = _holder(path)
                if not wait:
                    raise HidaError(f"'{folder}' is in use by {holder}; wait until it ends, or choose another folder.")
                if not told:
                    print(f"note: waiting for {holder}, which uses '{folder}'.", file=sys.stderr)
                told = True
                time.sleep(_EVERY)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"{what}, process {os.getpid()} on {platform.node() or 'this machine'} since {since}"
        with contextlib.suppress(OSError):  # a full disk: the lock is there, only not who has it
            os.ftruncate(handle, 0)
            os.write(handle, text.encode())
        yield
    finally:
        if handle is None:
            # A signal may have come when the file was made and nobody had it yet: it goes if it belongs to nobody.
            with contextlib.suppress(OSError):
                handle = _take(path, new=False)
        if handle is not None:
            # Removed while it is held: whoever has opened it meanwhile finds that it is another file now.
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)
        for made in new:
            with contextlib.suppress(OSError):
                made.rmdir()  # only what is empty goes


def _take(path: Path, new: bool = True) -> int | None:
    """Return the open lock file, which is made if ``new``, or None if another process has it."""
    while True:
        made = os.O_CREAT if new else 0
        handle = os.open(path, os.O_RDWR | made | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            result = hold(handle, path)
        except BaseException:  # a signal: what nobody has is not to be locked
            os.close(handle)
            raise
        if result in ("held", "none"):
            return handle
        os.close(handle)
        if result == "busy":
            return None


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        # The holder is about to write it, or was when it was killed.
        return printed(file.read(_LONGEST).decode("utf-8", "replace")) or "another process"
    return "another process"
