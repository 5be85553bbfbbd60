"""Questions about the memory layout of tensors on a CPU."""

from __future__ import annotations

from torch import Tensor


def channels_last_on_cpu(x: Tensor) -> bool:
    """Say whether ``x`` is an NHWC tensor (``channels_last``) on a CPU, which some kernels are only written for."""
    # The last stride first: of a traced NCHW tensor it is 1, and the second, H·W, need not be looked at.
    return x.device.type == "cpu" and x.stride(3) != 1 and x.shape[1] > 1 and x.stride(1) == 1
