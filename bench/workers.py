"""Methods in processes of their own, which take turns; and where the time of operators goes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from bench.timing import release

LEAST_ROUNDS = 3
"""of a method whose time is bound: with fewer there is no spread"""


class Worker:
    """A process that answers each line of its stdin with a line, both JSON; it says "ready" first."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env={"KINETO_LOG_LEVEL": "5", **os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, what: object) -> dict[str, Any]:
        """Return the reply; RuntimeError, with the reason, where the process failed or ended."""
        self.process.stdin.write(f"{json.dumps(what)}\n")
        self.process.stdin.flush()
        reply = self._answer()
        if "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def answer(reply: Callable[[Any], dict]) -> None:
    """Be the other end of a Worker."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            told = reply(json.loads(line))
        except Exception as error:  # out of memory, a capture that fails, a rival that does not take the case
            told = {"failed": reason(error)}
        print(json.dumps(told), flush=True)


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


class Subject(Protocol):
    """What a method makes of a case; further methods answer the questions of their names."""

    def step(self) -> object: ...
    def wait(self) -> object: ...
    def told(self) -> dict:
        """Return what is told with every time."""


def answer_steps(prepare: Callable[[dict], Subject]) -> None:
    """Answer a case: get it ready; a number: time so many steps; a word: the subject's method; "end": drop it."""
    subject: Any = None

    def reply(what: dict | int | str) -> dict:
        nonlocal subject
        if isinstance(what, dict) or what == "end":
            subject = None
            release()
            subject = prepare(what) if isinstance(what, dict) else None
            return {}
        if isinstance(what, str):
            return getattr(subject, what)()
        subject.wait()
        start = time.perf_counter()
        for _ in range(what):
            subject.step()
        subject.wait()
        return {"seconds": (time.perf_counter() - start) / what, **subject.told()}

    answer(reply)


class Processes:
    """The methods' processes, each begun when it is asked for.

    Args:
        begin: returns the Worker of a key.
        key: of a method; methods with one key share a process.
        stays: whether the process of a key serves further cases.
    """

    def __init__(
        self,
        begin: Callable[[str], Worker],
        key: Callable[[str], str] = lambda method: method,
        stays: Callable[[str], bool] = lambda key: True,
    ) -> None:
        self.begin, self.key, self.stays = begin, key, stays
        self.running: dict[str, Worker] = {}

    def ask(self, method: str, what: object) -> dict[str, Any]:
        """Return the reply of a method's process; RuntimeError where it does not start, or fails."""
        key = self.key(method)
        if key not in self.running:
            self.running[key] = self.begin(key)
        return self.running[key].ask(what)

    def prepare(self, method: str, case: dict) -> None:
        """Get a method ready; RuntimeError where that fails, in a process of its own too."""
        used = self.key(method) in self.running
        try:
            self.ask(method, case)
        except RuntimeError:
            self.drop(method)
            if not used:
                raise
            self.ask(method, case)

    def done(self, method: str) -> None:
        """Have a method give back its memory."""
        if self.stays(self.key(method)):
            self.ask(method, "end")
        else:
            self.running.pop(self.key(method)).close()

    def drop(self, method: str) -> None:
        """End the process of a method that failed: nobody knows its state."""
        worker = self.running.pop(self.key(method), None)
        if worker is not None:
            worker.kill()

    def end(self) -> None:
        """End all of them."""
        for worker in self.running.values():
            worker.kill()
        self.running.clear()


def compare(
    methods: Sequence[str],
    case: Callable[[str], dict],
    questions: Callable[[str], Sequence[str]],
    processes: Processes,
    options: argparse.Namespace,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method as soon as it is measured, with what it replied ("seconds" of all rounds), or {"failed": why}.

    On a CPU all get ready and take turns, a few steps each, so that a busy moment falls on everybody; on a GPU, where
    their networks and graphs together might not fit, a method gets ready when the one before is through. ``case`` is
    what a method gets ready, ``questions`` what it is asked after its rounds.
    """
    for group in [[method] for method in methods] if options.device.startswith("cuda") else [methods]:
        rounds: dict[str, list[dict]] = {}
        for method in group:
            try:
                processes.prepare(method, case(method))
                rounds[method] = []
            except RuntimeError as error:
                processes.drop(method)
                yield method, {"failed": str(error)}
        number, begun = 0, time.perf_counter()
        while rounds and goes_on(number, (time.perf_counter() - begun) / len(rounds), options):
            for method in list(rounds):
                try:
                    rounds[method].append(processes.ask(method, options.iterations))
                except RuntimeError as error:
                    del rounds[method]
                    processes.drop(method)
                    yield method, {"failed": str(error)}
            number += 1
        for method, replies in rounds.items():
            found = {**replies[-1], "seconds": [reply["seconds"] for reply in replies]}
            try:
                for question in questions(method):
                    found |= processes.ask(method, question)
                processes.done(method)
            except RuntimeError as error:  # the times stand all the same
                print(f"{method} after its measurement: {error}", file=sys.stderr)
                processes.drop(method)
            yield method, found


def goes_on(rounds: int, seconds: float, options: argparse.Namespace) -> bool:
    """Whether another round is to be measured after so many, and so many seconds for each method."""
    if options.seconds is None:
        return rounds < options.rounds
    return rounds < LEAST_ROUNDS or seconds < options.seconds


def breakdown(
    step: Callable[[], object], kinds: Mapping[str, tuple[str, ...]], gpu: bool, count: int = 3
) -> dict[str, float]:
    """Return the ms that a step spends in each kind of operator, named by parts of their names, and in the "rest".

    A name that ends in ":" is one of a ``torch.profiler.record_function``: with all that happens inside it.
    """
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
    return found


def profiled(step: Callable[[], object], gpu: bool, count: int) -> profile:
    """Return the profile of ``count`` steps."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as result:
        for _ in range(count):
            step()
        if gpu:
            torch.cuda.synchronize()
    return result
