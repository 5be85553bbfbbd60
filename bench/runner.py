"""What the benchmarks have in common: options, a file of results that a later run goes on with, a limit of time."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from bench.goals import name_of, time_of
from bench.machine import clocks, describe
from hida.files import atomic_path

One = TypeVar("One")
NAMES = ("case", "direction", "method", "preset", "batch")
"""what is printed of a row first; then all the rest"""


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The docstring as it is, and each option's default."""


def parser(doc: str) -> tuple[argparse.ArgumentParser, bool]:
    """Return a parser with the options of every benchmark, and whether it is for a GPU: other defaults depend on it."""
    device = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    device.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.parse_known_args()[0].device.type == "cuda"
    made = argparse.ArgumentParser(description=doc, formatter_class=Help, parents=[device], allow_abbrev=False)
    made.add_argument("--minutes", type=float, default=math.inf, help="begin nothing more after them")
    made.add_argument("--json", type=Path, help="results; what is in the file already is not measured again")
    made.set_defaults(gpu=gpu, begun=time.perf_counter())
    return made, gpu


class Report:
    """Rows in a file that a later run goes on with, and a line for each on the terminal.

    Args:
        options: of :func:`parser`; ``json`` is the file.
        name: of the benchmark, for the title of the run.
        machine: more about the machine than :func:`describe` says.
        ceilings: of the machine, where they are measured.
    """

    def __init__(self, options: argparse.Namespace, name: str, machine: dict, ceilings: dict | None = None) -> None:
        self.path, self.gpu = options.json, options.gpu
        head = {"machines": describe(options.device) | machine} | ({"ceilings": ceilings} if ceilings else {})
        told = [head["machines"]["device"], *machine.values(), f"torch {torch.__version__}"]
        for kind, rate in (ceilings or {}).items():
            told.append(f"copy {rate / 1e6:.1f} GB/s" if kind == "copy" else f"{kind} {rate / 1e9:.2f} TFLOP/s")
        before = (
            json.loads(self.path.read_text(encoding="utf-8")) if self.path is not None and self.path.exists() else {}
        )
        self.rows: list[dict] = before.get("rows", [])
        self.first = {name_of(row): row for row in reversed(self.rows) if time_of(row)}
        self.head: dict = {"title": f"{name}: {', '.join(told)}"}
        self.head |= {key: [*before.get(key, []), value] for key, value in head.items()}
        tqdm.write(self.head["title"])

    def add(self, row: dict) -> None:
        self.rows.append(row)
        tqdm.write(self.line(row))

    def line(self, row: dict) -> str:
        """Return what is printed of a new row, how much faster it is than the first method of the case included."""
        name = f"{name_of(row):<51}{row['method']:<21}"
        if "failed" in row:
            return f"{name}not measured: {row['failed']}"
        shown = {key: value for key, value in row.items() if key not in NAMES and value is not None}
        words = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
        own = time_of(row)
        first = self.first.setdefault(name_of(row), row) if own else row
        if own is None:
            words.append("wrong, no time")
        elif first is not row and row["method"] != "floor":
            words.append(f"{time_of(first) / own:.2f}× {first['method']}")
        return name + "  ".join(words)

    def write(self) -> None:
        """Write the file, with what the machine says now."""
        if self.path is None:
            return
        if self.gpu:
            self.head["machines"][-1]["nvidia_smi_at_the_end"] = clocks()
        with atomic_path(self.path) as path:
            path.write_text(
                json.dumps({**self.head, "rows": self.rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )


def go_through(
    todo: Sequence[One], measure: Callable[[One], object], report: Report, options: argparse.Namespace
) -> None:
    """Measure one case after the other while there is time; what is measured is in the file when the next begins."""
    try:
        for number, one in enumerate(tqdm(todo, unit="case", disable=None)):
            if time.perf_counter() - options.begun > 60 * options.minutes:
                left = len(todo) - number
                print(f"{left} of {len(todo)} cases are not measured yet: the same command goes on with them")
                break
            measure(one)
            report.write()
    except KeyboardInterrupt:
        sys.exit("interrupted: what was measured until then is above, and in the file of --json")
