"""A run's clock: it counts on over the parts of a run, and all processes have the leader's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hida.training import clock
from hida.training.clock import Clock
from hida.training.distributed import World

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch):
    moment = [1000.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: moment[0]))
    return moment


def test_it_counts_from_its_beginning_on_top_of_what_was_used(now):
    fresh, later = Clock(World(0, 1, CPU), 0.0), Clock(World(0, 1, CPU), 250.0)
    assert (fresh.read(), later.read()) == (0, 250)
    now[0] += 12.5
    assert (fresh.read(), later.read()) == (12.5, 262.5)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_has_the_leaders_seconds(now, monkeypatch, rank):
    sent = []

    def broadcast(tensor, source, group):
        assert (source, group, tensor.device) == (0, "gloo's", CPU)
        sent.append(tensor.item())
        tensor.fill_(sent[-1] if rank == 0 else 7.25)

    monkeypatch.setattr(clock.distributed, "new_group", lambda backend: f"{backend}'s")
    monkeypatch.setattr(clock.distributed, "broadcast", broadcast)
    ours = Clock(World(rank, 2, CPU), 100.0)
    now[0] += 3
    assert ours.read() == (103 if rank == 0 else 7.25)
    assert sent == [103]
