"""Timing side by side: rotated buffers, interleaved rounds, median and interquartile range; a table and JSON."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hida.ops import library


def measure(functions: dict[str, Callable[[int], object]], seconds: float, least: int = 7) -> dict[str, list[float]]:
    """Return each function's times in ms, in rounds of all of them, so that a busy moment falls on everybody.

    A function takes the number of the round: it picks one of several sets of buffers by it.
    """
    for function in functions.values():
        function(0), function(1)
    times: dict[str, list[float]] = {name: [] for name in functions}
    start, round_ = time.perf_counter(), 0
    while round_ < least or time.perf_counter() - start < seconds:
        for name, function in functions.items():
            before = time.perf_counter()
            function(round_)
            times[name].append(1e3 * (time.perf_counter() - before))
        round_ += 1
    return times


def copy_speed() -> float:
    """Return the bytes a millisecond that a copy of 256 MiB reads and writes."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    times = measure({"copy": lambda _: target.copy_(source)}, 0.5)["copy"]
    return 2 * source.numel() * 4 / statistics.median(times)


class Report:
    """Rows of times with their errors; a row whose error is too large prints no time."""

    def __init__(self, title: str) -> None:
        self.title, self.rows = title, []
        print(f"{title}\n{'case':<34}{'method':<18}{'median ms':>10}{'IQR':>8}{'error':>10}{'speed-up':>10}")

    def add(
        self, case: str, times: dict[str, list[float]], errors: dict[str, float], limit: float, floor: float | None
    ) -> None:
        base = statistics.median(next(iter(times.values())))
        for name, values in times.items():
            low, median, high = statistics.quantiles(values, n=4)
            error, good = errors[name], errors[name] <= limit
            self.rows.append(
                {"case": case, "method": name, "error": error, "rounds": len(values)}
                | ({"median_ms": median, "iqr_ms": high - low, "speed_up": base / median} if good else {})
            )
            shown = f"{median:>10.3f}{high - low:>8.3f}{error:>10.1e}{base / median:>9.2f}×" if good else "wrong"
            print(f"{case:<34}{name:<18}{shown}", flush=True)
        if floor is not None:
            self.rows.append({"case": case, "method": "floor", "median_ms": floor})
            print(f"{case:<34}{'floor':<18}{floor:>10.3f}", flush=True)

    def write(self, path: Path) -> None:
        machine = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processor": _processor(),
            "kernels": library.instruction_set() if library.loaded else library.why_not,
            "command": sys.argv,
        }
        path.write_text(json.dumps({"title": self.title, "machine": machine, "rows": self.rows}, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def relative_error(found, exact) -> float:
    """Return the worst ‖found − exact‖/‖exact‖ of two lists of tensors."""
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(found, exact, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)
