"""Numpy's files as data: what its pickles refer to, and ``.npy`` files whose header may promise anything."""

from __future__ import annotations

import io
import math
import re
import tokenize
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hida.errors import first_line
from hida.weights.pickled import Built, PickleError, read_pickle


class _DType(Built):
    """A numeric type, until the pickle has given its byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biufc]\d{1,2}", code):
            raise PickleError("it holds something other than numeric arrays")
        self.dtype = np.dtype(code)

    def complete(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|") or any(state[2:5]):
            raise PickleError("it has an array of an unknown type")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(Built):
    """An array whose contents are still in the pickle."""

    def __init__(self, *_: Any) -> None:
        self._state: Any = None

    def complete(self, state: Any) -> None:
        self._state = state

    def array(self) -> np.ndarray:
        if not isinstance(self._state, tuple) or len(self._state) != 5:
            raise PickleError("it has an array without contents")
        _, shape, dtype, fortran, raw = self._state
        if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
            raise PickleError("it has an array of an unknown type")
        return _array(_bytes(raw), dtype.dtype, shape, bool(fortran))


class _Encoded(NamedTuple):
    """Text that is to be bytes, as Python 2 and older protocols have it."""

    text: Any


def _array(raw: bytes, dtype: np.dtype, shape: tuple[Any, ...], fortran: bool) -> np.ndarray:
    """Return a writable array of exactly these bytes."""
    if len(shape) > 32 or not all(type(side) is int and 0 <= side < 2**48 for side in shape):
        raise PickleError("it has an array of an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise PickleError("it has an array of another size than its shape")
    flat = np.frombuffer(bytearray(raw), dtype) if raw else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _bytes(raw: Any) -> bytes:
    raw = raw.text if isinstance(raw, _Encoded) else raw
    if not isinstance(raw, str | bytes):
        raise PickleError("it has an array without contents")
    # Python 2 wrote bytes as text of Latin-1.
    return raw.encode("latin-1") if isinstance(raw, str) else raw


def _scalar(dtype: Any, raw: Any) -> float | int:
    text = raw.text if isinstance(raw, _Encoded) else raw
    if not isinstance(dtype, _DType) or not isinstance(text, str | bytes) or len(text) > 32:
        raise PickleError("it has a number of an unknown type")
    return _array(_bytes(text), dtype.dtype, (), False).item()


def _encode(text: Any, *_: Any) -> _Encoded:
    return _Encoded(text)


def _both(name: str, make: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    # The module moved in numpy 2.
    return {f"numpy.core.multiarray.{name}": make, f"numpy._core.multiarray.{name}": make}


ARRAYS: dict[str, Callable[..., Any]] = {
    **_both("_reconstruct", _Array),
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
}
"""what an unmodified ``pickle.dump`` of numeric arrays refers to"""
NUMBERS: dict[str, Callable[..., Any]] = {
    **_both("scalar", _scalar),
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
}
"""what that of numpy's numbers does"""


def read_arrays(data: bytes) -> np.ndarray | dict[Any, Any]:
    """Return the array, or the dictionary of arrays, which may nest, that a pickle holds.

    Raises:
        PickleError: it is torn, or holds anything else; nothing of it has run.
    """
    stream = io.BytesIO(data)
    root = {"": read_pickle(stream, ARRAYS)}
    waiting: list[dict[Any, Any]] = [root]
    seen: set[int] = set()
    made: dict[int, np.ndarray] = {}
    total = 0
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:  # a dictionary may hold itself
            continue
        seen.add(id(holder))
        for name, value in holder.items():
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, _Array):
                if id(value) not in made:
                    made[id(value)] = value.array()
                    total += made[id(value)].nbytes
                    if total > 2 * len(data):
                        raise PickleError("its arrays are far larger than the file")
                holder[name] = made[id(value)]
            else:
                raise PickleError("it holds something other than numeric arrays")
    return root[""]


def read_npy(data: bytes) -> np.ndarray:
    """Return the array of a ``.npy`` file; its size is known before memory is reserved.

    Raises:
        ValueError: it is torn, or another kind of file, or holds objects.
    """
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"an array file of version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        if dtype.kind not in "biufc":
            raise ValueError("it holds something other than numbers")
        return _array(data[stream.tell() :], dtype, shape, fortran)
    # The header is a Python expression, which is parsed and not run: a wild one raises what a parser raises.
    except (PickleError, tokenize.TokenError, SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(first_line(error)) from None
