"""A step of an average: many tensors at once, by a share that a captured graph reads from the device."""

from __future__ import annotations

import torch
from torch import Tensor


def move_towards(targets: list[Tensor], tensors: list[Tensor], minus_share: Tensor) -> None:
    """Move tensors, in place, by a share of the way to their targets; −share is a number that stays on the device.

    tensor −= −share·(target − tensor) is a step of SGD with the gradient target, weight decay −1 and the rate −share:
    of the multi-tensor kernels only optimisers' read a number from the device, which a captured graph needs.
    """
    torch._fused_sgd_(
        tensors,
        targets,
        [],
        weight_decay=-1.0,
        momentum=0.0,
        lr=minus_share,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
