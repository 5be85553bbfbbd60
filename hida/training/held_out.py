"""Draw the pairs that are watched, few at a time, so that a run that is asked to stop does so in the middle of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hida.data.dataset import PairTensors
from hida.data.framing import Batch, centred_batch
from hida.training.state import TrainingState

PIECE, PIECE_ON_CPU = 8, 1
"""pairs that are drawn at once: on a slow CPU one takes the released network seconds"""

Stopped = Callable[[], bool]
"""Asked before every piece; in a run of several processes it may be a message to all of them."""


def held_out_error(state: TrainingState, watched: PairTensors, stopped: Stopped) -> float | None:
    """Return the mean absolute error of the EMA generator's sketches, in grey levels of [0, 1]; None if it was stopped.

    Every process has to call it; only the leader draws.
    """
    total = 0.0
    for batch in _batches(state, watched, torch.arange(len(watched))):
        if stopped():
            return None
        if state.world.leads:
            total += float((state.draw(batch)[0] - batch.sketch).abs().mean((1, 2, 3)).sum()) / 2
    return total / len(watched)


def draw_samples(
    state: TrainingState, pairs: PairTensors, stopped: Stopped
) -> list[tuple[Batch, Tensor, Tensor]] | None:
    """Return up to two pairs of each style with their sketches and reconstructed depths; None if it was stopped.

    Every process has to call it; only the leader draws.
    """
    styles = range(state.config.generator.styles)
    picked = torch.cat([torch.nonzero(pairs.style == style)[:2, 0] for style in styles]).cpu()
    drawn = []
    for batch in _batches(state, pairs, picked):
        if stopped():
            return None
        if state.world.leads:
            drawn.append((batch, *state.draw(batch)))
    return drawn


def _batches(state: TrainingState, pairs: PairTensors, index: Tensor) -> Iterator[Batch]:
    for piece in index.split(PIECE_ON_CPU if state.world.device.type == "cpu" else PIECE):
        yield centred_batch(pairs.take(piece), state.config.augment)
