"""The goals of the native ops, and which of a benchmark's rows reach them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

LARGE = 100e6
"""bytes that must be moved before a share of the floor means the kernel and not its launch"""
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


class Verdict(NamedTuple):
    """A goal at a case: what was wanted, what was found; ``wanted`` and ``holds`` are None where there is no goal."""

    case: dict
    direction: str
    goal: str
    wanted: float | None
    found: float
    holds: bool | None

    def __str__(self) -> str:
        if self.wanted is None:
            return f"{self.goal} {self.found:.2f} (no goal)"
        relation = "≥" if self.goal not in ("of a convolution", "workspace") else "≤"
        return f"{self.goal} {self.found:.2f} ({relation} {self.wanted:g}) {'holds' if self.holds else 'FALLS SHORT'}"


def verdicts(rows: Iterable[dict]) -> list[Verdict]:
    """Compare rows (as report.Report has them) with the goals that apply to them, where they have a time."""
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if "direction" in row and ("median_ms" in row):
            groups.setdefault((*row["case"].values(), row["direction"]), {})[row["method"]] = row
    found: list[Verdict] = []
    for methods in groups.values():
        any_row = next(iter(methods.values()))
        case, direction = any_row["case"], any_row["direction"]
        ms = {name: row["median_ms"] for name, row in methods.items()}
        if "native" not in ms:
            continue
        for goal, wanted, value in _goals(case, direction, ms, methods):
            holds = None
            if wanted is not None:
                holds = value <= wanted if goal in ("of a convolution", "workspace") else value >= wanted
            found.append(Verdict(case, direction, goal, wanted, value, holds))
    return found


def _goals(case: dict, direction: str, ms: dict[str, float], rows: dict[str, dict]) -> Iterable[tuple]:
    native, gpu, side = ms["native"], case["memory"] == "gpu", case["side"]
    compiled = min((ms[name] for name in ("compile", "max-autotune") if name in ms), default=None)
    if case["op"] != "deform_conv2d":
        if gpu and (case["op"], direction) in GPU:
            eager, rival, share = GPU[case["op"], direction]
            if (case["op"], direction) == ("ida", "fwd") and side < 128:
                rival = 1.0
        elif not gpu and case["op"] == "ida" and direction in CPU and side in (64, 128):
            (eager, rival), share = CPU[direction], None
        else:
            return
        if "reference" in ms:
            yield "× eager", eager, ms["reference"] / native
        if compiled is not None:
            yield "× torch.compile", rival, compiled / native
        if share and "floor" in rows:  # below LARGE the launch counts, too: told, but no goal
            yield "of the floor", share if rows["floor"]["bytes"] >= LARGE else None, ms["floor"] / native
        return
    if direction not in ("fwd", "bwd"):
        return
    theirs = ms.get("torchvision")
    if not gpu:
        if direction == "fwd" and theirs and side in (4, 128):
            yield "× torchvision", 1.5 if side == 4 else 8.0, theirs / native
        return
    if theirs:
        wanted = None
        if side >= 32 and case["batch"] == 16 and case["dtype"] in TORCHVISION:
            wanted = TORCHVISION[case["dtype"]][direction == "bwd"]
        elif side <= 4 and case["batch"] == 4:
            wanted = OWN
        yield "× torchvision", wanted, theirs / native
    if "convolution" in ms and "native, zero offsets" in ms:
        yield "of a convolution", STILL, ms["native, zero offsets"] / ms["convolution"]
    if direction == "fwd" and side >= 32 and "workspace_share" in rows["native"]:
        yield "workspace", WORKSPACE, rows["native"]["workspace_share"]
    if direction == "fwd" and "same_bits" in rows["native"]:
        yield "same bits", 1.0, float(rows["native"]["same_bits"])


def table(rows: Iterable[dict]) -> list[str]:
    """Return a line a case, and a summary of every goal."""
    found = verdicts(rows)
    lines: dict[str, list[str]] = {}
    summary: dict[str, list[Verdict]] = {}
    for v in found:
        lines.setdefault(f"{name_of(v.case)} {v.direction}", []).append(str(v))
        if v.wanted is not None:
            summary.setdefault(f"{v.case['op']} {v.direction}, {v.goal}", []).append(v)
    text = ["", "goals (docs/kernels.md)", *(f"{name:<58}{'; '.join(words)}" for name, words in lines.items())]
    text += ["", f"{'goal':<46}{'holds':>12}   the furthest from it"]
    for name, group in summary.items():
        worst = min(
            group, key=lambda v: (v.found / v.wanted) * (-1 if v.goal in ("of a convolution", "workspace") else 1)
        )
        held = f"{sum(v.holds for v in group)} of {len(group)}"
        text.append(f"{name:<46}{held:>12}   {worst.found:.2f}, wanted {worst.wanted:g}, at {name_of(worst.case)}")
    return text if found else ["", "no case here has a goal"]


def name_of(case: dict) -> str:
    channels = case["channels"] if case["channels"] == case["out"] else f"{case['channels']}→{case['out']}"
    name = f"{case['op']} {channels}@{case['side']}² B{case['batch']} {case['dtype']} {case['layout']}"
    return name if case["memory"] == "gpu" else f"{name} {case['memory']}"
