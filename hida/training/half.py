"""Convolution weights in half precision: cast by one call instead of one each, their gradients cast back likewise."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from hida.nn import DOG

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""precisions with autocast"""
DEVICES = {"cuda"}
"""where launches cost more than casts; a CPU's own kernels take some of the weights in float32"""


class HalfWeights:
    """In its context the network has convolution weights and biases in half precision: autocast finds nothing to cast.

    The values are those that autocast would compute with, and so are the gradients. Everything else stays as it is:
    what autocast leaves alone (DOG's own weights, the slopes p1 and p2), and the convolution of DOG's offsets, which
    is outside of autocast. The half tensors stay where they are, so that a CUDA graph can hold them; they keep the
    memory layout of the weights, as a multi-tensor kernel wants it.

    Args:
        network: on its device, in its final memory layout.
        dtype: None: the context does nothing.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        exact = {module.offset_mask for module in network.modules() if isinstance(module, DOG)}
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        self.places = [
            (module, name)
            for module in convolutions
            if dtype and module not in exact
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self.whole: list[nn.Parameter] = [module.get_parameter(name) for module, name in self.places]
        self.half = [nn.Parameter(torch.empty_like(p, dtype=dtype)) for p in self.whole]

    def __enter__(self) -> None:
        if not self.places:
            return
        with torch.no_grad():
            torch._foreach_copy_([*self.half], [*self.whole])
        self._place(self.half)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._place(self.whole)

    def _place(self, parameters: list[nn.Parameter]) -> None:
        for (module, name), parameter in zip(self.places, parameters, strict=True):
            module._parameters[name] = parameter

    def hand_over_gradients(self) -> None:
        """Give the network's own parameters the gradients of the half ones, which lose theirs."""
        found: list[Tensor] = []
        made: list[Tensor] = []
        for half, whole in zip(self.half, self.whole, strict=True):
            if half.grad is not None:
                found.append(half.grad)
                made.append(torch.empty_like(whole))
                whole.grad, half.grad = made[-1], None
        if found:
            torch._foreach_copy_(made, found)
