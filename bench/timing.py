"""Timing side by side: cold buffers in rotation, forward and backward apart; a processor's clock or a GPU's events."""

from __future__ import annotations

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


def forward(function: Callable[..., Tensor], buffers: Sequence[Buffers]) -> list[Tensor]:
    with torch.no_grad():
        return [function(*b.inputs) for b in buffers]


def backward(results: list[Tensor], buffers: Sequence[Buffers]) -> list[tuple[Tensor, ...]]:
    return [torch.autograd.grad(y, b.inputs, b.upstream) for y, b in zip(results, buffers, strict=True)]


def measure(functions: dict[str, Callable[[int], object]], seconds: float, least: int = 7, most: int = 10**6) -> Times:
    """Return each function's times in ms, in rounds of all of them, so that a busy moment falls on everybody.

    A function takes the number of the round: it picks one of several sets of buffers by it.
    """
    for function in functions.values():
        function(0), function(1)
    times: Times = {name: [] for name in functions}
    start, round_ = time.perf_counter(), 0
    while round_ < most and (round_ < least or time.perf_counter() - start < seconds):
        for name, function in functions.items():
            before = time.perf_counter()
            function(round_)
            times[name].append(1e3 * (time.perf_counter() - before))
        round_ += 1
    return times


def on_processor(
    runs: dict[str, tuple[Callable[..., Tensor], Sequence[Buffers]]], seconds: float, most: int = 10**6
) -> dict[str, Times]:
    """Return the times of each function on its buffers, in turn with the others; ``seconds`` for each of them."""
    halves: dict[str, list[float]] = {name: [] for name in runs}

    def plain(name: str, round_: int) -> Tensor:
        function, buffers = runs[name]
        with torch.no_grad():
            return function(*buffers[round_ % len(buffers)].inputs)

    def train(name: str, round_: int) -> tuple[Tensor, ...]:
        function, buffers = runs[name]
        given = buffers[round_ % len(buffers)]
        y = function(*given.inputs)
        before = time.perf_counter()
        result = torch.autograd.grad(y, given.inputs, given.upstream)
        halves[name].append(1e3 * (time.perf_counter() - before))
        return result

    seconds *= len(runs) / 2
    without = measure({n: lambda r, n=n: plain(n, r) for n in runs}, seconds, most=most)
    whole = measure({n: lambda r, n=n: train(n, r) for n in runs}, seconds, most=most)
    # The warm-up's two calls are not in ``whole``.
    return {n: {"fwd": without[n], "bwd": halves[n][2:], "fwd+bwd": whole[n]} for n in runs}


def on_gpu(function: Callable[..., Tensor], buffers: Sequence[Buffers], seconds: float) -> tuple[Times, Times | str]:
    """Return the times of one call launched from Python, and inside a CUDA graph, or why there is none.

    An event pair has a call of every set of buffers between its events, and their results are kept until it is over:
    whatever a call reads or writes was last touched ``len(buffers)`` calls before.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # also the backward belongs to a stream that can be captured
        for _ in range(2):
            forward(function, buffers)
            backward([function(*b.inputs) for b in buffers], buffers)
        launched = _launched(function, buffers, seconds / 3)
        try:
            captured: Times | str = _captured(function, buffers, seconds * 2 / 3, stream)
        except RuntimeError as error:
            captured = (str(error).splitlines() or ["RuntimeError"])[0]
    torch.cuda.synchronize()
    return launched, captured


def _launched(function, buffers, seconds: float) -> Times:
    def once(marks: list[torch.cuda.Event]) -> None:
        marks[0].record()
        kept = forward(function, buffers)
        marks[1].record()
        del kept
        marks[2].record()
        results = [function(*b.inputs) for b in buffers]
        marks[3].record()
        gradients = backward(results, buffers)
        marks[4].record()
        del results, gradients
        torch.cuda.synchronize()

    return _collect(once, len(buffers), seconds, least=5)


def _captured(function, buffers, seconds: float, stream: torch.cuda.Stream) -> Times:
    """The forward for training and its backward are two graphs, so that each has its own events."""
    torch.cuda.synchronize()
    graphs = [torch.cuda.CUDAGraph() for _ in range(3)]
    with torch.cuda.graph(graphs[0], stream=stream):
        kept = [forward(function, buffers)]
    with torch.cuda.graph(graphs[1], stream=stream):
        results = [function(*b.inputs) for b in buffers]
    with torch.cuda.graph(graphs[2], stream=stream, pool=graphs[1].pool()):
        kept.append(backward(results, buffers))

    def once(marks: list[torch.cuda.Event]) -> None:
        marks[0].record()
        graphs[0].replay()
        marks[1].record()
        marks[2].record()
        graphs[1].replay()
        marks[3].record()
        graphs[2].replay()
        marks[4].record()

    times = _collect(once, len(buffers), seconds, least=7)
    torch.cuda.synchronize()
    del kept, results
    return times


def _collect(once, calls: int, seconds: float, least: int) -> Times:
    """Repeat ``once``, which records five events: around the forward; around training forward, and its backward."""
    rounds: list[list[torch.cuda.Event]] = []
    start = time.perf_counter()
    while len(rounds) < least or (time.perf_counter() - start < seconds and len(rounds) < 200):
        rounds.append([torch.cuda.Event(enable_timing=True) for _ in range(5)])
        once(rounds[-1])
        if len(rounds) % least == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    spans = {"fwd": (0, 1), "bwd": (3, 4), "fwd+bwd": (2, 4)}
    return {name: [m[a].elapsed_time(m[b]) / calls for m in rounds] for name, (a, b) in spans.items()}


def release() -> None:
    """Give freed memory back, so that the next method finds all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def summary(times: Sequence[float]) -> tuple[float, float]:
    """Return median and interquartile range."""
    low, median, high = statistics.quantiles(times, n=4)
    return median, high - low


def exact(reference: Callable[..., Tensor], given: Buffers, batched: set[int], most: int) -> list[Tensor]:
    """Return result and gradients of ``reference`` in float64, few images at a time.

    ``most`` limits their elements in the first operand. ``batched`` are the positions of the operands that have a part
    for each image; the others' gradients add up.
    """
    images = given.inputs[0].shape[0]
    step = max(1, most // max(1, given.inputs[0][0].numel()))
    pieces: list[list[Tensor]] = []
    for first in range(0, images, step):
        part = slice(first, first + step)
        inputs = [t.detach()[part] if i in batched else t.detach() for i, t in enumerate(given.inputs)]
        inputs = [t.double().requires_grad_() for t in inputs]
        y = reference(*inputs)
        pieces.append([y.detach(), *torch.autograd.grad(y, inputs, given.upstream[part].double())])
    joined = zip(*pieces, strict=True)
    return [torch.cat(p) if i - 1 in batched or i == 0 else torch.stack(p).sum(0) for i, p in enumerate(joined)]


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the worst ‖found − exact‖/‖exact‖ of two lists of tensors; NaN is infinitely wrong."""
    worst = 0.0
    for a, b in zip(found, exact, strict=True):
        error = float((a.detach().double() - b).norm() / b.norm().clamp_min(1e-30))
        worst = max(worst, error if error == error else float("inf"))
    return worst
