"""Compute from the number of images seen the data order, the seeds and the learning rate (which may follow the time).

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


def learning_rates(config: Config, epoch: float, elapsed: float = 0.0) -> dict[str, float]:
    """Return both networks' rates; during a head start of the discriminator the generator's is 0."""
    options, rate = config.optimizer, learning_rate(config, epoch, elapsed)
    return {
        "generator": rate if epoch >= options.head_start else 0.0,
        "discriminator": rate * options.discriminator_rate,
    }


def learning_rate(config: Config, epoch: float, elapsed: float = 0.0) -> float:
    """Return the common rate at ``epoch`` and after ``elapsed`` seconds: it grows, stays constant, and falls to 0.

    It grows with the epochs and falls by the schedule's measure. With a ``base_batch`` it is scaled linearly by the
    batch.

    Source: Goyal et al., https://arxiv.org/abs/1706.02677.
    """
    options = config.optimizer
    rate = options.learning_rate * (config.train.batch / options.base_batch if options.base_batch else 1.0)
    if options.schedule == "elapsed":
        left = _left(elapsed, (1 - options.decay_share) * config.seconds, config.seconds)
    else:
        left = _left(epoch, options.constant_epochs, config.train.epochs)
    # Slightly ahead of the epoch, so that the first iteration does not run at a rate of 0.
    grown = (epoch + 1e-3) / options.warmup_epochs if epoch < options.warmup_epochs else 1.0
    return rate * min(grown, left)


def _left(now: float, begin: float, end: float) -> float:
    """Return 1 up to ``begin``, then what a linear fall to 0 at ``end`` has left."""
    if now <= begin or end <= begin:
        return 1.0
    return max(0.0, (end - now) / (end - begin))
