"""A run's clock and its end: seconds count on over parts, processes decide alike, signals are noted or stay ignored."""

from __future__ import annotations

import math
import signal
from types import SimpleNamespace

import pytest
import torch

from hida.training import clock
from hida.training.clock import Meeting, StopFlag
from hida.training.distributed import World

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch):
    moment = [1000.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: moment[0]))
    return moment


def test_it_counts_from_its_beginning_on_top_of_what_was_used(now):
    fresh, later = Meeting(World(0, 1, CPU)), Meeting(World(0, 1, CPU), 250.0)
    assert (fresh.hold(False).seconds, later.hold(False).seconds) == (0, 250)
    now[0] += 12.5
    assert (fresh.hold(False).seconds, later.hold(False).seconds) == (12.5, 262.5)


def test_alone_a_process_hears_itself(now):
    meeting = Meeting(World(0, 1, CPU))
    assert meeting.hold(True, [True, False]) == (0, True, [True, False])
    assert meeting.hold(False, [False, True]) == (0, False, [False, True])


@pytest.mark.parametrize("stopping", [None, 0, 1, 2])
def test_every_process_has_the_leaders_seconds_and_wishes_and_anyones_stop(now, monkeypatch, stopping):
    """Each of three processes is asked what it would send; then each hears the largest of every number."""
    monkeypatch.setattr(clock.distributed, "new_group", lambda backend: f"{backend}'s")
    meetings = [Meeting(World(rank, 3, CPU), 100.0 + rank) for rank in range(3)]
    now[0] += 3
    sent = []

    def note(tensor, operation, group):
        assert (operation, group, tensor.device) == (clock.distributed.ReduceOp.MAX, "gloo's", CPU)
        sent.append(tensor.clone())

    def hear(tensor, operation, group):
        tensor.copy_(torch.stack(sent).amax(0))

    # What only the others wish has no weight.
    wishes = [[True, False], [True, True], [False, True]]
    for act in (note, hear):
        monkeypatch.setattr(clock.distributed, "all_reduce", act)
        told = [meetings[rank].hold(rank == stopping, wishes[rank]) for rank in range(3)]
    assert len(sent) == 3  # one message each
    assert told == [(103.0, stopping is not None, [True, False])] * 3


def test_a_signal_is_noted_an_echo_ignored_and_a_later_interrupt_obeyed(now):
    before = signal.getsignal(signal.SIGINT)
    with StopFlag() as stop:
        stop.arm()
        assert not stop.raised
        signal.raise_signal(signal.SIGINT)
        assert stop.raised
        now[0] += 1
        signal.raise_signal(signal.SIGINT)  # torchrun hands on what the terminal has already sent
        now[0] += 1.5
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_what_asks_to_stop_is_noted_unless_it_was_ignored(name, monkeypatch):
    number = getattr(signal, name)
    for handler in (signal.SIG_DFL, signal.SIG_IGN):
        before = signal.signal(number, handler)
        try:
            with StopFlag() as stop:
                assert signal.getsignal(number) is handler  # nothing is noted before it is armed
                stop.arm()
                ignored = handler is signal.SIG_IGN and number != signal.SIGTERM
                signal.raise_signal(number)
                assert stop.raised == (not ignored)
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, before)


def test_a_deadline_raises_the_flag(now):
    stop = StopFlag(1010.0)
    assert not stop.raised
    now[0] += 10
    assert stop.raised
    assert not StopFlag(math.inf).raised
