"""Write tensors, as safetensors or as ``torch.save`` does, through files of Python's own.

The libraries' own writers turn what the system says of a full disk, of a quota or of a limit into errors of theirs, and
so they do with an interruption; safetensors' writes another temporary file besides, which a killed process leaves.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from hida.weights.foreign import LARGEST_HEADER

# In the order of safetensors' own writer, which puts the widest first: so all are aligned.
_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RANK = {dtype: rank for rank, dtype in enumerate(_TYPES)}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; tensors may be on any device, in any layout, and share memory.

    Raises:
        OSError: as the system says it.
        ValueError: a tensor's type has no name in the format, or the names are longer than is read.
    """
    unknown = next((name for name, value in tensors.items() if value.dtype not in _TYPES), None)
    if unknown is not None:
        raise ValueError(
            f"the tensor {unknown} is of the type {tensors[unknown].dtype}, which is not stored; convert it"
        )
    names = sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        value = tensors[name]
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > LARGEST_HEADER:
        raise ValueError("the names of its tensors are too long to be read again; shorten them")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in names:
            value = tensors[name].detach().to("cpu").contiguous()
            if value.numel():
                # A side of one element has any stride; view() takes only those of others.
                flat = value.as_strided((value.numel(),), (1,))
                file.write(flat.view(torch.uint8).numpy().data)


def save_torch(path: Path, content: Any) -> None:
    """Write what ``torch.save`` writes.

    Raises:
        OSError: as the system says it.
    """
    with path.open("wb") as file:
        kept = _Kept(file)
        try:
            torch.save(content, cast(IO[bytes], kept))
        except BaseException as error:
            # What arises in write() comes back as an error of torch's that no longer says what it was.
            raise kept.error or error from None


class _Kept:
    """A file that remembers what its first failed write raised."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()
