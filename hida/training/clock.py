"""End a run before its last epoch: by its time, a limit or a signal, in all of its processes at once."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar, cast

import torch
from torch import distributed

from hida.errors import outside_imports, stops
from hida.training.distributed import World, at_once

T = TypeVar("T")

_FURTHER = ("SIGUSR1", "SIGXCPU")
"""What batch systems send before the end of a job's time, where they are asked to, and at a limit of CPU time."""


class Told(NamedTuple):
    """What every process knows after a meeting."""

    seconds: float
    """the leader's clock"""
    stop: bool
    """whether any process asks to stop"""
    wishes: list[bool]
    """the leader's"""


class Meeting:
    """What the processes of a run tell each other between iterations, in one small message.

    Its clock has the seconds that the run has trained, over all of its parts, and runs from the construction.

    Args:
        before: the seconds that earlier parts of the run have trained.
    """

    def __init__(self, world: World, before: float = 0.0) -> None:
        self.world = world
        # A group on the host: a message between GPUs would make every iteration wait for the device.
        self.group: distributed.ProcessGroup | None = None
        if world.size > 1:
            with at_once():
                # torch's type allows for processes outside the group; all are in this one.
                self.group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo"))
        self.zero = time.monotonic() - before

    def hold(self, stop: bool, wishes: Iterable[bool] = ()) -> Told:
        """Tell whether this process asks to stop, and what it wishes; every process has to call this equally often."""
        seconds = time.monotonic() - self.zero
        if self.group is None:
            return Told(seconds, stop, list(wishes))
        ours = torch.tensor([seconds, *wishes], dtype=torch.float64)
        if not self.world.leads:
            ours.fill_(-math.inf)
        told = torch.cat((ours, torch.tensor([stop], dtype=torch.float64)))
        distributed.all_reduce(told, distributed.ReduceOp.MAX, self.group)
        seconds, *rest = told.tolist()
        return Told(seconds, bool(rest[-1]), [bool(wish) for wish in rest[:-1]])


class Abandoned(Exception):
    """An iteration was given up in the middle, in all processes; nothing of it remains."""


class _Now(BaseException):
    """A signal, in the middle of work that it ends."""


class StopFlag:
    """A flag that is raised by a deadline (of time.monotonic), and, once it is armed, by the signals that ask to stop.

    Before, signals end the command as they do others: a run that has not trained yet has nothing to save. Armed, they
    end nothing by themselves; only a second SIGINT does interrupt. Within two seconds of the first it does not:
    torchrun passes on the Ctrl-C that the terminal has sent to every process. Its context restores what was before.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.signalled, self.since = False, 0.0
        self.interrupts = False
        self.previous: dict[int, signal._HANDLER] = {}

    @property
    def raised(self) -> bool:
        """Whether the run is to stop."""
        return self.signalled or time.monotonic() >= self.deadline

    def arm(self) -> None:
        """Note signals from now on; those that are ignored, as nohup has it with SIGHUP, still are."""
        if self.previous or threading.current_thread() is not threading.main_thread():
            return  # in another thread the caller handles signals
        further = [getattr(signal, name) for name in _FURTHER if hasattr(signal, name)]
        for number in (*stops(), *(n for n in further if signal.getsignal(n) is not signal.SIG_IGN)):
            self.previous[number] = signal.signal(number, outside_imports(self._note))

    def __enter__(self) -> StopFlag:
        return self

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.signalled and number == signal.SIGINT and now - self.since > 2:
            raise KeyboardInterrupt
        self.signalled, self.since = True, self.since or now
        if self.interrupts:
            self.interrupts = False
            raise _Now

    def attempt(self, work: Callable[[], T]) -> tuple[bool, T | None]:
        """Do ``work``, unless a signal comes; return whether it was done, and its result."""
        try:
            self.interrupts = not self.signalled
            if self.signalled:
                return False, None
            result = work()
            self.interrupts = False
            return True, result
        except _Now:
            return False, None
        finally:
            self.interrupts = False

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}


class Guard:
    """Does the parts of a long iteration, so that a signal need not wait for its end.

    Every process has to do the same parts, and all of them give up if one does.
    """

    def __init__(self, stop: StopFlag, meeting: Meeting) -> None:
        self.stop, self.meeting = stop, meeting
        self.active = False
        """whether iterations are long; the same in all processes"""

    def __call__(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``.

        Raises:
            Abandoned: in all processes, if a signal came to one of them.
        """
        if not self.active:
            return work()
        done, result = self.stop.attempt(work)
        if self.meeting.hold(not done).stop:
            raise Abandoned
        return cast(T, result)
