"""Fold a batch norm into the convolution before it: one operation instead of two, for inference."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold(conv: nn.Module, norm: nn.Module) -> tuple[nn.Conv2d, nn.Identity]:
    """Return one convolution that computes ``norm(conv(x))`` in evaluation mode, and what takes the norm's place.

    Raises:
        TypeError: the two are not a convolution and a batch norm, or were folded already.
    """
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"{type(conv).__name__} and {type(norm).__name__} cannot be folded into one convolution")
    return fuse_conv_bn_eval(conv, norm), nn.Identity()
