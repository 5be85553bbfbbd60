"""Photos side by side in processes, which compute and write nothing: what they return is written by this process.

Processes, since threads of one would compute in turns wherever Python is at work, could not be interrupted, and share
its warnings. In turns, ten photos took 15.5, 28.7 and 17.5 s in two processes, 18.0, 30.3 and 20.2 s in two threads,
one core for each, on two cores that other programs used as well. Each process is at the end of a pipe: it ends when
this one does, however that happens, and one that dies takes one photo with it.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hida.cli.photos import STDIN, Outcome, attempt
from hida.data.spawning import spawning
from hida.errors import HidaError
from hida.images.sources import MAX_STREAM

Begin = Callable[[], Callable[[Any], Any]]
"""Loads what the work needs, in the process that does it, and returns the work; it is pickled."""


def run_side_by_side(
    photos: Sequence[Path], begin: Begin, finish: Callable[[Path, Any], None], count: int
) -> Iterator[tuple[Path, Outcome]]:
    """Yield each photo with what became of it, as they are done by ``count`` processes.

    Args:
        photos: the photos; standard input is read here.
        begin: called once in each process; the function that it returns is called there with what a photo is read from.
        finish: called here with a photo and what that function returned.

    Raises:
        HidaError: what ``begin`` raises.
    """
    workers = _Workers(begin, count)
    with contextlib.closing(workers.run(photos)) as outcomes:
        for photo, outcome in outcomes:
            if outcome.failure is None:
                finish(photo, outcome.value)
            yield photo, outcome


def cores_each(count: int) -> int:
    """Return how many cores each of ``count`` processes may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // count)


class _Workers:
    """A number of processes, each with the photo it is at.

    Args:
        begin: called once in each.
        count: how many.
    """

    def __init__(self, begin: Begin, count: int) -> None:
        # Spawned, not forked: a fork of a process whose torch has threads can hang.
        self._context = multiprocessing.get_context("spawn")
        self._begin, self._count = begin, count
        self._processes: dict[Connection, Any] = {}
        self._photos: dict[Connection, Path] = {}

    def run(self, photos: Sequence[Path]) -> Generator[tuple[Path, Outcome], None, None]:
        left = list(reversed(photos))
        try:
            for _ in range(min(self._count, len(photos))):
                self._give(self._start(), left)
            while self._photos:
                for pipe in wait(list(self._photos)):
                    assert isinstance(pipe, Connection)
                    photo = self._photos.pop(pipe)
                    try:
                        fatal, outcome = pipe.recv()
                    except (EOFError, OSError):
                        self._end(pipe)
                        yield photo, Outcome(failure="its process ended, perhaps for lack of memory; use fewer --jobs.")
                        if left:
                            self._give(self._start(), left)
                        continue
                    if fatal:
                        raise HidaError(fatal)
                    self._give(pipe, left)
                    yield photo, outcome
        finally:
            for pipe in list(self._processes):
                self._end(pipe)

    def _give(self, pipe: Connection, left: list[Path]) -> None:
        if left:
            self._photos[pipe] = photo = left.pop()
            # Its standard input is another; what is empty or too much is told there.
            source = photo if photo != STDIN else io.BytesIO(sys.stdin.buffer.read(MAX_STREAM + 1))
            with contextlib.suppress(OSError):  # it has ended, which the answer will be
                pipe.send(source)

    def _start(self) -> Connection:
        own, other = self._context.Pipe()
        process = self._context.Process(target=_work, args=(other, self._begin), daemon=True)
        with spawning(), _without_interrupts():
            process.start()
        other.close()
        self._processes[own] = process
        return own

    def _end(self, pipe: Connection) -> None:
        process = self._processes.pop(pipe)
        process.kill()  # it writes no file
        process.join()
        pipe.close()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Begin processes that no interrupt of the terminal reaches; this process has its own afterwards."""
    mask = getattr(signal, "pthread_sigmask", None)
    if mask is None:
        yield
        return
    before = mask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, begin: Begin) -> None:
    """Do what comes through a pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        source = pipe.recv()
        try:
            work = begin()
        except HidaError as error:
            pipe.send((str(error), None))
            return
        while True:
            pipe.send((None, attempt(work, source)))
            source = pipe.recv()
