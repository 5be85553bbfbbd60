"""A step of an average: many tensors at once, by a share that a captured graph reads from the device."""

from __future__ import annotations

import torch
from torch import Tensor


def move_towards(targets: list[Tensor], tensors: list[Tensor], share: Tensor) -> None:
    """Move tensors, in place, by a share of the way to their targets, a number that stays on the device.

    tensor −= share·(tensor − target) is a step of SGD with weight decay 1 that ascends the target: of the multi-tensor
    kernels only optimisers' read a number from the device, which a captured graph needs.
    """
    torch._fused_sgd_(
        tensors,
        targets,
        [],
        weight_decay=1.0,
        momentum=0.0,
        lr=share,
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
    )
