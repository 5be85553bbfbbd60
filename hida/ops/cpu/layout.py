"""Questions about the memory layout of tensors on a CPU."""

from __future__ import annotations

from torch import Tensor

from hida.ops.layout import channels_last


def channels_last_on_cpu(x: Tensor) -> bool:
    """Say whether ``x`` is an NHWC tensor (``channels_last``) on a CPU, which some kernels are only written for."""
    return x.device.type == "cpu" and channels_last(x)
