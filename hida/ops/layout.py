"""Questions about the memory layout of tensors."""

from __future__ import annotations

from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Say whether ``x`` (N, C, H, W) is an NHWC tensor (``channels_last``), for which some kernels are written."""
    # The last stride first: of a traced NCHW tensor it is 1, and the second, H·W, need not be looked at.
    return x.stride(3) != 1 and x.shape[1] > 1 and x.stride(1) == 1
