"""The device that a user named."""

from __future__ import annotations

import torch

from hida.errors import HidaError


def choose_device(name: str) -> str:
    """Return a usable device name for "cpu", "cuda", "cuda:1" or "auto"; HidaError if there is none such."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise HidaError(f"there is no device {name!r}; choose cpu, cuda or auto.") from None
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise HidaError(f"there is no device {name!r} here ({count} GPUs are usable); choose cpu or auto.")
    return name
