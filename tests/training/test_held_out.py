"""What a run draws of its held-out pairs: their mean error, and some of them to look at."""

from __future__ import annotations

import pytest
import torch
from runs import ALONE, RELEASED

from hida.data.dataset import PairTensors
from hida.data.framing import centred_batch
from hida.training import held_out
from hida.training.state import TrainingState


@pytest.fixture(scope="module")
def state():
    return TrainingState(RELEASED, ALONE)


@pytest.fixture(scope="module")
def pairs():
    """Two, three and none of the three styles."""
    random, style = torch.Generator().manual_seed(0), torch.tensor([1, 0, 1, 1, 0])
    photo, depth, sketch = (
        torch.randint(256, (5, channels, 250, 250), generator=random, dtype=torch.uint8) for channels in (3, 1, 1)
    )
    return PairTensors(photo, depth, sketch, style, tuple("abcde"))


@pytest.mark.parametrize("piece", [1, 2])
def test_the_error_is_the_mean_over_all_pairs_however_many_are_drawn_at_once(state, pairs, monkeypatch, piece):
    monkeypatch.setattr(held_out, "PIECE_ON_CPU", piece)
    batch = centred_batch(pairs, state.config.augment)
    errors = (state.draw(batch)[0] - batch.sketch).abs().mean() / 2
    assert held_out.held_out_error(state, pairs, lambda: False) == pytest.approx(float(errors), rel=1e-4)


def test_two_pairs_of_each_style_are_shown(state, pairs):
    drawn = held_out.draw_samples(state, pairs, lambda: False)
    assert [style for batch, _, _ in drawn for style in batch.style.tolist()] == [0, 0, 1, 1]
