"""The memory layout of tensors: questions about it, and what keeps it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Say whether ``x`` (N, C, H, W) is an NHWC tensor (``channels_last``) of more than one channel."""
    # The last stride first: of a traced NCHW tensor it is 1, and the second, H·W, need not be looked at.
    return x.stride(3) != 1 and x.shape[1] > 1 and x.stride(1) == 1


def laid_out_for_kernels(grad: Tensor, x: Tensor) -> Tensor:
    """Return an upstream gradient in the layout of ``x`` on a GPU, copied if it has another.

    The kernels take any mixture, but where layouts differ they are many times slower than a copy.
    """
    return laid_out_as(grad, x) if x.is_cuda else grad


def laid_out_as(grad: Tensor, x: Tensor) -> Tensor:
    """Return an (N, C, H, W) tensor in NHWC if ``x`` is, else in NCHW; itself if it is so already."""
    return grad.contiguous(memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format)


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
