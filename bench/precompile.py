"""torch.compile's work for many cases, in many processes, before anything is timed.

A process compiles every n-th case and runs it once, so that the code lies in Inductor's cache. The configurations that
Inductor chose by timing are thrown away: they are chosen again where the cases are measured, on a GPU that is quiet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from cases import COMPILED, Bench, Case, all_runs, buffers_of
from machine import arithmetic
from timing import backward, forward, release
from tqdm import tqdm


def start_ahead(arguments: list[str], jobs: int, seconds: float) -> None:
    """Run the same command in ``jobs`` processes that only compile; wait ``seconds`` for them at most.

    What is not compiled by then, or could not be, is left to the measurement.
    """
    folder = Path(tempfile.gettempdir()) / f"hida-bench-{os.getuid()}"
    cache = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = time.perf_counter()
    workers = [
        subprocess.Popen([sys.executable, *arguments, "--ahead", str(k), str(jobs)], env=environment, **quiet)
        for k in range(jobs)
    ]
    for worker in workers:
        try:
            worker.wait(max(1.0, seconds - (time.perf_counter() - start)))
        except subprocess.TimeoutExpired:
            worker.terminate()
            worker.wait()
    for choice in Path(cache).rglob("*.best_config"):
        choice.unlink()
    tqdm.write(f"compiled ahead in {jobs} processes: {time.perf_counter() - start:.0f} s")


def compile_ahead(bench: Bench, cases: list[Case], device: torch.device, without: Sequence[str]) -> None:
    """Compile the cases and run each once; one that fails will say so where it is measured."""
    for case in cases:
        with arithmetic(case.dtype):
            compile_case(bench, case, device, without)
        release()


def compile_case(bench: Bench, case: Case, device: torch.device, without: Sequence[str]) -> None:
    try:
        given = buffers_of(bench, case, device, 1)
        for name, run in all_runs(bench, case, given, without).items():
            if name in COMPILED:
                forward(run.function, given)
                backward([run.function(*given[0].inputs)], given)
    except Exception as error:
        print(f"{case}: {error}", file=sys.stderr)
