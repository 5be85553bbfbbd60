"""Which implementation of the ops runs: the plain PyTorch reference or the native kernels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor

from hida.errors import HidaError
from hida.ops import library

Backend = Literal["auto", "native", "reference"]
_BACKENDS: tuple[str, ...] = get_args(Backend)

_override: ContextVar[Backend | None] = ContextVar("hida_ops_backend", default=None)
# torch.compile cannot read a context variable; it reads this copy, and compiles again when it changes.
_traced: Backend | None = None


def available() -> dict[str, bool]:
    """Return which native libraries are loaded: ``{"cpu": bool, "cuda": bool}``."""
    return {"cpu": library.loaded, "cuda": library.loaded_cuda}


@contextlib.contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Select the implementation for the calls inside the ``with`` block.

    ``"reference"`` is plain PyTorch, ``"native"`` the compiled kernels, ``"auto"`` native where it exists. Forward-mode
    differentiation and the transforms of ``torch.func`` (jvp, vmap, jacrev ...) take the reference in any case.
    The environment variable ``HIDA_OPS`` sets the same for a whole process; the context manager wins.

    Raises:
        HidaError: for another name, or for ``"native"`` where no native library is loaded.
    """
    global _traced
    token, before = _override.set(_checked(name, "hida.ops.backend")), _traced
    _traced = name
    try:
        yield
    finally:
        _traced = before
        _override.reset(token)


def selected() -> Literal["native", "reference"]:
    """Return the implementation that a call made now would use."""
    name = _chosen()
    if name is None:
        name = _checked(os.environ.get("HIDA_OPS", "auto"), "HIDA_OPS")
    if name == "auto":
        return "native" if any(available().values()) else "reference"
    return name


def native(*tensors: Tensor | None) -> bool:
    """Say whether a call with these tensors runs on the native kernels.

    Under forward-mode differentiation and the transforms of ``torch.func`` none does, whatever is selected.

    Raises:
        HidaError: if native kernels are demanded and there are none for the tensors' device or dtype.
    """
    if selected() == "reference" or library.transformed(*tensors):
        return False
    given = [t for t in tensors if t is not None]
    device = given[0].device.type
    if available().get(device, False) and all(t.dtype in library.DTYPES for t in given):
        return True
    if (_chosen() or os.environ.get("HIDA_OPS", "auto")) == "native":
        dtypes = ", ".join(sorted({str(t.dtype) for t in given}))
        raise HidaError(f"there are no native ops for {dtypes} on {device}; use auto or reference.")
    return False


def _chosen() -> Backend | None:
    return _traced if torch.compiler.is_compiling() else _override.get()


def _checked(name: str, origin: str) -> Backend:
    if not _is_backend(name):
        raise HidaError(f"{origin} is {name!r}; choose one of {', '.join(_BACKENDS)}.")
    if name == "native" and not any(available().values()):
        raise HidaError(f"{origin} asks for native ops, but no native library is built; use auto or reference.")
    return name


def _is_backend(name: str) -> TypeGuard[Backend]:
    return name in _BACKENDS
