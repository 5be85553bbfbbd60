"""The cases of a benchmark of ops: options, order, operands, and what a benchmark must say of its ops."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from machine import DTYPES
from timing import Buffers
from torch import Tensor

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
COMPILED = {"compile": None, "max-autotune": "max-autotune-no-cudagraphs"}  # its own graphs would copy the operands


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

    def __str__(self) -> str:
        channels = f"{self.channels}→{self.out}" if self.op == "deform_conv2d" else f"{self.channels}"
        return f"{self.op} {channels}@{self.side}² B{self.batch} {self.dtype} {self.layout}"


class Run(NamedTuple):
    """A method at a case: what to call, and with what; what it must give, in float64 (see timing.exact)."""

    function: Callable[..., Tensor]
    buffers: list[Buffers]
    reference: Callable[..., Tensor]
    batched: set[int]


class Bench(Protocol):
    """What a benchmark says of its ops."""

    name: str
    kinds: tuple[str, ...]
    """of ops"""
    planes: tuple[tuple[int, int, int], ...]
    """channels, output channels, side; the worthiest first"""
    dtypes: tuple[str, ...]
    exact_elements: int
    """of the first operand, that float64 takes at a time"""

    def inputs(self, case: Case, device: torch.device) -> list[Tensor]: ...
    def batched(self, case: Case) -> set[int]: ...
    def reference(self, case: Case) -> Callable[..., Tensor]: ...
    def others(self, case: Case, buffers: list[Buffers]) -> dict[str, Run]: ...
    def floors(self, case: Case, ceilings: dict[str, float]) -> dict[str, dict[str, float]]: ...
    def extra(self, case: Case, given: Buffers) -> dict[str, float | bool]: ...


def parser(doc: str, bench: Bench) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--op", nargs="+", choices=bench.kinds, default=list(bench.kinds))
    made.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="all on a GPU, float32 on a CPU")
    made.add_argument("--layout", nargs="+", choices=list(LAYOUTS), help="both on a GPU, nchw on a CPU")
    made.add_argument("--batch", type=int, nargs="+", help="16 4 64 on a GPU, 1 on a CPU")
    made.add_argument("--side", type=int, nargs="+", help="only maps of these sides")
    made.add_argument("--without", nargs="+", default=[], help="methods to leave out, as compile max-autotune")
    made.add_argument("--quick", action="store_true", help="a few cases, for a first look")
    made.add_argument("--seconds", type=float, help="for each method at a case; by default 0.15 on a GPU, 1 on a CPU")
    made.add_argument("--minutes", type=float, default=math.inf, help="begin no case after them")
    made.add_argument("--jobs", type=int, default=min(12, (os.cpu_count() or 2) - 2), help="compile ahead (GPU)")
    made.add_argument("--memory", nargs="+", choices=["fresh", "kept"], default=["fresh", "kept"], help="(CPU)")
    made.add_argument("--json", type=Path, help="results; cases that are in the file already are not measured again")
    made.add_argument("--case", help=argparse.SUPPRESS)  # measure this one, write its results to --json
    made.add_argument("--ahead", type=int, nargs=2, help=argparse.SUPPRESS)  # compile every n-th case from the k-th on
    return made


def chosen(bench: Bench, options: argparse.Namespace) -> list[Case]:
    """Return the cases in the order of their worth, so that a run cut short has the worthiest."""
    gpu = options.device.startswith("cuda")
    dtypes = options.dtype or (bench.dtypes if gpu else ("float32",))
    layouts = options.layout or (("nchw", "nhwc") if gpu else ("nchw",))
    batches = options.batch or ((16, 4, 64) if gpu else (1,))
    planes = [p for p in bench.planes if p[2] in (options.side or ([p[2]] if gpu or p[2] <= 128 else []))]
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


def buffers_of(bench: Bench, case: Case, device: torch.device, count: int | None = None) -> list[Buffers]:
    """Return sets of operands; as many as make three times the second-level cache if no count is given."""
    torch.manual_seed(0)
    made: list[Buffers] = []
    while not made or len(made) < count:
        inputs = [laid_out(t.to(DTYPES[case.dtype]), case) for t in bench.inputs(case, device)]
        upstream = torch.randn(case.batch, case.out, case.side, case.side, device=device, dtype=inputs[0].dtype)
        made.append(Buffers([t.requires_grad_() for t in inputs], laid_out(upstream, case)))
        if count is None:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            count = min(64, max(2, math.ceil(3 * cache / made[0].bytes())))
    return made


def laid_out(t: Tensor, case: Case) -> Tensor:
    return t.contiguous(memory_format=LAYOUTS[case.layout]) if t.dim() == 4 else t


def all_runs(bench: Bench, case: Case, buffers: list[Buffers], without: Iterable[str]) -> dict[str, Run]:
    """Return every method at a case: the reference, what torch.compile makes of it, and the benchmark's own."""
    torch._dynamo.reset()
    reference, batched = bench.reference(case), bench.batched(case)
    runs = {"reference": Run(reference, buffers, reference, batched)}
    for name, mode in COMPILED.items():
        if name not in without:
            function = torch.compile(reference, fullgraph=True, dynamic=False, mode=mode)
            runs[name] = Run(function, buffers, reference, batched)
    runs |= bench.others(case, buffers)
    return {name: one for name, one in runs.items() if name not in without}
