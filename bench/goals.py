"""The goals of the native ops, and which of a benchmark's rows reach them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LARGE = 100e6
"""bytes that must be moved before a share of the floor tells of the kernel and not of its launch"""
# op, direction: times as fast as the reference; as the better of torch.compile's two modes; share of the floor
GPU = {
    ("info_acon", "fwd"): (8.0, 1.0, 0.95),
    ("info_acon", "bwd"): (10.0, 1.4, 0.90),
    ("instance_norm_modulate", "fwd"): (3.2, 1.2, 0.90),
    ("instance_norm_modulate", "bwd"): (2.5, 1.5, 0.85),
    ("ida", "fwd"): (7.5, 1.35, 0.90),  # against torch.compile from 128² on, 1.0 below
    ("ida", "bwd"): (9.0, 1.7, 0.85),
}
# deform_conv2d, maps of 32² and more, batch 16, against torchvision: forward, backward
TORCHVISION = {"bfloat16": (10.0, 8.0), "float16": (3.0, 4.0), "tf32": (2.0, 2.0)}
OWN = 4.0  # HIDA's own layers, batch 4
STILL = 1.5  # at most so many times a plain convolution, with zero offsets
WORKSPACE = 0.05  # at most, of an im2col buffer, on maps of 32² and more
CPU = {"fwd": (6.0, 2.0), "fwd+bwd": (5.0, 2.0)}  # ida at 64@128² and 128@64²
CPU_TORCHVISION = {4: 1.5, 128: 8.0}  # side: deform_conv2d's forward
AT_MOST = ("of a convolution", "workspace")
"""goals that are upper limits"""


class Verdict(NamedTuple):
    """A goal at a case: what was wanted, None where there is no goal, and what was found."""

    case: dict
    direction: str
    goal: str
    wanted: float | None
    found: float

    @property
    def holds(self) -> bool | None:
        if self.wanted is None:
            return None
        return self.found <= self.wanted if self.goal in AT_MOST else self.found >= self.wanted

    def __str__(self) -> str:
        if self.wanted is None:
            return f"{self.goal} {self.found:.2f} (no goal)"
        relation = "≤" if self.goal in AT_MOST else "≥"
        return f"{self.goal} {self.found:.2f} ({relation} {self.wanted:g}) {'holds' if self.holds else 'FALLS SHORT'}"


def by_case(rows: Iterable[dict]) -> list[tuple[dict, dict[str, dict[str, dict]]]]:
    """Return each case with its rows that have a time, by direction and method."""
    found: dict[str, tuple[dict, dict]] = {}
    for row in rows:
        if "median_ms" in row:
            _, directions = found.setdefault(json.dumps(row["case"]), (row["case"], {}))
            directions.setdefault(row["direction"], {})[row["method"]] = row
    return list(found.values())


def medians(methods: dict[str, dict]) -> dict[str, float]:
    """Return the methods' times in ms; "compile" is the better of torch.compile's two modes."""
    ms = {name: row["median_ms"] for name, row in methods.items()}
    compiled = [ms[name] for name in ("compile", "max-autotune") if name in ms]
    return ms | ({"compile": min(compiled)} if compiled else {})


def verdicts(rows: Iterable[dict]) -> list[Verdict]:
    """Compare the rows of a benchmark of ops with the goals that apply to them, where they have a time."""
    return [
        Verdict(case, direction, *goal)
        for case, directions in by_case(rows)
        for direction, methods in directions.items()
        if "native" in methods
        for goal in (_deform if case["op"] == "deform_conv2d" else _adaptation)(case, direction, methods)
    ]


def _adaptation(case: dict, direction: str, methods: dict[str, dict]) -> Iterator[tuple[str, float | None, float]]:
    key, gpu, ms = (case["op"], direction), case["memory"] == "gpu", medians(methods)
    if gpu and key in GPU:
        eager, rival, share = GPU[key]
        if key == ("ida", "fwd") and case["side"] < 128:
            rival = 1.0
    elif not gpu and case["op"] == "ida" and direction in CPU and case["side"] in (64, 128):
        (eager, rival), share = CPU[direction], None
    else:
        return
    if "reference" in ms:
        yield "× eager", eager, ms["reference"] / ms["native"]
    if "compile" in ms:
        yield "× torch.compile", rival, ms["compile"] / ms["native"]
    if share and "floor" in ms:  # below LARGE the launch counts, too: shown, but no goal
        yield "of the floor", share if methods["floor"]["bytes"] >= LARGE else None, ms["floor"] / ms["native"]


def _deform(case: dict, direction: str, methods: dict[str, dict]) -> Iterator[tuple[str, float | None, float]]:
    side, native, ms = case["side"], methods["native"], medians(methods)
    theirs = ms["torchvision"] / ms["native"] if "torchvision" in ms else None
    if direction not in ("fwd", "bwd"):
        return
    if case["memory"] != "gpu":
        if theirs and direction == "fwd" and side in CPU_TORCHVISION:
            yield "× torchvision", CPU_TORCHVISION[side], theirs
        return
    if theirs:
        wanted = None
        if side >= 32 and case["batch"] == 16 and case["dtype"] in TORCHVISION:
            wanted = TORCHVISION[case["dtype"]][direction == "bwd"]
        elif side <= 4 and case["batch"] == 4:
            wanted = OWN
        yield "× torchvision", wanted, theirs
    if {"convolution", "native, zero offsets"} <= ms.keys():
        yield "of a convolution", STILL, ms["native, zero offsets"] / ms["convolution"]
    if direction == "fwd" and side >= 32 and "workspace_share" in native:
        yield "workspace", WORKSPACE, native["workspace_share"]
    if direction == "fwd" and "same_bits" in native:
        yield "same bits", 1.0, float(native["same_bits"])


def table(rows: Iterable[dict]) -> list[str]:
    """Return a line for each case, and a summary of every goal."""
    found = verdicts(rows)
    if not found:
        return ["", "no case here has a goal"]
    lines: dict[str, list[str]] = {}
    summary: dict[str, list[Verdict]] = {}
    for v in found:
        lines.setdefault(f"{name_of(v.case)} {v.direction}", []).append(str(v))
        if v.wanted is not None:
            summary.setdefault(f"{v.case['op']} {v.direction}, {v.goal}", []).append(v)
    text = ["", "goals (docs/kernels.md)", *(f"{name:<58}{'; '.join(words)}" for name, words in lines.items())]
    text += ["", f"{'goal':<46}{'holds':>12}   the furthest from it"]
    for name, group in summary.items():
        worst = min(group, key=lambda v: (v.found / v.wanted) * (-1 if v.goal in AT_MOST else 1))
        held = f"{sum(v.holds for v in group)} of {len(group)}"
        text.append(f"{name:<46}{held:>12}   {worst.found:.2f}, wanted {worst.wanted:g}, at {name_of(worst.case)}")
    return text


def name_of(of: dict) -> str:
    """Return the name of a case, or of a row: of an op, of a piece of the network, or of a training iteration."""
    if "preset" in of:
        return f"{of['preset']} B{of['batch']}"
    if "case" in of:
        direction = f" {of['direction']}" if "direction" in of else ""
        return name_of(of["case"]) + direction
    kind = f"B{of['batch']} {of['dtype']} {of['layout']}"
    if "piece" in of:
        return f"{of['piece']} {of['direction']} {kind}"
    channels = of["channels"] if of["channels"] == of["out"] else f"{of['channels']}→{of['out']}"
    memory = "" if of["memory"] == "gpu" else f" {of['memory']}"
    return f"{of['op']} {channels}@{of['side']}² {kind}{memory}"


def time_of(row: dict) -> float | None:
    """Return a row's time in ms, None where it has none."""
    return row.get("median_ms", row.get("ms"))
