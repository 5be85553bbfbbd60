"""Keep results by the content that they were computed from: nothing is measured twice, and a stopped run continues.

The file is shared by all evaluations on a machine, so it is locked for as long as a write takes and no longer: what
was measured waits in memory for one short transaction. The journal is SQLite's usual one; write-ahead logging needs
memory that is shared among processes, which no network file system has.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from hida.errors import HidaError, warn

_T = TypeVar("_T")

# Seconds that another process's lock is waited for, and seconds after which results are written unasked.
_WAIT_AT_OPENING = _WAIT_AT_END = 60.0
_WAIT_AT_WORK, _WAIT_AT_INTERRUPTION = 15.0, 2.0
_LONGEST_PENDING = 3.0
# SQLite waits this long (milliseconds) inside of a call, in which no signal is handled.
_CALL = 200

_MAKE = "CREATE TABLE IF NOT EXISTS result (key TEXT PRIMARY KEY, value BLOB NOT NULL)"
_FIND = "SELECT value FROM result WHERE key = ? AND typeof(value) = 'blob'"
# By SQLite's texts, since Python has its numbers only from 3.11 on.
_LOCKED = ("database is locked", "database table is locked", "locking protocol", "database schema is locked")
_DAMAGED = ("file is not a database", "malformed", "no such", "no column", "unsupported file format", "columns but")
_REASONS = {"readonly": "it is read-only", "is full": "the disk is full", "unable to open": "it cannot be opened"}
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


def content_hash(pixels: np.ndarray) -> str:
    """Return a name of an image by its pixels and shape, whatever its file's name or compression."""
    digest = hashlib.blake2b(repr((pixels.shape, str(pixels.dtype))).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Kind:
    """What a result is: ``length`` numbers from 0 to ``largest``."""

    length: int
    largest: float
    dtype: type[np.floating] = np.float64


class Store:
    """Float arrays by key in one SQLite file; with no path, in memory only.

    What :meth:`put` took is written by :meth:`commit`, and unasked after some seconds; entries are never torn. Once the
    store is open nothing that its file suffers ends the work, damage apart: results stay in memory, and one warning
    says why they are not kept.

    Raises:
        HidaError: if the file is no store, is damaged, or stays locked by another process.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self._pending: dict[str, bytes] = {}
        self._database: sqlite3.Connection | None = None
        self._writable = self.path is not None
        self._locked = False
        self._last = time.monotonic()
        if self.path is not None:
            self._open(self.path)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(HidaError):  # the first error is the one to be told
            self._close(_WAIT_AT_INTERRUPTION)

    def _open(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise HidaError(f"the cache {path} is no regular file; give the name of a file, or run with --cache none.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            self._give_up(str(error.strerror).lower())
            return
        try:
            self._database = sqlite3.connect(path, timeout=_CALL / 1000, isolation_level=None)
            self._patiently(self._make_table, _WAIT_AT_OPENING)
        except sqlite3.Error as error:
            self._disconnect()
            if _is_locked(error):
                raise HidaError(
                    f"the cache {path} is locked by another process; wait until that has ended, or run with "
                    "--cache none."
                ) from None
            self._fail(error)

    def _make_table(self) -> None:
        assert self._database is not None
        # Looked for first: most stores have it, and it cannot be made in one that is only to be read.
        if not self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'result'").fetchone():
            with self._transaction() as database:
                database.execute(_MAKE)

    def get(self, key: str, kind: Kind) -> np.ndarray | None:
        """Return what is kept under ``key``; None where nothing is, or what cannot be of that kind: it is damaged."""
        data = self._pending[key] if key in self._pending else self._read(key)
        if data is None or len(data) != kind.length * np.dtype(kind.dtype).itemsize:
            return None
        value = np.frombuffer(data, dtype=kind.dtype)
        # NaN is not in the range either.
        return value if ((value >= 0) & (value <= kind.largest)).all() else None

    def put(self, key: str, value: np.ndarray) -> None:
        """Keep ``value`` under ``key``."""
        self._pending[key] = np.asarray(value).tobytes()
        if time.monotonic() - self._last > _LONGEST_PENDING:
            self.commit()

    def commit(self) -> None:
        """Make everything that was put durable, if the file can be written; it stays in memory if not."""
        if not self._write(0 if self._locked else _WAIT_AT_WORK):
            self._say_locked()

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._close(_WAIT_AT_END)

    def _close(self, seconds: float) -> None:
        try:
            if not self._write(seconds):
                warn(
                    f"the cache {self.path} is locked by another process, and what was measured last is not kept "
                    f"({len(self._pending):,} results); wait for that process, or run with --cache none."
                )
        finally:
            self._disconnect()
            self._writable = False

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _read(self, key: str) -> bytes | None:
        if self._database is None:
            return None
        find = self._database.execute
        try:
            row = self._patiently(lambda: find(_FIND, (key,)).fetchone(), 0 if self._locked else _WAIT_AT_WORK)
        except sqlite3.Error as error:
            if _is_locked(error):
                self._say_locked()
            else:
                self._disconnect()
                self._fail(error)
            return None
        return None if row is None else bytes(row[0])

    def _write(self, seconds: float) -> bool:
        """Write what is pending; return whether no other process kept it from being written."""
        locked = False
        if self._pending and self._writable:
            try:
                self._patiently(self._write_pending, seconds)
                self._pending, self._locked = {}, False
            except sqlite3.Error as error:
                locked = _is_locked(error)
                if not locked:
                    self._fail(error)
        self._last = time.monotonic()
        return not locked

    def _write_pending(self) -> None:
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO result VALUES (?, ?)", self._pending.items())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        assert self._database is not None
        try:
            # Asks for the lock at once. One who reads first and then asks may meet another who does: neither can wait.
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database
            self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:  # a reader kept it from ending; left open, it would keep others waiting
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")

    def _patiently(self, work: Callable[[], _T], seconds: float) -> _T:
        """Return what ``work`` does, once no other process locks the file, or its error after ``seconds``."""
        end = time.monotonic() + seconds
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if not _is_locked(error) or time.monotonic() >= end:
                    raise
            # In most cases SQLite has waited; where waiting is of no use it has not.
            time.sleep(0.02)

    def _say_locked(self) -> None:
        if not self._locked:
            warn(
                f"the cache {self.path} is locked by another process: results stay in memory until it is free; wait "
                "for that process, or run with --cache none."
            )
        self._locked = True

    def _fail(self, error: sqlite3.Error) -> None:
        """Do without the file, or raise what is to be said of it."""
        text = str(error)
        if isinstance(error, sqlite3.DatabaseError) and any(words in text for words in _DAMAGED):
            raise HidaError(
                f"the cache {self.path} cannot be used (it is damaged, or no cache: {text}); delete it if it is one, "
                "or run with --cache none."
            ) from None
        self._give_up(next((reason for words, reason in _REASONS.items() if words in text), text))

    def _give_up(self, reason: str) -> None:
        self._writable = False
        warn(f"the cache {self.path} cannot be written ({reason}): what is measured is not kept.")


def _is_locked(error: sqlite3.Error) -> bool:
    return any(words in str(error) for words in _LOCKED)
