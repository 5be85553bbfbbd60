"""Settings of the process that make it faster and change no result."""

from __future__ import annotations

import ctypes
import sys

import torch

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def tune(device: str | torch.device) -> None:
    """Keep freed memory for the next use (CPU, glibc); time the convolution algorithms once (GPU)."""
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    elif sys.platform == "linux":
        # Feature maps are larger than what malloc keeps: each would be mapped, zeroed page by page, and unmapped.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for option, value in ((_M_MMAP_THRESHOLD, 2**31 - 1), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            if mallopt:
                mallopt(option, value)
