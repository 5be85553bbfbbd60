"""Timing with cold operands in rotation, by a CPU's clock or a GPU's events; and how wrong the results are."""

from __future__ import annotations

import collections
import functools
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DIRECTIONS = ("fwd", "bwd", "fwd+bwd")
Times = dict[str, list[float]]
"""direction to times of one call in ms; "fwd" is that without gradients"""


class Buffers(NamedTuple):
    """One of the sets of operands in rotation, with the upstream gradient."""

    inputs: Sequence[Tensor]
    upstream: Tensor

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.inputs, self.upstream))


class Run(NamedTuple):
    """A method at a case: what is called, with which operands; what it must give (see :func:`exact`)."""

    function: Callable[..., Tensor]
    buffers: Sequence[Buffers]
    reference: Callable[..., Tensor]
    batched: set[int]
    """positions of the operands that have a part for each image"""

    def infer(self) -> list[Tensor]:
        with torch.no_grad():
            return [self.function(*b.inputs) for b in self.buffers]

    def train(self) -> list[Tensor]:
        return [self.function(*b.inputs) for b in self.buffers]

    def gradients(self, results: list[Tensor]) -> list[tuple[Tensor, ...]]:
        return [torch.autograd.grad(y, b.inputs, b.upstream) for y, b in zip(results, self.buffers, strict=True)]

    def once(self) -> list[Tensor]:
        """Return result and gradients for the first set of operands."""
        given = self.buffers[0]
        y = self.function(*given.inputs)
        return [y.detach(), *torch.autograd.grad(y, given.inputs, given.upstream)]


def in_turn(
    calls: dict[str, Callable[[int], dict[str, float]]], seconds: float, least: int = 7, most: int = 10**6
) -> dict[str, Times]:
    """Return the times that each call reports, in rounds of all of them, so that a busy moment falls on everybody.

    A call takes the number of the round: it picks one of several sets of operands by it.
    """
    for call in calls.values():
        call(0), call(1)
    times: dict[str, Times] = {name: collections.defaultdict(list) for name in calls}
    start, number = time.perf_counter(), 0
    while number < most and (number < least or time.perf_counter() - start < seconds):
        for name, call in calls.items():
            for direction, ms in call(number).items():
                times[name][direction].append(ms)
        number += 1
    return times


def on_cpu(runs: dict[str, Run], seconds: float, most: int = 10**6) -> dict[str, Times]:
    """Return the times of each method in turn with the others; ``seconds`` for each of them."""

    def infer(run: Run, number: int) -> dict[str, float]:
        inputs = run.buffers[number % len(run.buffers)].inputs
        start = time.perf_counter()
        with torch.no_grad():
            run.function(*inputs)  # freeing the result belongs to the call
        return {"fwd": 1e3 * (time.perf_counter() - start)}

    def train(run: Run, number: int) -> dict[str, float]:
        given = run.buffers[number % len(run.buffers)]
        start = time.perf_counter()
        y = run.function(*given.inputs)
        middle = time.perf_counter()
        gradients = torch.autograd.grad(y, given.inputs, given.upstream)
        end = time.perf_counter()
        del y, gradients
        return {"bwd": 1e3 * (end - middle), "fwd+bwd": 1e3 * (time.perf_counter() - start)}

    seconds *= len(runs) / 2
    first, second = (
        in_turn({name: functools.partial(call, run) for name, run in runs.items()}, seconds, most=most)
        for call in (infer, train)
    )
    return {name: first[name] | second[name] for name in runs}


def on_gpu(run: Run, seconds: float) -> tuple[Times, Times | str]:
    """Return the times of one call launched from Python, and inside a CUDA graph, or why there is none.

    An event pair has a call of every set of operands between its events, and their results are kept until it is over:
    whatever a call reads or writes was last touched as many calls before.
    """
    calls, stream = len(run.buffers), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # also the backward belongs to a stream that can be captured
        for _ in range(2):
            run.infer()
            run.gradients(run.train())
        launched = spans(run.infer, run.train, run.gradients, calls, seconds / 3, least=5)
        try:
            captured: Times | str = _captured(run, seconds * 2 / 3, stream)
        except RuntimeError as error:
            captured = (str(error).splitlines() or ["RuntimeError"])[0]
    torch.cuda.synchronize()
    return launched, captured


def _captured(run: Run, seconds: float, stream: torch.cuda.Stream) -> Times:
    """The forward for training and its backward are two graphs, so that each has its own events."""
    torch.cuda.synchronize()
    infer, train, differentiate = (torch.cuda.CUDAGraph() for _ in range(3))
    with torch.cuda.graph(infer, stream=stream):
        kept = run.infer()
    with torch.cuda.graph(train, stream=stream):
        results = run.train()
    with torch.cuda.graph(differentiate, stream=stream, pool=train.pool()):
        gradients = run.gradients(results)
    replays = infer.replay, train.replay, lambda _: differentiate.replay()
    times = spans(*replays, len(run.buffers), seconds, least=7, waits=7)
    torch.cuda.synchronize()
    del kept, results, gradients  # graphs write into them
    return times


def spans(
    infer: Callable[[], object],
    train: Callable[[], object],
    differentiate: Callable[[object], object],
    calls: int,
    seconds: float,
    least: int,
    waits: int = 1,
) -> Times:
    """Repeat the three, with five events around them; every ``waits`` rounds wait for the GPU; divide by ``calls``."""
    rounds: list[list[torch.cuda.Event]] = []
    start = time.perf_counter()
    while len(rounds) < least or (time.perf_counter() - start < seconds and len(rounds) < 200):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(5)]
        marks[0].record()
        kept = infer()
        marks[1].record()
        del kept
        marks[2].record()
        results = train()
        marks[3].record()
        kept = differentiate(results)
        marks[4].record()
        del kept, results
        rounds.append(marks)
        if len(rounds) % waits == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    ends = zip(DIRECTIONS, ((0, 1), (3, 4), (2, 4)), strict=True)
    return {name: [m[a].elapsed_time(m[b]) / calls for m in rounds] for name, (a, b) in ends}


def release() -> None:
    """Give freed memory back, so that the next method finds all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def summary(times: Sequence[float]) -> tuple[float, float]:
    """Return median and interquartile range."""
    low, median, high = statistics.quantiles(times, n=4)
    return median, high - low


def exact(run: Run, most: int) -> list[Tensor]:
    """Return the reference's result and gradients in float64, few images at a time.

    ``most`` limits their elements in the first operand. The gradients of operands that are not batched add up.
    """
    given, pieces = run.buffers[0], []
    images = given.inputs[0].shape[0]
    step = max(1, most // max(1, given.inputs[0][0].numel()))
    for first in range(0, images, step):
        part = slice(first, first + step)
        inputs = [t.detach()[part] if i in run.batched else t.detach() for i, t in enumerate(given.inputs)]
        double = Buffers([t.double().requires_grad_() for t in inputs], given.upstream[part].double())
        pieces.append(run._replace(function=run.reference, buffers=[double]).once())
    joined = zip(*pieces, strict=True)
    return [torch.cat(p) if i - 1 in run.batched or i == 0 else torch.stack(p).sum(0) for i, p in enumerate(joined)]


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the worst ‖found − exact‖/‖exact‖ of two lists of tensors; NaN is infinitely wrong."""
    worst = 0.0
    for a, b in zip(found, exact, strict=True):
        error = float((a.detach().double() - b).norm() / b.norm().clamp_min(1e-30))
        worst = max(worst, error if error == error else float("inf"))
    return worst
