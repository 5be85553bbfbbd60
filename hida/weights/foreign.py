"""Read weights other people published, as data only: nothing in a file is ever executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hida.errors import HidaError, first_line
from hida.weights.arrays import read_arrays
from hida.weights.opened import readable_name
from hida.weights.pickled import PickleError
from hida.weights.torch_file import TorchFile

LARGEST_HEADER = 8 << 20
"""bytes of a safetensors header, which holds the names; a thousand tensors and their optimiser have less than 1 MB"""
_LARGEST_PICKLE = 1 << 30


def load_arrays(path: str | os.PathLike[str]) -> np.ndarray | dict[str, Any]:
    """Read a pickle that holds one numeric numpy array, or a dictionary of them; dictionaries may nest.

    Only the reconstruction of arrays is admitted: a pickle that names any other function or class is
    refused, and nothing that it names is imported or called.

    Raises:
        HidaError: it names another function or class, is torn, or has other contents.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.stat().st_size > _LARGEST_PICKLE:
        raise HidaError(f"{path} is too large for a pickle of arrays; fetch the file again.")
    try:
        return read_arrays(path.read_bytes())
    except PickleError as error:
        raise HidaError(f"{path} is not a pickle of plain arrays ({error}); fetch the file again.") from None


def load_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a network's weights from ``.safetensors`` or from a ``torch.save`` file; floats come as float32, on the CPU.

    A ``{"state_dict": ...}`` wrapper and the ``module.`` prefix of data-parallel training are removed.

    Raises:
        HidaError: the file is neither, or holds anything but named tensors.
        OSError: it cannot be opened.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] | None
    try:
        if path.suffix == ".safetensors":
            check_header(path)
            with readable_name(path) as name:
                tensors = load_file(name)
        else:
            tensors = _torch_state(path)
    except (PickleError, SafetensorError, ValueError, MemoryError) as error:
        reason = first_line(error)[:120]
        raise HidaError(f"{path} cannot be read as weights ({reason}); fetch the file again.") from None
    if tensors is None:
        raise HidaError(f"{path} holds no named tensors; give a file of network weights.")
    return {name.removeprefix("module."): as_float(value) for name, value in tensors.items()}


def check_header(path: Path) -> None:
    """Require that a safetensors file has a header of a size that weights have.

    Raises:
        ValueError: it has not.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > LARGEST_HEADER:
            raise ValueError("its header is too large for weights")


def as_float(value: torch.Tensor) -> torch.Tensor:
    """Return floats of any precision as float32, other numbers as they are."""
    return value.float() if value.is_floating_point() else value


def _torch_state(path: Path) -> dict[str, torch.Tensor] | None:
    file = TorchFile(path)
    state = file.content
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    return file.tensors(state)


def fill(network: torch.nn.Module, state: dict[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Load ``state``, read from ``path``, into ``network`` exactly.

    Raises:
        HidaError: their names or shapes do not match.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        name = type(network).__name__
        raise HidaError(
            f"{path} is not a file of {name} weights: its tensors have other names or shapes; fetch it again."
        ) from error
