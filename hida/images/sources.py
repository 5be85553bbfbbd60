"""Where a picture comes from: a path, bytes or a file, as an open file with a name for messages."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Union

from hida.errors import HidaError

# What is read to its end, since nobody can seek in it, may be as large as this.
MAX_STREAM = 1 << 28

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class ImageError(HidaError):
    """A picture that cannot be read or written, with the reason."""


def is_source(value: object) -> bool:
    """Tell whether a value is a path, bytes or a file, whatever is in it."""
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read")


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[BinaryIO, str, int]]:
    """Yield an open file, its name for messages, and how many bytes of it were taken into memory for that.

    Raises:
        ImageError: nothing there, no file, or nothing in it.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError("the bytes given are empty: give all that a file of a picture holds.")
        # Bytes are not copied; what may change is.
        yield io.BytesIO(source if isinstance(source, bytes) else bytes(source)), "what the bytes hold", 0
    elif not isinstance(source, (str, os.PathLike)):
        yield _file(source)
    else:
        with _path(source) as (file, name):
            yield file, name, 0


def _file(source: BinaryIO) -> tuple[BinaryIO, str, int]:
    if isinstance(source, io.TextIOBase):
        raise ImageError('the file given is open as text: open it with mode "rb".')
    name = "stdin" if source is getattr(sys.stdin, "buffer", None) else "the file given"
    seekable = getattr(source, "seekable", lambda: hasattr(source, "seek"))
    try:
        if seekable() and source.seek(0, os.SEEK_END):
            return source, name, 0
        data = source.read(MAX_STREAM + 1) or b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"{name} cannot be read ({reason}): give an open file.") from None
    if isinstance(data, str):
        raise ImageError(f"{name} holds text: give one that was opened as binary.")
    if not data:
        raise ImageError(f"{name} is empty (0 bytes): give all that a file of a picture holds.")
    if len(data) > MAX_STREAM:
        raise ImageError(f"{name} has more than {MAX_STREAM:,} bytes: save it to a file and give its path.")
    return io.BytesIO(data), name, len(data)


@contextlib.contextmanager
def _path(source: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(source, str) and (not source or _ADDRESS.match(source)):
        kind = "a web address" if source else "no path (it would be the current folder)"
        raise ImageError(f"'{source}' is {kind}: give the name of a file on this machine.")
    path = Path(source)
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise ImageError(f"'{path}' is a folder, not a picture: give a file in it.")
        if not stat.S_ISREG(state.st_mode):
            # A pipe may never end, and a device never does.
            raise ImageError(f"'{path}' is a pipe or a device, not a file: save the picture to a file first.")
        if state.st_size == 0:
            raise ImageError(f"'{path}' is empty (0 bytes): copy or download it again.")
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"'{path}' cannot be read ({error.strerror or error}): check the path.") from None
    except ValueError as error:
        raise ImageError(f"{os.fspath(path)!r} is no path ({error}): check it.") from None
    with file:
        yield file, f"'{path}'"
