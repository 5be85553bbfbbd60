"""A benchmark of ops, from its options to the verdicts on its goals.

Times on a GPU are those inside a CUDA graph, between CUDA events ("launched": the same calls launched from Python).
Operands rotate among as many sets as fill the second-level cache three times, results are kept as long, so that every
call finds cold what it reads and writes. The error is the worst ‖Δ‖/‖exact‖ of result and gradients, in float64.

A CPU is measured in two states of its allocator, each case in processes of its own, the methods in turn:
    fresh   glibc's defaults, in three processes just begun, the first rounds of each: a freed block may go back to the
            system, so that the next one costs page faults; which does, glibc decides by what was freed before and how
            the heap is arranged, so that processes differ, and the interquartile range is of all three
    kept    freed memory is kept by mallopt, as hida train does: what a long-lived process may have
Both are true of real programs; neither may be quoted without the other.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bench import report as tables
from bench import runner
from bench.goals import name_of
from bench.machine import DTYPES, LAYOUTS, arithmetic, ceilings
from bench.timing import DIRECTIONS, Buffers, Run, Times, exact, on_cpu, on_gpu, relative_error, release, summary
from bench.workers import Worker, reason
from hida.device import tune
from hida.ops import available

COMPILED = {"compile": None, "max-autotune": "max-autotune-no-cudagraphs"}  # its own graphs would copy the operands
LIMITS = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 2e-2, "float16": 4e-3}
"""‖Δ‖/‖exact‖ that the native ops may have, in the worst of result and gradients; beyond it no time is reported"""
LENIENCE = 20
"""others may be so much worse: it only makes them faster, and is shown beside their time"""
FRESH_PROCESSES, FRESH_ROUNDS = 3, 20


@dataclass(frozen=True)
class Case:
    """An op on maps of ``side``² pixels."""

    op: str
    channels: int
    out: int
    side: int
    batch: int
    dtype: str
    layout: str

    def key(self, memory: str) -> dict:
        """Return what identifies the case in the results; ``memory`` is "gpu" or the state of a CPU's allocator."""
        return asdict(self) | {"memory": memory}

    def laid_out(self, t: Tensor) -> Tensor:
        return t.contiguous(memory_format=LAYOUTS[self.layout]) if t.dim() == 4 else t


class Benchmark:
    """What a benchmark says of its ops. It also has, for a case:

    - ``inputs``: random operands in float32; ``batched``: the positions of those that have a part for each image
    - ``functions``: the reference and the native op; ``others``: further methods
    - ``floors``: by direction the "ms" that nothing can be faster than, and the "bytes" that must be moved
    - ``extra``: what is measured of the native op on a GPU beside its time
    """

    name: str
    kinds: tuple[str, ...]
    planes: tuple[tuple[int, int, int], ...]
    """channels, output channels, side; the worthiest first"""
    dtypes: tuple[str, ...]
    exact_elements: int
    """of the first operand, that float64 takes at a time"""

    def others(self, case: Case, reference: Run) -> dict[str, Run]:
        return {}

    def extra(self, native: Run) -> dict[str, float | bool]:
        return {}

    def chosen(self, options: argparse.Namespace) -> list[Case]:
        """Return the cases in the order of their worth, so that a run cut short has the worthiest."""
        dtypes, layouts, batches = options.dtype, options.layout, options.batch
        planes = [p for p in self.planes if (p[2] in options.side if options.side else options.gpu or p[2] <= 128)]
        if options.quick:
            layouts, batches, planes, dtypes = layouts[:1], batches[:1], planes[:2], dtypes[:2]
        return [
            Case(op, *plane, batch, dtype, layout)
            for layout in layouts
            for batch in batches
            for dtype in dtypes
            for op in options.op
            for plane in planes
        ]

    def buffers(self, case: Case, device: torch.device, count: int | None = None) -> list[Buffers]:
        """Return sets of operands; as many as make three times the second-level cache if no count is given."""
        torch.manual_seed(0)
        made: list[Buffers] = []
        while not made or len(made) < count:
            inputs = [case.laid_out(t.to(DTYPES[case.dtype])) for t in self.inputs(case, device)]
            upstream = torch.randn(case.batch, case.out, case.side, case.side, device=device, dtype=inputs[0].dtype)
            made.append(Buffers([t.requires_grad_() for t in inputs], case.laid_out(upstream)))
            if count is None:
                cache = torch.cuda.get_device_properties(device).L2_cache_size
                count = min(64, max(2, math.ceil(3 * cache / made[0].bytes())))
        return made

    def runs(self, case: Case, buffers: list[Buffers], without: list[str]) -> dict[str, Run]:
        """Return every method at a case: the reference, what torch.compile makes of it, the native op, others."""
        torch._dynamo.reset()
        function, native = self.functions(case)
        runs = {"reference": (reference := Run(function, buffers, function, self.batched(case)))}
        for name, mode in COMPILED.items():
            if name not in without:
                compiled = torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
                runs[name] = reference._replace(function=compiled)
        if available()[buffers[0].upstream.device.type]:
            runs["native"] = reference._replace(function=native)
        runs |= self.others(case, reference)
        return {name: run for name, run in runs.items() if name not in without}


def options_of(bench: Benchmark, doc: str) -> argparse.Namespace:
    """Parse a benchmark's command line."""
    made, gpu = runner.parser(f"{doc}\n{__doc__}")
    made.add_argument("--op", nargs="+", choices=bench.kinds, default=list(bench.kinds))
    made.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(bench.dtypes) if gpu else ["float32"])
    made.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=["nchw", "nhwc"] if gpu else ["nchw"])
    made.add_argument("--batch", nargs="+", type=int, default=[16, 4, 64] if gpu else [1])
    made.add_argument("--side", type=int, nargs="+", help="only maps of these sides")
    made.add_argument("--without", nargs="+", default=[], help="methods to leave out, as compile max-autotune")
    made.add_argument("--quick", action="store_true", help="a few cases, for a first look")
    made.add_argument("--seconds", type=float, default=0.15 if gpu else 1.0, help="for each method at a case")
    made.add_argument("--memory", nargs="+", choices=["fresh", "kept"], default=["fresh", "kept"], help="(CPU)")
    ahead = "measure nothing, but compile every N-th case from the K-th on: in N processes, before a measurement"
    made.add_argument("--ahead", type=int, nargs=2, metavar=("K", "N"), help=ahead)
    return made.parse_args()


def main(bench: Benchmark, doc: str) -> None:
    """Run a benchmark's command."""
    options = options_of(bench, doc)
    if options.gpu:
        torch.backends.cudnn.benchmark = True  # everybody gets the best convolutions
    cases, states = bench.chosen(options), ["gpu"] if options.gpu else options.memory
    if options.ahead:
        first, step = options.ahead
        compile_ahead(bench, cases[first::step], options)
        return
    limits = ceilings(options.device, list(dict.fromkeys(case.dtype for case in cases)))
    report = runner.Report(options, bench.name, {}, limits)
    if not options.gpu:
        print("fresh: glibc's defaults in new processes; kept: mallopt keeps freed memory (--help tells more)")
    todo = [(case, state) for case in cases for state in states if not is_done(case, state, report.rows)]

    def measure(one: tuple[Case, str]) -> None:
        case, state = one
        if options.gpu:
            on_device(bench, case, report, options)
        else:
            in_processes(bench, case, state, report, options)
        for direction, floor in bench.floors(case, limits).items():
            row = {"case": case.key(state), "direction": direction, "method": "floor", "median_ms": floor["ms"]}
            report.add(row | {"bytes": floor["bytes"]})

    runner.go_through(todo, measure, report, options)
    print("\n".join(["", "goals (docs/kernels.md)", "", *tables.goals(report.rows)]))


def is_done(case: Case, state: str, rows: list[dict]) -> bool:
    return any(row["case"] == case.key(state) for row in rows)


def compile_ahead(bench: Benchmark, cases: list[Case], options: argparse.Namespace) -> None:
    """Run torch.compile's default mode once, so that its code is in Inductor's cache; measuring will tell failures."""
    for case in cases:
        try:
            with arithmetic(case.dtype):
                run = bench.runs(case, bench.buffers(case, options.device, 1), options.without)["compile"]
                run.gradients(run.train())
                run.infer()
        except Exception as error:
            print(f"{case}: {error}", file=sys.stderr)
        release()


def on_device(bench: Benchmark, case: Case, report: runner.Report, options: argparse.Namespace) -> None:
    """Measure a case on the GPU, a method after the other."""
    key = case.key("gpu")
    with arithmetic(case.dtype):
        known: dict[int, list[Tensor]] = {}
        for method, run in bench.runs(case, bench.buffers(case, options.device), options.without).items():
            try:
                if id(run.buffers) not in known:
                    known = {id(run.buffers): exact(run, bench.exact_elements)}
                error = relative_error(run.once(), known[id(run.buffers)])
                launched, captured = on_gpu(run, options.seconds)
                more = bench.extra(run) if method == "native" else {}
                if isinstance(captured, str):
                    add(report, key, method, launched, error, note=f"no graph: {captured}", **more)
                else:
                    add(report, key, method, captured, error, launched, **more)
            except Exception as error:  # out of memory, or a rival that does not take the case
                report.add({"case": key, "method": method, "failed": reason(error)})
                if "CUDA error" in str(error) and "out of memory" not in str(error):
                    # Nothing works on this device any more.
                    report.write()
                    message = f"{name_of(key)}, {method}: {reason(error)}; the next run goes on behind it"
                    raise SystemExit(message) from None
            release()


def in_processes(bench: Benchmark, case: Case, state: str, report: runner.Report, options: argparse.Namespace) -> None:
    """Have a case measured by processes of its own; their rounds are put together."""
    key, found = case.key(state), {}
    for _ in range(FRESH_PROCESSES if state == "fresh" else 1):
        worker = Worker()
        try:
            for method, result in worker.call(measure_here, bench, case, options, state == "kept").items():
                before = found.setdefault(method, result)
                if before is not result and "times" in result:
                    before["error"] = max(before["error"], result["error"])
                    for direction, times in result["times"].items():
                        before["times"][direction] += times
        except RuntimeError as error:
            report.add({"case": key, "method": "all", "failed": str(error)})
            return
        finally:
            worker.end()
    for method, result in found.items():
        if "failed" in result:
            report.add({"case": key, "method": method, **result})
        else:
            add(report, key, method, result["times"], result["error"])


def measure_here(bench: Benchmark, case: Case, options: argparse.Namespace, kept: bool) -> dict[str, dict]:
    """Measure a case in this process on the CPU; return each method's times and error, or why it failed."""
    if kept:
        tune("cpu")
    runs = bench.runs(case, bench.buffers(case, options.device, 4), [*options.without, "max-autotune"])
    found: dict[str, dict] = {}
    for name, run in list(runs.items()):
        try:
            run._replace(buffers=run.buffers[:1]).infer()
        except Exception as error:  # a rival that does not take the case
            found[name] = {"failed": reason(error)}
            del runs[name]
    # Errors come last: their float64 tensors leave memory behind.
    times = on_cpu(runs, options.seconds, 10**6 if kept else FRESH_ROUNDS)
    for name, run in runs.items():
        error = relative_error(run.once(), exact(run, bench.exact_elements))
        found[name] = {"times": times[name], "error": error}
    return found


def add(
    report: runner.Report,
    case: dict,
    method: str,
    times: Times,
    error: float,
    launched: Times | None = None,
    **more: float | str,
) -> None:
    """Add a method's rows, one for each direction, without a time where it is wrong; ``launched`` without a graph."""
    right = error <= LIMITS[case["dtype"]] * (1 if method.startswith("native") else LENIENCE)
    for direction in DIRECTIONS:
        row = {"case": case, "direction": direction, "method": method, "error": error, **more}
        if right:
            row["median_ms"], row["iqr_ms"] = summary(times[direction])
            row["rounds"] = len(times[direction])
            row |= {"launched_ms": summary(launched[direction])[0]} if launched else {}
        report.add(row)
