"""Argument checks shared by the ops: every message names the argument and the expected shape."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hida.errors import HidaError
from hida.ops import sizes


class OpError(HidaError, ValueError):
    """An argument of an op has a wrong shape, dtype or device."""


def require_tensor(name: str, value: Tensor) -> None:
    """Require a tensor, and a dense one: neither sparse nor nested."""
    if not isinstance(value, Tensor):
        raise OpError(f"{name} must be a torch.Tensor, not {type(value).__name__}.")
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"in the layout {value.layout}"
        raise OpError(f"{name} must be a dense tensor; it is {kind}: convert it by to_dense() or pad it.")


def require_image(name: str, value: Tensor) -> None:
    """Require a floating-point N,C,H,W tensor."""
    require_tensor(name, value)
    if value.dim() != 4:
        raise OpError(f"{name} must have shape (N, C, H, W); its shape is {shape(value)}.")
    if not value.is_floating_point():
        raise OpError(f"{name} must be a floating-point tensor; its dtype is {value.dtype}.")


def require_shape(name: str, value: Tensor, *allowed: tuple[int, ...]) -> None:
    """Require one of the ``allowed`` shapes."""
    require_tensor(name, value)
    if not _is_one_of(tuple(value.shape), allowed):
        # Sizes of an exported graph are symbols, which are compared by their words.
        expected = " or ".join(dict.fromkeys(str(choice) for choice in allowed))
        raise OpError(f"{name} must have shape {expected}; its shape is {shape(value)}.")
    if not value.is_floating_point():
        raise OpError(f"{name} must be a floating-point tensor; its dtype is {value.dtype}.")


def _is_one_of(found: tuple[int, ...], allowed: tuple[tuple[int, ...], ...]) -> bool:
    if not torch.compiler.is_compiling():
        return found in allowed
    # Of symbols, those that are equal in any case come first: comparing with another shape would exclude it for the
    # graph. Size by size, since torch.compile makes one expression of a whole comparison, which takes it minutes.
    if any(sizes.same(found, choice) for choice in allowed):
        return True
    return any(
        len(found) == len(choice) and all(a == b for a, b in zip(found, choice, strict=True)) for choice in allowed
    )


def require_device(reference: str, x: Tensor, **others: Tensor | None) -> None:
    """Require every tensor of ``others`` on the device of ``x``."""
    for name, value in others.items():
        if value is not None and value.device != x.device:
            raise OpError(f"{name} is on {value.device} but {reference} is on {x.device}; move both to one device.")


def require_eps(value: float) -> float:
    """Return ``eps`` as a float; require a positive, finite number, which True, text and tensors are not."""
    given: Any = value
    try:
        number = float(given) if isinstance(given, Real) and not isinstance(given, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise OpError(f"eps must be a positive number; it is {_short(given)}.")
    return number


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        return "too large"
    return text if len(text) <= 60 else f"{text[:59]}…"


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any input is float64, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
