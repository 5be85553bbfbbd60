"""Files of ``torch.save`` as data, both of its formats: names and tensors, whose bytes are mapped and not copied.

``torch.load(weights_only=True)`` does not run what a file says either, but believes the sizes that it states.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hida.weights.arrays import NUMBERS
from hida.weights.pickled import Built, Fields, Foreign, Name, PickleError, Thing, read_pickle

_PICKLE_BYTES = 16 << 20  # without the tensors; a thousand of them and their optimiser have less than 1 MB
_MEMBERS = 100_000
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
"""types of numbers that are read, by the beginning of the names of their storages"""


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    values: int


class Stored(Built):
    """A tensor that is still in its file."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise PickleError("it has a tensor without a storage")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 16 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise PickleError("it has a tensor of an impossible shape")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride
        self.numel = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if self.numel and last >= storage.values:
            raise PickleError("it has a tensor that is larger than its storage")

    @property
    def nbytes(self) -> int:
        return self.numel * self.storage.dtype.itemsize


class TorchFile:
    """An opened file: ``content`` is what was saved, with ``Stored`` tensors in it."""

    def __init__(self, path: Path, further: Mapping[str, Callable[..., Any]] | None = None) -> None:
        """Open a file.

        Args:
            path: the file.
            further: names that its pickle may refer to beside the usual ones, as ``pickled.read_pickle`` takes them.

        Raises:
            PickleError: it is torn or of another kind, or holds anything but tensors and plain data; nothing has run.
            OSError: it cannot be opened.
        """
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise PickleError("it is empty")
            # Private pages: tensors may be written to, the file is not.
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._admitted = {**_ADMITTED, **(further or {})}
        self._flat: dict[str, Tensor] = {}
        self._storages: dict[str, _Storage] = {}
        self._zip: dict[str, zipfile.ZipInfo] = {}
        self._places: dict[str, tuple[int, int]] = {}
        if self._data[:4] == b"PK\x03\x04":
            self._folder, self.content = self._open_zip(path)
        else:
            self._folder, self.content = "", self._open_stream()

    def tensors(self, named: Any) -> dict[str, Tensor] | None:
        """Return the tensors of a dictionary of the content; None where it is not one of named tensors.

        Raises:
            PickleError: a tensor is damaged, or they are far larger than the file.
        """
        if not isinstance(named, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Stored) for name, value in named.items()
        ):
            return None
        # Many names of one storage, or steps of 0, would make much of little.
        if sum(value.nbytes for value in named.values()) > 2 * len(self._data) + (1 << 20):
            raise PickleError("its tensors are far larger than the file")
        return {name: self.tensor(value) for name, value in named.items()}

    def tensor(self, stored: Stored) -> Tensor:
        """Return a tensor over the file's own bytes.

        Raises:
            PickleError: its storage is absent or damaged.
        """
        storage = stored.storage
        flat = self._flat.get(storage.key)
        if flat is None:  # once each: what is copied and summed is no more than the file
            flat = self._flat[storage.key] = self._read(storage)
        if not stored.numel:
            return torch.empty(stored.size, dtype=storage.dtype)
        return flat.as_strided(stored.size, stored.stride, stored.offset)

    def _read(self, storage: _Storage) -> Tensor:
        begin, length = self._place(storage.key)
        if storage.values * storage.dtype.itemsize != length:
            raise PickleError(f"its storage {storage.key[:40]!r} is not of the size that it states")
        if not length:
            return torch.empty(0, dtype=storage.dtype)
        # Kernels expect whole numbers where they are aligned; a stream of storages does not align them.
        aligned = begin % storage.dtype.itemsize == 0
        source, offset = (
            (self._data, begin) if aligned else (bytearray(memoryview(self._data)[begin : begin + length]), 0)
        )
        if storage.dtype == torch.bool:
            return torch.frombuffer(source, dtype=torch.uint8, count=length, offset=offset) != 0
        return torch.frombuffer(source, dtype=storage.dtype, count=storage.values, offset=offset)

    def _place(self, key: str) -> tuple[int, int]:
        """Return where the bytes of a storage begin in the file, and how many there are."""
        if not self._zip:
            if key not in self._places:
                raise PickleError("it lacks a storage")
            return self._places[key]
        return self._member(f"{self._folder}data/{key}")

    def _open_zip(self, path: Path) -> tuple[str, Any]:
        place, count = self._data.find(b"PK\x01\x02"), 0
        while place >= 0:
            count += 1
            if count > _MEMBERS:
                raise PickleError(f"it has more than {_MEMBERS:,} members")
            place = self._data.find(b"PK\x01\x02", place + 4)
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        # The directory of a damaged archive raises nearly anything.
        except Exception as error:
            raise PickleError(f"its archive is damaged: {str(error)[:80] or type(error).__name__}") from None
        self._zip = {member.filename: member for member in members}
        # Many names of the same bytes would make much of little.
        reached = 0
        for member in sorted(members, key=lambda member: member.header_offset):
            if member.header_offset < reached:
                raise PickleError("its archive has members that overlap")
            reached = self._begin(member) + member.compress_size
        folder = next((name[: -len("data.pkl")] for name in self._zip if name.endswith("/data.pkl")), None)
        if folder is None:
            raise PickleError("it is an archive of another kind")
        begin, length = self._member(f"{folder}data.pkl")
        if length > _PICKLE_BYTES:
            raise PickleError(f"its list of tensors has {length:,} bytes")
        if f"{folder}byteorder" in self._zip:
            at, size = self._member(f"{folder}byteorder")
            if self._data[at : at + size] == b"big":
                raise PickleError("it was written on a machine of the other byte order")
        return folder, read_pickle(
            io.BytesIO(self._data[begin : begin + length]), self._admitted, lambda given: self._refer(given, False)
        )

    def _member(self, name: str) -> tuple[int, int]:
        member = self._zip.get(name)
        if member is None:
            raise PickleError("it lacks a storage")
        if member.compress_type or member.file_size != member.compress_size:
            raise PickleError("its tensors are compressed, which torch.save does not do")
        begin = self._begin(member)
        end = begin + member.file_size
        if end > len(self._data) or zlib.crc32(memoryview(self._data)[begin:end]) != member.CRC:
            raise PickleError("its archive is damaged")
        return begin, member.file_size

    def _begin(self, member: zipfile.ZipInfo) -> int:
        """Return where the bytes of a member begin, behind its header."""
        header = self._data[member.header_offset : member.header_offset + 30] if member.header_offset >= 0 else b""
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise PickleError("its archive is damaged")
        return member.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))

    def _open_stream(self) -> Any:
        """Read the older format: pickles of a number, a version, the machine, the content and the keys; storages."""
        head = io.BytesIO(self._data[:_PICKLE_BYTES])
        plain: dict[str, Callable[..., Any]] = {}
        try:
            known = read_pickle(head, plain) == _MAGIC and read_pickle(head, plain) == _PROTOCOL
        except Foreign:
            raise
        except PickleError:
            known = False
        if not known:
            raise PickleError("it is no file of torch.save")
        machine = read_pickle(head, plain)
        if not isinstance(machine, dict) or not machine.get("little_endian", True):
            raise PickleError("it was written on a machine of the other byte order")
        content = read_pickle(head, self._admitted, lambda given: self._refer(given, True))
        keys, storages = read_pickle(head, plain), self._storages
        begin = head.tell()
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in storages:
                raise PickleError("it has a storage without a tensor")
            length = storages[key].values * storages[key].dtype.itemsize
            if self._data[begin : begin + 8] != struct.pack("<Q", storages[key].values):
                raise PickleError("it ends early, or a storage is not of the size that it states")
            self._places[key] = (begin + 8, length)
            begin += 8 + length
        if begin > len(self._data):
            raise PickleError("it ends early")
        return content

    def _refer(self, given: Any, stream: bool) -> _Storage:
        """Return the storage that a persistent id names, of which there is one by each key."""
        storage = _storage(given, stream)
        # Those without numbers have no place in memory either, by which torch.save tells them apart.
        if self._storages.setdefault(storage.key, storage) != storage and (stream or storage.values):
            raise PickleError("it has two storages of one name")
        return storage


def _storage(given: Any, stream: bool) -> _Storage:
    """Return the storage that a persistent id names: a word, its type, its key, its device, its number of values."""
    if not isinstance(given, tuple) or len(given) != (6 if stream else 5) or given[0] != "storage":
        raise PickleError("it refers to data outside of it that are no storage")
    _, kind, key, _, count = given[:5]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Name) else ""
    dtype = DTYPES.get(name.removesuffix("Storage"))
    if dtype is None or not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**48:
        raise PickleError("it has a storage of an unknown type")
    if stream and given[5] is not None:
        raise PickleError("it has a storage that is part of another")
    return _Storage(dtype, key, count)


def _no_object(*_: Any) -> Any:
    raise PickleError("it makes what weights do not need")


def _of_type(make: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(make, Name) or not isinstance(arguments, tuple):
        raise PickleError("it has a tensor of an unknown class")
    return make.make(*arguments)


def _dictionary(pairs: Any = None) -> dict[Any, Any]:
    """Return what OrderedDict and Counter make of nothing, of a dictionary, or of a list of pairs (Python 2)."""
    if isinstance(pairs, dict):
        return pairs
    fields = Fields()
    while pairs:  # moved, not copied
        key, value = pairs.pop()
        if not isinstance(key, str | int | float):
            raise PickleError("a dictionary's key is not a word or a number")
        fields[key] = value
    return Fields(reversed(fields.items()))


def _items(given: Any = None) -> Any:
    return given


def _size(given: Any = ()) -> tuple[Any, ...]:
    if not isinstance(given, tuple | list) or len(given) > 16:
        raise PickleError("it has a size that is none")
    return tuple(given)


_ADMITTED: dict[str, Callable[..., Any]] = {
    **{f"torch.{kind}Storage": _no_object for kind in DTYPES},
    **{f"torch.cuda.{kind}Storage": _no_object for kind in DTYPES},
    **{f"torch.{name}": _no_object for name in vars(torch) if isinstance(getattr(torch, name), torch.dtype)},
    "torch._utils._rebuild_tensor": Stored,
    "torch._utils._rebuild_tensor_v2": Stored,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Tensor": _no_object,
    "torch.nn.parameter.Parameter": _no_object,
    "torch.Size": _size,
    "torch.device": lambda *_: None,
    "torch.serialization._get_layout": lambda *_: None,
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "argparse.Namespace": Thing,
    "builtins.set": _items,
    "__builtin__.set": _items,
    **NUMBERS,
}
