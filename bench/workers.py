"""Methods in processes of their own, which take turns; and where the time of operators goes."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from bench.runner import Report, go_through
from bench.timing import release

T = TypeVar("T")
LEAST_ROUNDS = 3
"""of a method whose time is bound: with fewer there is no spread"""
OPERATORS = {  # the first that fits: deform_conv2d is no conv2d
    "deform": ("deform",),
    "ida": ("hida_ida", "hida::ida", "op ida:", "instance_norm_modulate"),
    "info_acon": ("info_acon",),
    "convolution": ("convolution", "conv_transpose", "conv2d"),
}
"""kinds of operators by parts of their names; a name that ends in ":" is a range, with all that happens inside it"""


class Worker:
    """A new process that calls functions; what they leave in their modules is there for the next."""

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def call(self, function: Callable[..., T], *given: object) -> T:
        """Return what a function returns there; RuntimeError, with the reason, where it failed or the process ended."""
        try:
            self.pipe.send((function, given))
            failed, told = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise RuntimeError(f"its process ended with status {self.process.exitcode}") from None
        if failed:
            raise RuntimeError(told)
        return told

    def end(self) -> None:
        self.pipe.close()
        self.process.join(1)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark that is interrupted ends its workers
    with contextlib.suppress(EOFError, BrokenPipeError):  # the benchmark has closed its end
        while True:
            function, given = pipe.recv()
            try:
                told = False, function(*given)
            except Exception as error:  # out of memory, a capture that fails, a rival that does not take the case
                told = True, reason(error)
            pipe.send(told)


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


class Subject(Protocol):
    """A method at a case, a row without its results, got ready in a worker's process by ``type(one, options)``."""

    def step(self) -> object: ...  # what is timed

    def wait(self) -> object: ...  # for the device

    def told(self) -> dict[str, Any]: ...  # what the row says beside the times

    def breakdown(self) -> dict[str, Any]: ...  # where the time goes, for the row

    @staticmethod
    def times(one: dict, seconds: list[float]) -> dict[str, float]: ...  # what the row says of a step's times


_subject: Any = None


def prepare(make: type[Subject], one: dict, options: argparse.Namespace) -> None:
    """Have a subject in this process, in place of the one before."""
    global _subject
    _subject = None
    release()
    _subject = make(one, options)


def seconds_of(count: int) -> float:
    """Return the seconds of a step of the subject here, a mean of so many."""
    _subject.wait()
    start = time.perf_counter()
    for _ in range(count):
        _subject.step()
    _subject.wait()
    return (time.perf_counter() - start) / count


def ask(question: str) -> dict[str, Any]:
    return getattr(_subject, question)()


class Processes:
    """A process for each method on a CPU; on a GPU, where one takes many seconds to start, one for all."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.running: dict[str, Worker] = {}

    def call(self, method: str, function: Callable[..., T], *given: object) -> T:
        key = "all" if self.gpu else method
        if key not in self.running:
            self.running[key] = Worker()
        return self.running[key].call(function, *given)

    def prepare(self, method: str, *given: object) -> None:
        """Get a method ready; RuntimeError where that fails, in a process of its own too."""
        used = self.gpu and bool(self.running)
        try:
            self.call(method, prepare, *given)
        except RuntimeError:
            self.drop(method)
            if not used:
                raise
            self.call(method, prepare, *given)

    def drop(self, method: str) -> None:
        """End the process of a method."""
        worker = self.running.pop("all" if self.gpu else method, None)
        if worker is not None:
            worker.end()


def measure_methods(make: type[Subject], keys: Sequence[dict], report: Report, options: argparse.Namespace) -> None:
    """Measure the methods for each key of a row, which the results do not have yet.

    On a CPU all get ready and take turns, a few steps each, so that a busy moment falls on everybody; on a GPU, where
    their networks and graphs together might not fit, a method gets ready when the one before is through. A row is in
    the file as soon as it is known.
    """
    todo = []
    for key in keys:
        wanted = [{**key, "method": method} for method in options.methods]
        left = [one for one in wanted if not any(one.items() <= row.items() for row in report.rows)]
        todo += [[one] for one in left] if options.gpu else [left] if left else []
    processes = Processes(options.gpu)

    def measure(group: list[dict]) -> None:
        for one, found in compare(make, group, processes, options):
            report.add({**one, **found})
            report.write()

    try:
        go_through(todo, measure, report, options)
    finally:
        for key in list(processes.running):
            processes.drop(key)


def compare(
    make: type[Subject], group: Sequence[dict], processes: Processes, options: argparse.Namespace
) -> Iterator[tuple[dict, dict[str, Any]]]:
    """Yield each of a group as soon as it is measured, with what its row says, or "failed": why."""
    ready: list[tuple[dict, list[float]]] = []
    for one in group:
        try:
            processes.prepare(one["method"], make, one, options)
            ready.append((one, []))
        except RuntimeError as error:
            processes.drop(one["method"])
            yield one, {"failed": str(error)}
    number, begun = 0, time.perf_counter()
    while ready and goes_on(number, (time.perf_counter() - begun) / len(ready), options):
        for one, seconds in list(ready):
            try:
                seconds.append(processes.call(one["method"], seconds_of, options.iterations))
            except RuntimeError as error:
                ready.remove((one, seconds))
                processes.drop(one["method"])
                yield one, {"failed": str(error)}
        number += 1
    for one, seconds in ready:
        found = make.times(one, seconds)
        try:
            for question in ("told", "breakdown"):
                found |= processes.call(one["method"], ask, question)
        except RuntimeError as error:  # the times stand all the same
            print(f"{one['method']} after its measurement: {error}", file=sys.stderr)
            processes.drop(one["method"])
        if not options.gpu:  # the peak of memory is the process's, which therefore serves one case
            processes.drop(one["method"])
        yield one, found


def goes_on(rounds: int, seconds: float, options: argparse.Namespace) -> bool:
    """Whether another round is to be measured after so many, and so many seconds for each method."""
    if options.seconds is None:
        return rounds < options.rounds
    return rounds < LEAST_ROUNDS or seconds < options.seconds


def add_rounds(made: argparse.ArgumentParser, rounds: int, gpu: bool) -> None:
    """Add the options of a benchmark whose methods take turns in rounds."""
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--seconds", type=float, help="rounds until a method was timed for so long, not --rounds")
    made.add_argument("--iterations", type=int, default=20 if gpu else 1, help="in a round")


def breakdown(
    step: Callable[[], object], gpu: bool, kinds: Mapping[str, tuple[str, ...]] = OPERATORS, count: int = 3
) -> dict[str, float]:
    """Return the ms that a step spends in each kind of operator (see OPERATORS), and in the "rest"."""
    step()
    found, inside = dict.fromkeys((*kinds, "rest"), 0.0), 0.0
    for event in profiled(step, gpu, count).key_averages():
        if gpu and event.device_type == torch.autograd.DeviceType.CUDA:
            continue  # kernels, counted with the operators that launched them
        kind = next((kind for kind, names in kinds.items() if any(name in event.key for name in names)), "rest")
        whole = (event.device_time_total if gpu else event.cpu_time_total) / 1e3 / count
        own = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3 / count
        is_range = event.key.endswith(":")
        found[kind] += whole if is_range else own
        inside += whole - own if is_range else 0.0
    found["rest"] -= inside  # was counted there, operator by operator
    return {kind: round(ms, 4) for kind, ms in found.items()}


def profiled(step: Callable[[], object], gpu: bool, count: int) -> profile:
    """Return the profile of ``count`` steps."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as result:
        for _ in range(count):
            step()
        if gpu:
            torch.cuda.synchronize()
    return result
