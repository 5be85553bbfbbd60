"""The device that a user named, and settings of process and networks that make them faster and change no result."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, TypeVar

import torch
from torch import nn

from hida.errors import HidaError

_Network = TypeVar("_Network", bound=nn.Module)

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def choose_device(name: str) -> str:
    """Return a usable device name for "cpu", "cuda", "cuda:1" or "auto".

    Raises:
        HidaError: there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise HidaError(f"there is no device {name!r}; choose cpu, cuda or auto.") from None
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise HidaError(f"there is no device {name!r} here ({count} GPUs are usable); choose cpu or auto.")
    return name


def to_channels_last(network: _Network) -> _Network:
    """Rearrange the weights of a network's convolutions to NHWC, in place, and return it.

    Others stay as they are: :func:`hida.ops.deform_conv2d` reads contiguous ones.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            untyped: Any = module  # Module.to takes a memory format in every torch; its types say so from 2.14 on
            untyped.to(memory_format=torch.channels_last)
    return network


def tune(device: str | torch.device, benchmark: int = 10) -> None:
    """Keep freed memory for the next use (CPU, glibc); time convolution algorithms once (GPU).

    Args:
        device: what the process computes on.
        benchmark: how many algorithms cuDNN tries for each convolution; 0: none, it takes the most promising one.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.benchmark = benchmark > 0 and not torch.are_deterministic_algorithms_enabled()
        if benchmark:  # torch's own 0 means all of them
            torch.backends.cudnn.benchmark_limit = benchmark
    elif sys.platform == "linux":
        # Feature maps are larger than what malloc keeps: each would be mapped, zeroed page by page, and unmapped.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for option, value in ((_M_MMAP_THRESHOLD, 2**31 - 1), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            if mallopt:
                mallopt(option, value)
