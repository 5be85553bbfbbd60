"""Questions about the memory layout of tensors, and a concatenation that keeps it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channels_last_on_cpu(x: Tensor) -> bool:
    """Say whether ``x`` is an NHWC tensor (``channels_last``) on a CPU, which some kernels are only written for."""
    return x.device.type == "cpu" and channels_last(x)


def channels_last(x: Tensor) -> bool:
    """Say whether ``x`` is an NHWC tensor of more than one channel."""
    # The last stride first: of a traced NCHW tensor it is 1, and the second, H·W, need not be looked at.
    return x.stride(3) != 1 and x.shape[1] > 1 and x.stride(1) == 1


def joined(images: Sequence[Tensor], like: Tensor) -> Tensor:
    """Concatenate (N, C, H, W) tensors along the channels, in the layout of ``like``.

    torch.cat takes the layout of its operands, and those of one channel have none: a convolution with weights in NHWC
    would rearrange what it gives, forward and again backward.
    """
    if not channels_last(like):
        return torch.cat(list(images), 1)
    if like.device.type == "cpu":
        return torch.cat(list(images), 1).contiguous(memory_format=torch.channels_last)
    return interleaved(images)


def interleaved(images: Sequence[Tensor]) -> Tensor:
    """Concatenate (N, C, H, W) tensors along the channels to one in NHWC, by one copy."""
    return torch.cat([image.permute(0, 2, 3, 1) for image in images], 3).permute(0, 3, 1, 2)
