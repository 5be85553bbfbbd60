"""The goals of the native ops, and which of a benchmark's rows reach them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import PurePath
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
RATIOS = {
    "× eager": ("reference", "native"),
    "× torch.compile": ("compile", "native"),
    "× torchvision": ("torchvision", "native"),
    "of the floor": ("floor", "native"),
    "zero offsets, of a convolution": ("native, zero offsets", "convolution"),
}
"""the time of one method divided by that of another"""
AT_MOST = ("zero offsets, of a convolution", "workspace")
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


def by_case(rows: Iterable[dict]) -> list[tuple[dict, str, dict[str, dict]]]:
    """Return each case and direction in which the native op has a time, with its rows that have one, by method."""
    found: dict[str, tuple[dict, str, dict[str, dict]]] = {}
    for row in rows:
        if "median_ms" in row:
            key = json.dumps([row["case"], row["direction"]])
            found.setdefault(key, (row["case"], row["direction"], {}))[2][row["method"]] = row
    return [one for one in found.values() if "native" in one[2]]


def ratios(methods: dict[str, dict]) -> dict[str, float]:
    """Return what is measured of a case by the names of goals; "compile" is the better of torch.compile's two modes."""
    ms = {name: row["median_ms"] for name, row in methods.items()}
    if "max-autotune" in ms:
        ms["compile"] = min(ms["max-autotune"], ms.get("compile", ms["max-autotune"]))
    found = {goal: ms[a] / ms[b] for goal, (a, b) in RATIOS.items() if {a, b} <= ms.keys()}
    own = {"workspace": "workspace_share", "same bits": "same_bits"}
    return found | {goal: float(methods["native"][key]) for goal, key in own.items() if key in methods["native"]}


def verdicts(rows: Iterable[dict]) -> Iterator[Verdict]:
    """Compare the rows of a benchmark of ops with the goals that apply to them, where they have a time."""
    for case, direction, methods in by_case(rows):
        goals = _deform(case, direction) if case["op"] == "deform_conv2d" else _adaptation(case, direction)
        for goal, value in ratios(methods).items():
            small = goal == "of the floor" and methods["floor"]["bytes"] < LARGE
            yield Verdict(case, direction, goal, None if small else goals.get(goal), value)


def _adaptation(case: dict, direction: str) -> dict[str, float]:
    """Return the goals of an adaptation op at a case."""
    key = (case["op"], direction)
    if case["memory"] == "gpu" and key in GPU:
        eager, rival, share = GPU[key]
        if key == ("ida", "fwd") and case["side"] < 128:
            rival = 1.0
        return {"× eager": eager, "× torch.compile": rival, "of the floor": share}
    if case["memory"] != "gpu" and case["op"] == "ida" and direction in CPU and case["side"] in (64, 128):
        return dict(zip(("× eager", "× torch.compile"), CPU[direction], strict=True))
    return {}


def _deform(case: dict, direction: str) -> dict[str, float]:
    """Return the goals of deform_conv2d at a case."""
    side, goals = case["side"], {}
    if case["memory"] != "gpu":
        return {"× torchvision": CPU_TORCHVISION[side]} if direction == "fwd" and side in CPU_TORCHVISION else {}
    if direction == "fwd+bwd":
        return {}
    if side >= 32 and case["batch"] == 16 and case["dtype"] in TORCHVISION:
        goals["× torchvision"] = TORCHVISION[case["dtype"]][direction == "bwd"]
    elif side <= 4 and case["batch"] == 4:
        goals["× torchvision"] = OWN
    if direction == "fwd":
        goals |= {"same bits": 1.0} | ({"workspace": WORKSPACE} if side >= 32 else {})
    return goals | {"zero offsets, of a convolution": STILL}


def name_of(of: dict) -> str:
    """Return the name of a case, or of a row: of an op, of a piece of the network, or of a training iteration."""
    if "preset" in of:
        return f"{PurePath(of['preset']).stem} B{of['batch']}"
    if "case" in of:
        return " ".join([name_of(of["case"]), *([of["direction"]] if "direction" in of else [])])
    kind = f"B{of['batch']} {of['dtype']} {of['layout']}"
    if "piece" in of:
        return f"{of['piece']} {of['direction']} {kind}"
    channels = of["channels"] if of["channels"] == of["out"] else f"{of['channels']}→{of['out']}"
    memory = "" if of["memory"] == "gpu" else f" {of['memory']}"
    return f"{of['op']} {channels}@{of['side']}² {kind}{memory}"


def time_of(row: dict) -> float | None:
    """Return a row's time in ms, None where it has none."""
    return row.get("median_ms", row.get("ms"))
