"""Methods in processes of their own, which take turns; and where the time of operators goes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.runner import Report, go_through
from bench.timing import release

LEAST_ROUNDS = 3
"""of a method whose time is bound: with fewer there is no spread"""


class Worker:
    """This command again, with --work: it says "ready", then answers each line with a line, both JSON."""

    def __init__(self, work: str, **environment: str) -> None:
        self.work = work
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, "--work", work],
            env={"KINETO_LOG_LEVEL": "5", **os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, what: object) -> dict[str, Any]:
        """Return the reply; RuntimeError, with the reason, where the process failed or ended."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no answer
            self.process.stdin.write(f"{json.dumps(what)}\n")
            self.process.stdin.flush()
        reply = self._answer()
        if "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.work} ended with status {self.process.wait()}")
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


def answer_steps(prepare: Callable[[dict], Any]) -> None:
    """Answer with what is prepared for a case: it has ``step``, ``wait`` for the device, and ``told`` with every time.

    A case, a dictionary, is prepared; a number: so many steps are timed; a word: the method of that name is called;
    "end": the memory is given back.
    """
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


def measure_methods(
    keys: Sequence[dict],
    processes: Processes,
    report: Report,
    options: argparse.Namespace,
    questions: Callable[[dict], Sequence[str]],
    finish: Callable[[dict, list[float]], dict],
) -> None:
    """Measure the methods for each key of a row, which the results do not have yet.

    On a CPU all get ready and take turns, a few steps each, so that a busy moment falls on everybody; on a GPU, where
    their networks and graphs together might not fit, a method gets ready when the one before is through. A row is in
    the file as soon as it is known. ``questions`` are asked after the rounds; ``finish`` returns the times for the row.
    """
    todo = []
    for key in keys:
        wanted = [{**key, "method": method} for method in options.methods]
        left = [one for one in wanted if not any(one.items() <= row.items() for row in report.rows)]
        todo += [[one] for one in left] if options.gpu else [left] if left else []

    def measure(group: list[dict]) -> None:
        for one, found in compare(group, processes, options, questions):
            if "failed" not in found:
                found |= finish(one, found.pop("seconds"))
            report.add({**one, **found})
            report.write()

    try:
        go_through(todo, measure, report, options)
    finally:
        processes.end()


def compare(
    group: Sequence[dict],
    processes: Processes,
    options: argparse.Namespace,
    questions: Callable[[dict], Sequence[str]],
) -> Iterator[tuple[dict, dict[str, Any]]]:
    """Yield each of a group as soon as it is measured, with the replies ("seconds": of all rounds) or "failed": why."""
    ready: list[tuple[dict, list[dict]]] = []
    for one in group:
        try:
            processes.prepare(one["method"], one)
            ready.append((one, []))
        except RuntimeError as error:
            processes.drop(one["method"])
            yield one, {"failed": str(error)}
    number, begun = 0, time.perf_counter()
    while ready and goes_on(number, (time.perf_counter() - begun) / len(ready), options):
        for one, replies in list(ready):
            try:
                replies.append(processes.ask(one["method"], options.iterations))
            except RuntimeError as error:
                ready.remove((one, replies))
                processes.drop(one["method"])
                yield one, {"failed": str(error)}
        number += 1
    for one, replies in ready:
        found = {**replies[-1], "seconds": [reply["seconds"] for reply in replies]}
        try:
            for question in questions(one):
                found |= processes.ask(one["method"], question)
            processes.done(one["method"])
        except RuntimeError as error:  # the times stand all the same
            print(f"{one['method']} after its measurement: {error}", file=sys.stderr)
            processes.drop(one["method"])
        yield one, found


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
