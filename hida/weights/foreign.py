"""Read weights other people published, as data only: nothing in a file is ever executed."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hida.errors import HidaError, first_line

# What an unmodified ``pickle.dump`` of numeric arrays refers to; the first module moved in numpy 2.
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if name == "_reconstruct":
            return np.empty((0,)).__reduce__()[0]  # numpy's own, wherever this version keeps it
        return getattr(np, name)


def load_arrays(path: str | os.PathLike[str]) -> np.ndarray | dict[str, Any]:
    """Read a pickle that holds one numeric numpy array, or a dictionary of them; dictionaries may nest.

    Only the reconstruction of arrays is admitted: a pickle that names any other function or class is
    refused before anything it names is imported or called.

    Raises:
        HidaError: it names another function or class, is torn, or has other contents.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy warns of old dtype flags in files that are fine
                value = _ArrayUnpickler(file).load()
        # A torn stream raises nearly anything, from EOFError to UnicodeDecodeError.
        except Exception as error:
            raise HidaError(f"{path} is not a pickle of plain arrays ({error}); fetch the file again.") from error
    waiting, seen = [value], set()
    while waiting:
        array = waiting.pop()
        if id(array) in seen:  # a dictionary may hold itself
            continue
        seen.add(id(array))
        if isinstance(array, dict):
            waiting.extend(array.values())
        elif not isinstance(array, np.ndarray) or array.dtype.hasobject:
            raise HidaError(f"{path} holds something other than numeric arrays; fetch the file again.")
    return value


def load_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a network's weights from ``.safetensors`` or from a ``torch.save`` file; floats come as float32, on the CPU.

    A ``{"state_dict": ...}`` wrapper and the ``module.`` prefix of data-parallel training are removed.
    ``torch.save`` files are opened with ``weights_only=True``.

    Raises:
        HidaError: the file is neither, or holds anything but named tensors.
        OSError: it cannot be opened.
    """
    path = Path(path)
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        reason = first_line(error)[:120]
        raise HidaError(f"{path} cannot be read as weights ({reason}); fetch the file again.") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    tensors = named_tensors(state)
    if tensors is None:
        raise HidaError(f"{path} holds no named tensors; give a file of network weights.")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def named_tensors(state: Any) -> dict[str, torch.Tensor] | None:
    """Return a state dict as it is, floats as float32; None for anything else that a file may hold."""
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        return None
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


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
