"""Files that are either whole or absent: written under a temporary name, fsynced, renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hida.files.locks import LOCK, hold

_OURS, _PART = ".hida-", ".part"  # in the names of all temporary files and folders
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_cleared: set[Path] = set()  # folders without the leftovers of earlier processes


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path (same suffix) whose file becomes ``target`` on success and vanishes on failure.

    A link stays one: what it leads to is replaced. What is no regular file (a device, a FIFO) is never replaced, nor is
    what this process prints into: they are written to at the end, from a temporary file elsewhere. The access rights of
    a file that is replaced stay.
    """
    target = Path(target)
    with named_as(target):
        status = _status(target)
    if status is not None and (_stream_of(status) is not None or not (stat.S_ISREG(status.st_mode) or target.is_dir())):
        with tempfile.TemporaryDirectory(prefix=_OURS) as folder:
            yield (temporary := Path(folder) / f"x{target.suffix}")
            with named_as(target):
                _write_through(temporary, target, status)
        return
    place = Path(os.path.realpath(target))
    place.parent.mkdir(parents=True, exist_ok=True)
    if status is not None and stat.S_ISREG(status.st_mode) and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(target))
    if place.parent not in _cleared:
        _cleared.add(place.parent)
        remove_leftovers(place.parent)
    temporary, handle = _unused(place.parent, place.stem, 40, place.suffix), None
    try:
        with named_as(target):
            while (handle := _begin(temporary)) is None:
                temporary = _unused(place.parent, place.stem, 40, place.suffix)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            make_usual(temporary, 0o666)
            if status is not None:
                _keep_rights(temporary, status)
            os.replace(temporary, place)
        _sync_folder(place.parent)
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _unused(folder: Path, name: str, most: int, suffix: str = "") -> Path:
    """Return a name for something temporary.

    It is chosen before anything is made, other than by tempfile: a signal that interrupts the making, at whatever
    moment, then finds the name that is to be removed.
    """
    # The suffix is kept because image writers choose their format by it; a long name would become too long.
    return folder / f"{_OURS}{cut(name, most)}.{secrets.token_hex(8)}{_PART}{cut(suffix, 20)}"


def _begin(temporary: Path) -> int | None:
    """Make an empty file; return it open and locked, by which it is known to be in use."""
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    if hold(handle, temporary) in ("held", "none"):
        return handle
    os.close(handle)  # another process took it for a leftover before it was locked
    return None


@contextlib.contextmanager
def temporary_folder(beside: str | os.PathLike[str], name: str = "") -> Iterator[Path]:
    """Yield a new folder in the folder ``beside`` which vanishes afterwards, unless it was renamed.

    One that a process leaves when it is killed is removed by the next call.
    """
    remove_leftovers(beside)
    folder, handle = _unused(Path(beside), name, 100), None
    try:
        while (handle := _begin_folder(folder)) is None:
            folder = _unused(Path(beside), name, 100)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # a signal
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if handle is not None:
            os.close(handle)


def _begin_folder(folder: Path) -> int | None:
    """Make a folder; return it open and locked, as :func:`_begin` does with a file."""
    folder.mkdir(0o700)
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(folder if os.name == "posix" else os.devnull, os.O_RDONLY)
        if hold(handle, folder) in ("held", "none"):
            return handle
        os.close(handle)
    return None


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what :func:`atomic_path` and :func:`temporary_folder` left in ``folder`` when their process was killed."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.path for entry in entries if _is_temporary(entry.name)]
    except OSError:
        return
    for path in found:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                # Whoever still writes it has locked it.
                if hold(handle, path) == "held":
                    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
            finally:
                os.close(handle)


def is_ours(name: str) -> bool:
    """Return whether a name is that of a lock or of a temporary file or folder of HIDA, not of any result."""
    return name == LOCK or _is_temporary(name)


def _is_temporary(name: str) -> bool:
    return name.startswith(_OURS) and _PART in name


def _status(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _stream_of(status: os.stat_result) -> int | None:
    """Return 1 or 2 if a file is what this process prints into, as /dev/stdout is."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), status):
                return number
    return None


def _write_through(source: Path, target: Path, status: os.stat_result) -> None:
    stream = _stream_of(status)
    if stream is not None:
        # At the place where the next line is printed; opened anew it would begin at the file's first byte.
        for text in (sys.stdout, sys.stderr):
            text.flush()
    with source.open("rb") as given, open(target if stream is None else os.dup(stream), "wb") as file:
        shutil.copyfileobj(given, file)


def _keep_rights(path: Path, status: os.stat_result) -> None:
    with contextlib.suppress(OSError):  # only the superuser may give a file away
        if hasattr(os, "chown"):
            os.chown(path, status.st_uid, status.st_gid)
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(status.st_mode) & 0o777)


def make_usual(path: Path, mode: int) -> None:
    """Give what tempfile made, for its owner only, the ``mode`` that the umask would have left it."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def cut(name: str, most: int) -> str:
    """Return the beginning of a file's name, at most ``most`` bytes: file systems bound bytes, not characters."""
    name = name[:most]
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


@contextlib.contextmanager
def named_as(target: Path) -> Iterator[None]:
    """Let errors of the file system name ``target``, which the user knows, not the temporary file or nothing."""
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and error.errno in _OF_THE_DISK
        if error.errno is None or not (nameless or _PART in str(error.filename)):
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
