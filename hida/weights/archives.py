"""Members of zip and tar archives as streams: not unpacked to disk, and bounded before they are read."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from hida.errors import HidaError, first_line

LARGEST = 256 << 20
"""bytes of a member, and of everything in a tar, which must be unpacked up to the member"""
_MEMBERS = 10_000
_Found = Generator[tuple[str, IO[bytes]], None, None]
_OPENERS: dict[bytes, Callable[[Path], IO[bytes]]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # type: ignore[dict-item]


@contextmanager
def open_member(archive: Path, member: str, largest: int = LARGEST) -> Iterator[IO[bytes]]:
    """Yield a readable stream of one member of a wheel (zip) or source distribution (tar).

    Raises:
        HidaError: the archive has no such member, or a larger one, or is not an archive.
        OSError: it cannot be opened.
    """
    with _as_sentence(archive), closing(_members(archive, lambda name: name == member, largest)) as found:
        for _, stream in found:
            yield stream
            return
    raise HidaError(f"{archive.name} holds no file {member}.")


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the contents of the files whose names are wanted.

    Raises:
        HidaError: it is no archive, or damaged, or has a file that is too large.
        OSError: it cannot be opened.
    """
    with _as_sentence(archive):
        return {name: stream.read() for name, stream in _members(archive, wanted, LARGEST)}


@contextmanager
def _as_sentence(archive: Path) -> Iterator[None]:
    try:
        yield
    except HidaError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        # A place before the file's beginning is the archive's fault, other errors of the system are not.
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno != errno.EINVAL:
            raise
        raise HidaError(f"{archive.name} cannot be opened as an archive ({first_line(error)}).") from None


def _members(archive: Path, wanted: Callable[[str], bool], largest: int) -> _Found:
    return _zip(archive, wanted, largest) if zipfile.is_zipfile(archive) else _tar(archive, wanted, largest)


def _zip(archive: Path, wanted: Callable[[str], bool], largest: int) -> _Found:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        if len(members) > _MEMBERS:
            raise ValueError(f"it has more than {_MEMBERS:,} members")
        for member in members:
            if wanted(member.filename) and not member.is_dir():
                _require_size(member.filename, member.file_size, largest)
                # A stream of a member ends at the size that is stated.
                with file.open(member) as stream:
                    yield member.filename, stream


def _tar(archive: Path, wanted: Callable[[str], bool], largest: int) -> _Found:
    with archive.open("rb") as file:
        opener = _OPENERS.get(file.read(2))
    unpacked = opener(archive) if opener else archive.open("rb")
    # As a stream: in it even the headers, of any size, come through what counts the bytes.
    with unpacked, tarfile.open(fileobj=_Bounded(unpacked), mode="r|") as source:  # type: ignore[call-overload]
        for number, member in enumerate(source):
            if number >= _MEMBERS:
                raise ValueError(f"it has more than {_MEMBERS:,} members")
            if member.isreg() and wanted(member.name):
                _require_size(member.name, member.size, largest)
                stream = source.extractfile(member)
                if stream is not None:
                    yield member.name, stream


def _require_size(name: str, size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(f"{name} would have {size:,} bytes")


class _Bounded:
    """A stream that ends with an error where more than ``LARGEST`` bytes are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, LARGEST

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it would unpack to more than is expected")
        return data
