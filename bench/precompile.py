"""torch.compile's work for many cases, in many processes, before anything is timed.

A process compiles every n-th case and runs it once, so that the code is in Inductor's cache. The configurations that
Inductor chose by timing are thrown away: they are chosen again where the cases are measured, on a GPU that is quiet.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.machine import arithmetic
from bench.timing import release


def start(options: argparse.Namespace) -> None:
    """On a GPU, run this command in ``--jobs`` processes that only compile, for less than half of its minutes.

    What is not compiled by then, or could not be, is left to the measurement.
    """
    jobs, seconds = options.jobs, 60 * min(4.0, 0.4 * options.minutes)
    if not options.gpu or jobs < 2:
        return
    folder = Path(tempfile.gettempdir()) / f"hida-bench-{os.getuid()}"
    cache = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun = time.perf_counter()
    workers = [
        subprocess.Popen([sys.executable, *sys.argv, "--ahead", str(k), str(jobs)], env=environment, **quiet)
        for k in range(jobs)
    ]
    for worker in workers:
        try:
            worker.wait(max(1.0, seconds - (time.perf_counter() - begun)))
        except subprocess.TimeoutExpired:
            worker.terminate()
            worker.wait()
    for choice in Path(cache).rglob("*.best_config"):
        choice.unlink()
    tqdm.write(f"compiled ahead in {jobs} processes: {time.perf_counter() - begun:.0f} s")


def compile_share(cases: Sequence[Any], compile_one: Callable[[Any], object], first: int, step: int) -> None:
    """Compile every ``step``-th case from the ``first`` on; one that fails will say so where it is measured."""
    for case in cases[first::step]:
        try:
            with arithmetic(case.dtype):
                compile_one(case)
        except Exception as error:
            print(f"{case}: {error}", file=sys.stderr)
        release()
