"""What a generator costs: parameters, and the arithmetic of one image, counted without computing it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from hida.config import GeneratorConfig
from hida.models.generator import STRIDE, Generator
from hida.nn import DOG, MetaACON


class Cost(NamedTuple):
    """Parameters, and the multiply-accumulates that the convolutions of one image take."""

    parameters: int
    macs: int


def cost(config: GeneratorConfig, side: int = STRIDE) -> Cost:
    """Count a generator's parameters and, for one ``side``×``side`` image, its multiply-accumulates.

    Element-wise work is not counted: activations, norms, resampling, the bilinear taps of DOG.
    """
    with torch.device("meta"):
        generator = Generator(config)
    half = side // 2
    stems = [module for name, module in generator.named_children() if name.startswith("stem")]
    heads = [module for name, module in generator.named_children() if name.startswith("head")]
    macs = sum(_macs(module, half) for module in stems) + sum(_macs(module, side) for module in heads)
    macs += sum(_macs(level, half >> (index + 1)) for index, level in enumerate(generator.encoder))
    levels = len(generator.decoder)
    macs += sum(_macs(level, side >> (levels - index)) for index, level in enumerate(generator.decoder))
    return Cost(sum(p.numel() for p in generator.parameters()), macs)


def _macs(block: nn.Module, side: int) -> int:
    """Return the multiply-accumulates of a block whose output has the ``side``."""
    if isinstance(block, MetaACON):
        return block.squeeze.weight.numel() + block.expand.weight.numel()  # of one pixel, the mean
    if isinstance(block, nn.Conv2d):
        return block.weight.numel() * side * side
    if isinstance(block, nn.ConvTranspose2d):
        # Each pixel of the input, half as wide, meets the whole kernel.
        return block.weight.numel() * (side // 2) ** 2
    own = block.weight.numel() * side * side if isinstance(block, DOG) else 0
    return own + sum(_macs(child, side) for child in block.children())
