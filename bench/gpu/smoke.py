"""A smoke test of the native ops: whether every one is right at all, within seconds, before anything is timed.

python bench/gpu/smoke.py [--device cuda] [--json FILE] [--seconds 60] [--op OP …] [--layout nchw nhwc] [--few]

Each op, forward and backward, at small shapes that take every path, NCHW and NHWC, float32 and bfloat16, against plain
PyTorch in float64; the same bits in two runs; on a GPU also captured into a CUDA graph and replayed with new data.
Memory is poisoned: what nobody wrote is NaN, which fails. Small cases come first, so that every op has its turn early.

Exit status: 0, nothing failed; 1, something failed; 2, nothing could run (no GPU, no library: it says why). After an
error that ends the use of the GPU in this process, and after a kernel that does not return, it stops with status 1;
``--op`` then tries the other ops. When --seconds have passed no case is begun any more: "left" counts those that had no
turn. The JSON file is whole at any time; "running" is the case at which the process ended, if it did.

HIDA_SMOKE_BREAK=OP or OP:LAYOUT spoils that op's results before they are compared: to test what reacts to a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.gpu.calls import CONVOLUTIONS, LAYOUTS, OPS, PLANES, Call, adaptations, convolutions, laid_out
from hida import ops
from hida.cli.output import make_printable
from hida.ops import library

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CAPTURED = (PLANES[2], PLANES[6], PLANES[8], (3, 24, 8, 8), (2, 64, 64, 64))  # shapes of x
FEW = 40_000  # numbers in all operands of a case
POOL = 1 << 24
HANG = 15.0  # seconds that no case takes on a GPU

# Largest ‖Δ‖/‖exact‖. float32 adaptation: the chip's exp2 and 1/x are good to 2 units of 1.2e-7, and a handful of such
# steps makes about 5e-7; sums over planes cancel, and cost the CPU's kernels up to 2e-5. deform_conv2d adds up to 9,216
# products one after the other. bfloat16: rounding a number costs 3.9e-3 of it at most, 1.7e-3 on average; all else is
# float32, but that deform_conv2d rounds its columns as well.
LIMITS = {
    "float32": {"forward": 5e-6, "gradient": 1e-5, "sum": 5e-5, "convolution": 1e-5},
    "bfloat16": {"forward": 4e-3, "gradient": 4e-3, "sum": 5e-3, "convolution": 4e-3},
}
# A single wrong number is lost in the norm of a million: so many limits of |exact| + its root mean square
# are the most that |Δ| may be.
ELEMENT = 8
# Exact zeros, such as the gradients behind the norm of one pixel, are compared with this root mean square; all else is
# of order one or larger.
LEAST = 1e-3


def calls() -> list[Call]:
    """Return every call, the smallest first."""
    return sorted((*adaptations(PLANES), *convolutions(CONVOLUTIONS)), key=lambda call: call.size)


class Numbers:
    """Standard normal numbers, drawn once on the CPU and handed out piece by piece."""

    def __init__(self, device: str, seed: int, count: int) -> None:
        self.pool = torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(device)
        self.at = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape)
        self.at = 0 if self.at + count > len(self.pool) else self.at
        self.at += count
        return self.pool[self.at - count : self.at].view(shape)

    def operands(self, call: Call, dtype: torch.dtype) -> list[Tensor]:
        """Return the operands, and last the gradient for the result."""
        made = [self.take(shape) for shape in (*call.shapes, call.out)]
        if call.op == "deform_conv2d":
            # Offsets that float32 adds to a coordinate exactly: both sides then agree on which pixels a point lies
            # between. At a rounded coordinate they may not, and the gradient jumps there.
            made[1] = (made[1] * 96).floor() / 64 + 1 / 128
        return [t.to(dtype) for t in made]


class Report:
    """What was found so far, in memory and in the file."""

    def __init__(self, path: Path | None, device: str) -> None:
        self.path, self.device = path, device
        self.cases: list[dict[str, Any]] = []
        self.running: dict[str, Any] | None = None
        self.left, self.stopped = 0, ""

    def start(self, call: Call, layout: str, dtype: str, what: str) -> None:
        """Name the case that begins, in the file; on a GPU the process ends where it does not come back."""
        self.running = {"op": call.op, "kind": call.kind, "layout": layout, "dtype": dtype}
        self.running |= {"shape": list(call.shapes[0]), "what": what}
        self.stopped, self.left = "this case did not come back", self.left - 1
        self.write()
        if self.device != "cpu":
            faulthandler.dump_traceback_later(HANG, exit=True)

    def add(self, ok: bool, what: str = "", error: float = math.nan, limit: float | None = None, message="") -> None:
        row = {**self.running, "error": error if math.isfinite(error) else None, "limit": limit, "ok": ok}
        row["what"] = what or row["what"]
        self.cases.append(row)
        if not ok:
            row["message"] = message
            told = (*(row[k] for k in ("op", "kind")), tuple(row["shape"]), row["layout"], row["dtype"], row["what"])
            print("FAILED", *told, f": {message}", flush=True)

    def end(self, stopped: str = "") -> int:
        """Write and print all; return the exit status."""
        faulthandler.cancel_dump_traceback_later()
        self.stopped, self.running = stopped, self.running if stopped else None
        self.write()
        for op in OPS:
            rows = [row for row in self.cases if row["op"] == op and row["error"] is not None and row["limit"]]
            for row in sorted(rows, key=lambda row: row["error"] / row["limit"])[-1:]:
                told = f"{row['what']} {tuple(row['shape'])} {row['layout']} {row['dtype']}"
                print(f"{op:<24}{len(rows):>6} compared, the worst {row['error']:.1e} of {row['limit']:.0e}: {told}")
        told = f"{len(self.cases) - self.failed} passed, {self.failed} failed, {self.left} cases left"
        print(f"{self.device}: {told}{f'; stopped: {stopped}' if stopped else ''}", flush=True)
        return int(self.failed > 0 or bool(stopped))

    @property
    def failed(self) -> int:
        return sum(not row["ok"] for row in self.cases)

    def write(self) -> None:
        if self.path is None:
            return
        value = {"device": self.device, "torch": torch.__version__, "passed": len(self.cases) - self.failed}
        value |= {"failed": self.failed, "left": self.left, "stopped": self.stopped, "running": self.running}
        # After every case: syncing the file each time, as hida.files does, would take seconds.
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps({**value, "cases": self.cases}) + "\n", encoding="utf-8")
        part.replace(self.path)


def outcome(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Return the result and the gradients of all operands; the last tensor is the upstream gradient."""
    leaves = [t.detach().requires_grad_() for t in tensors[:-1]]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, tensors[-1])]


def poisoned(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Return the :func:`outcome` in memory that was full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return outcome(function, tensors)
    finally:
        torch.use_deterministic_algorithms(False)


def errors(found: list[Tensor], exact: list[Tensor]) -> list[list[float]]:
    """Return ‖Δ‖/‖exact‖ and the largest |Δ|/(|exact| + rms) of each tensor."""
    rows = []
    for a, b in zip(found, exact, strict=True):
        rms = b.square().mean().sqrt().clamp_min(LEAST)
        gap = (a.double() - b).abs()
        rows.append(torch.stack((gap.square().mean().sqrt() / rms, (gap / (b.abs() + rms)).max())))
    return torch.stack(rows).tolist()


def limit_of(call: Call, which: int, dtype: str) -> float:
    """Return the limit of the result (0) or of an operand's gradient."""
    if call.op == "deform_conv2d":
        return LIMITS[dtype]["convolution"] * (2 if which else 1)
    if which == 0:
        return LIMITS[dtype]["forward"]
    whole = math.prod(call.shapes[which - 1]) >= math.prod(call.shapes[0]) and call.shapes[which - 1][2:] != (1, 1)
    return LIMITS[dtype]["gradient" if whole else "sum"]


def compare(report: Report, call: Call, dtype: str, given: list[Tensor], exact: list[Tensor]) -> None:
    """Run a call twice; report each result and gradient, and whether the bits are the same."""
    with ops.backend("native"):
        found, again = poisoned(call.function, given), poisoned(call.function, given)
        same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, again, strict=True))
    broken = os.environ.get("HIDA_SMOKE_BREAK")
    if broken and broken in (call.op, f"{call.op}:{report.running['layout']}"):
        found[0] = found[0] * 1.05
    shapes = [(t.shape, t.dtype) for t in found]
    wanted = [(call.out, DTYPES[dtype]), *((s, DTYPES[dtype]) for s in call.shapes)]
    if shapes != wanted:
        return report.add(False, "shapes and dtypes", message=f"{shapes}, not {wanted}")
    measured = errors(found, exact)
    for i, (error, element) in enumerate(measured):
        limit = limit_of(call, i, dtype)
        ok = error <= limit and element <= ELEMENT * limit
        message = f"error {error:.2e}, of one number {element:.2e}; limits {limit:.0e}, {ELEMENT * limit:.0e}"
        report.add(ok, f"d{call.names[i - 1]}" if i else "y", error, limit, message)
    report.add(same, "same bits", message="two runs differ")


def replay(call: Call, given: list[Tensor], fresh: list[Tensor]) -> bool:
    """Capture a call into a graph; say whether a replay with new data has the bits of a plain call."""
    static = [t.clone() for t in given]
    with ops.backend("native"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            outcome(call.function, static)  # loads the kernels
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = outcome(call.function, static)
        for old, new in zip(static, fresh, strict=True):
            old.copy_(new)
        graph.replay()
        return all(map(torch.equal, captured, outcome(call.function, static)))


def is_dead(device: str) -> bool:
    """Say whether the GPU is of no more use to this process."""
    try:
        torch.ones(1, device=device).add(1).item()
    except (RuntimeError, AssertionError):  # the latter from a torch that was built without CUDA
        return True
    return False


def run(options: argparse.Namespace, report: Report) -> int:
    start, device = time.monotonic(), options.device
    numbers = Numbers(device, 1, FEW * 4 if options.few else POOL)
    chosen = [c for c in calls() if c.op in options.op and (not options.few or c.size <= FEW)]
    captured = [c for c in chosen if device.startswith("cuda") and c.shapes[0] in CAPTURED]
    todo = [("call", c, dtype) for c in chosen for dtype in DTYPES]
    todo += [("graph", c, dtype) for c in captured for dtype in DTYPES]
    report.left = len(todo) * len(options.layout)
    for what, call, dtype in todo:
        if time.monotonic() - start > options.seconds:
            return report.end()
        exact: list[Tensor] | None = None
        for layout in options.layout:
            report.start(call, layout, dtype, what)
            try:
                if layout == options.layout[0]:
                    plain, fresh = (numbers.operands(call, DTYPES[dtype]) for _ in range(2))
                given = [laid_out(t, layout) for t in plain]
                if what == "graph":
                    same = replay(call, given, [laid_out(t, layout) for t in fresh])
                    report.add(same, message="a replay differs from a plain call")
                    continue
                if exact is None:
                    with ops.backend("reference"):
                        exact = outcome(call.function, [t.double() for t in plain])
                compare(report, call, dtype, given, exact)
            except Exception as error:
                report.add(False, message=" ".join(f"{type(error).__name__}: {error}".split())[:400])
                if what == "graph":  # a failed capture is not survivable everywhere
                    return report.end("a capture failed")
                if is_dead(device):
                    return report.end("after this error nothing works on the GPU in this process any more")
    return report.end()


def why_not(device: str) -> str:
    """Say why nothing can run, or nothing."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device" if torch.version.cuda else "this is a CPU build of torch"
    reason = {"cpu": library.why_not, "cuda": library.why_not_cuda}.get(kind, f"there are no native ops on {kind}")
    return f"the native library is not loaded: {reason}" if reason else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="write the results here, whole at any time")
    parser.add_argument("--seconds", type=float, default=60, help="begin no case after so many")
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, help="these ops only")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="these layouts only")
    parser.add_argument("--few", action="store_true", help="small shapes only")
    options = parser.parse_args()
    os.environ.pop("HIDA_TF32", None)  # float32 is compared as such
    reason = why_not(options.device)
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") and not reason else ""
    report = Report(options.json, name or options.device)
    if reason:
        print(f"could not run: {reason}", file=sys.stderr)
        report.stopped = reason
        report.write()
        return 2
    return run(options, report)


if __name__ == "__main__":
    make_printable()
    sys.exit(main())
