"""End a run before its last epoch: by its time, a limit or a signal."""

from __future__ import annotations

import math
import signal
import time
from typing import cast

import torch
from torch import distributed

from hida.training.distributed import World


class Clock:
    """The seconds that a run has trained, over all of its parts; every process reads the leader's.

    It runs from its construction.

    Args:
        before: the seconds that earlier parts of the run have trained.
    """

    def __init__(self, world: World, before: float) -> None:
        self.world = world
        # A group on the host: a message between GPUs would make every iteration wait for the device.
        self.group: distributed.ProcessGroup | None = None
        if world.size > 1:
            # torch's type allows for processes outside the group; all are in this one.
            self.group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo"))
        self.zero = time.monotonic() - before

    def read(self) -> float:
        """Return the seconds; every process has to call this equally often."""
        seconds = time.monotonic() - self.zero
        if self.group is None:
            return seconds
        told = torch.tensor([seconds], dtype=torch.float64)
        distributed.broadcast(told, 0, self.group)
        return told.item()


class StopFlag:
    """A flag that is raised by a deadline (of time.monotonic), and, while it is entered, by SIGINT and SIGTERM.

    The signals end nothing by themselves then; only a second SIGINT does interrupt. Within two seconds of the first it
    does not: torchrun passes on the Ctrl-C that the terminal has sent to every process.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline

    @property
    def raised(self) -> bool:
        """Whether the run is to stop."""
        return self.signalled or time.monotonic() >= self.deadline

    def __enter__(self) -> StopFlag:
        self.signalled, self.since = False, 0.0
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.signalled and number == signal.SIGINT and now - self.since > 2:
            raise KeyboardInterrupt
        self.signalled, self.since = True, self.since or now

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
