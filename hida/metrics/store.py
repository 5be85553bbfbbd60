"""Keep results by the content that they were computed from: nothing is measured twice, and a stopped run continues."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hida.errors import HidaError


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

    What :meth:`put` wrote since the last :meth:`commit` is lost when the process dies; entries are never torn.

    Raises:
        HidaError: if the file is no store, is damaged, or stays locked by another process.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(self.path or ":memory:", timeout=60)
            self._database.execute("CREATE TABLE IF NOT EXISTS result (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
            self._database.commit()
        except sqlite3.Error as error:
            raise self._fault(error) from None

    def get(self, key: str, kind: Kind) -> np.ndarray | None:
        """Return what is kept under ``key``; None where nothing is, or what cannot be of that kind: it is damaged."""
        size = kind.length * np.dtype(kind.dtype).itemsize
        query = "SELECT value FROM result WHERE key = ? AND typeof(value) = 'blob' AND length(value) = ?"
        try:
            row = self._database.execute(query, (key, size)).fetchone()
        except sqlite3.Error as error:
            raise self._fault(error) from None
        value = None if row is None else np.frombuffer(row[0], dtype=kind.dtype)
        # NaN is not in the range either.
        return value if value is not None and ((value >= 0) & (value <= kind.largest)).all() else None

    def put(self, key: str, value: np.ndarray) -> None:
        """Keep ``value`` under ``key``."""
        try:
            self._database.execute("INSERT OR REPLACE INTO result VALUES (?, ?)", (key, np.asarray(value).tobytes()))
        except sqlite3.Error as error:
            raise self._fault(error) from None

    def commit(self) -> None:
        """Make everything that was put durable."""
        try:
            self._database.commit()
        except sqlite3.Error as error:
            raise self._fault(error) from None

    def close(self) -> None:
        self._database.close()

    def _fault(self, error: sqlite3.Error) -> HidaError:
        return HidaError(f"the cache {self.path} cannot be used ({error}); delete it, or run with --cache none.")
