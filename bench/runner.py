"""What the benchmarks of the ops have in common, from the command line to the table of the goals.

Times on a GPU are those inside a CUDA graph, between CUDA events ("launched": the same calls launched from Python).
Operands rotate among as many sets as fill the second-level cache three times, results are kept as long, so that every
call finds cold what it reads and writes. The error is the worst ‖Δ‖/‖exact‖ of result and gradients, in float64.

A CPU is measured in two states of its allocator, each case in processes of its own, the methods in turn:
    fresh   glibc's defaults, in three processes just begun, the first rounds of each: a freed block may go back to the
            system, so that the next one costs page faults; which does, glibc decides by what was freed before and how
            the heap lies, so that processes differ, and the interquartile range is of all three
    kept    freed memory is kept by mallopt, as hida train does: what a long-lived process may have
Both are true of real programs; neither may be quoted without the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import timing
import torch
from ahead import compile_ahead, start_ahead
from cases import Bench, Case, Run, all_runs, buffers_of, chosen, parser
from machine import arithmetic, ceilings, clocks, describe
from report import Report, rows_of
from targets import table
from timing import Buffers, exact, on_gpu, on_processor, relative_error, release
from torch import Tensor
from tqdm import tqdm

from hida.device import tune

FRESH_PROCESSES, FRESH_ROUNDS = 3, 20


def run(bench: Bench, doc: str) -> None:
    """Run a benchmark's command."""
    options = parser(doc, bench).parse_args()
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    options.seconds = options.seconds or (0.15 if gpu else 1.0)
    if options.case:
        on_cpu(bench, Case(**json.loads(options.case)), options)
        return
    start, cases = time.perf_counter(), chosen(bench, options)
    if gpu:
        torch.backends.cudnn.benchmark = True  # everybody gets the best convolutions
    if options.ahead:
        known = rows_of(options.json)
        cases = [case for case in cases if not is_done(known, case, "gpu")]
        compile_ahead(bench, cases[options.ahead[0] :: options.ahead[1]], device, options.without)
        return
    machine, limits = describe(device), ceilings(device, list(dict.fromkeys(case.dtype for case in cases)))
    rates = ", ".join(f"{k} {v / 1e9:.2f} TFLOP/s" for k, v in limits.items() if k != "copy")
    title = f"{bench.name}: {machine['device']}, torch {torch.__version__}, copy {limits['copy'] / 1e6:.1f} GB/s"
    report = Report(f"{title}, products {rates}", machine, limits, options.json)
    states = ["gpu"] if gpu else options.memory
    keys = [(case, state) for case in cases for state in states]
    todo = [(case, state) for case, state in keys if not is_done(report.rows, case, state)]
    if gpu and options.jobs > 1:
        start_ahead(sys.argv, options.jobs, 60 * min(4.0, 0.4 * options.minutes))
    if not gpu:
        tqdm.write(
            "fresh: glibc's defaults in processes just begun; kept: freed memory kept by mallopt (--help tells more)"
        )
    measured = 0
    for case, state in tqdm(todo, unit="case", disable=None):
        if time.perf_counter() - start > 60 * options.minutes:
            break
        if gpu:
            on_device(bench, case, device, limits, report, options)
        else:
            in_processes(bench, case, state, limits, report, options)
        measured += 1
        report.write(clocks() if gpu else None)
    print("\n".join(table(report.rows)))
    if measured < len(todo):
        print(f"{len(todo) - measured} of {len(keys)} cases are not measured yet: the same command goes on with them")


def on_device(bench: Bench, case: Case, device, limits, report: Report, options: argparse.Namespace) -> None:
    """Measure a case on the GPU, a method after the other."""
    key, name = asdict(case) | {"memory": "gpu"}, str(case)
    with arithmetic(case.dtype):
        buffers = buffers_of(bench, case, device)
        known: dict[int, list[Tensor]] = {}
        for method, one in all_runs(bench, case, buffers, options.without).items():
            try:
                if id(one.buffers) not in known:
                    known = {id(one.buffers): exact(one.reference, one.buffers[0], one.batched, bench.exact_elements)}
                error = relative_error(once(one.function, one.buffers[0]), known[id(one.buffers)])
                launched, captured = on_gpu(one.function, one.buffers, options.seconds)
                more = bench.extra(case, one.buffers[0]) if method == "native" else {}
                if isinstance(captured, str):
                    report.add(key, name, method, launched, error, note=f"no graph: {captured}", **more)
                else:
                    report.add(key, name, method, captured, error, launched, **more)
            except Exception as error:  # out of memory, or a rival that does not take the case
                report.failed(key, name, method, reason(error))
                if "CUDA error" in str(error) and "out of memory" not in str(error):
                    # Nothing works on this device any more.
                    report.write()
                    raise SystemExit(f"{name}, {method}: {reason(error)}; the next run goes on behind it") from None
            release()
        report.floor(key, name, bench.floors(case, limits))


def on_cpu(bench: Bench, case: Case, options: argparse.Namespace) -> None:
    """Measure a case here and now, in the state of memory that is asked for; write its methods' results as JSON."""
    kept = options.memory[0] == "kept"
    if kept:
        tune(torch.device("cpu"))
    buffers = buffers_of(bench, case, torch.device("cpu"), 4)
    runs: dict[str, Run] = all_runs(bench, case, buffers, [*options.without, "max-autotune"])
    found: dict[str, dict] = {}
    for name in list(runs):
        try:
            timing.forward(runs[name].function, runs[name].buffers[:1])
        except Exception as error:  # a rival that does not take the case
            found[name] = {"failed": reason(error)}
            del runs[name]
    # Errors come last: their float64 tensors leave memory behind.
    most = 10**6 if kept else FRESH_ROUNDS
    times = on_processor({name: (one.function, one.buffers) for name, one in runs.items()}, options.seconds, most)
    for name, one in runs.items():
        right = exact(one.reference, one.buffers[0], one.batched, bench.exact_elements)
        found[name] = {"times": times[name], "error": relative_error(once(one.function, one.buffers[0]), right)}
    options.json.write_text(json.dumps(found))


def in_processes(bench: Bench, case: Case, state: str, limits, report: Report, options: argparse.Namespace) -> None:
    """Have a case measured by processes of its own; their rounds are put together."""
    path = Path(f"{options.json or 'bench'}.{os.getpid()}.case")
    command = [sys.executable, sys.argv[0], "--device", "cpu", "--case", json.dumps(asdict(case)), "--json", str(path)]
    command += ["--memory", state, "--seconds", str(options.seconds)]
    command += ["--without", *options.without] if options.without else []
    key, name = asdict(case) | {"memory": state}, f"{case} {state}"
    found: dict[str, dict] = {}
    try:
        for _ in range(FRESH_PROCESSES if state == "fresh" else 1):
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                report.failed(key, name, "all", (done.stderr.strip().splitlines() or ["it failed"])[-1])
                return
            for method, result in json.loads(path.read_text()).items():
                before = found.setdefault(method, result)
                if before is not result and "times" in result:
                    before["error"] = max(before["error"], result["error"])
                    for direction, times in result["times"].items():
                        before["times"][direction] += times
    finally:
        path.unlink(missing_ok=True)
    for method, result in found.items():
        if "failed" in result:
            report.failed(key, name, method, result["failed"])
        else:
            report.add(key, name, method, result["times"], result["error"])
    report.floor(key, name, bench.floors(case, limits))


def is_done(rows: list[dict], case: Case, state: str) -> bool:
    return any(row["case"] == asdict(case) | {"memory": state} for row in rows)


def once(function: Callable[..., Tensor], given: Buffers) -> list[Tensor]:
    """Return result and gradients."""
    y = function(*given.inputs)
    return [y.detach(), *torch.autograd.grad(y, given.inputs, given.upstream)]


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
