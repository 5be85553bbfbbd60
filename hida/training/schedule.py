"""What follows from the number of images seen alone: the data order, the seeds, the learning rate.

Nothing here has a state, so that a resumed run continues exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hida.config import Config


def batch_indices(start: int, count: int, size: int, seed: int) -> Tensor:
    """Return which of ``size`` pairs are the images number ``start`` … ``start + count − 1`` of the run.

    Each epoch is a fresh permutation; a batch may cross from one into the next.
    """
    pieces = []
    while count:
        epoch, offset = divmod(start, size)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch, 1)))
        piece = order[offset : offset + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return torch.cat(pieces)


def mixed_seed(*numbers: int) -> int:
    """Return a 63-bit seed that differs for any differing numbers (splitmix64 over them)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def learning_rates(config: Config, epoch: float) -> dict[str, float]:
    """Return both networks' rates at ``epoch``; during a head start of the discriminator the generator's is 0."""
    options, rate = config.optimizer, learning_rate(config, epoch)
    return {
        "generator": rate if epoch >= options.head_start else 0.0,
        "discriminator": rate * options.discriminator_rate,
    }


def learning_rate(config: Config, epoch: float) -> float:
    """Return the common rate at ``epoch``: growing through the warm-up, constant, then linear to 0 at the last one.

    With a ``base_batch`` it is scaled linearly by the batch: Goyal et al., https://arxiv.org/abs/1706.02677.
    """
    options, last = config.optimizer, config.train.epochs
    rate = options.learning_rate * (config.train.batch / options.base_batch if options.base_batch else 1.0)
    if epoch < options.warmup_epochs:
        # The first images are those of an iteration that has begun: none runs at a rate of 0.
        return rate * min(1.0, (epoch + 1e-3) / options.warmup_epochs)
    if epoch <= options.constant_epochs or last <= options.constant_epochs:
        return rate
    return rate * max(0.0, (last - epoch) / (last - options.constant_epochs))
