"""The tables of docs/kernels.md, made of what bench/results.py has gathered; only what was measured is in a table."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from bench.goals import AT_MOST, GPU, LARGE, RATIOS, Verdict, by_case, name_of, ratios, verdicts

PARTS = ("ops", "deform", "sketch", "train_step")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
LAYOUTS = ("nchw", "nhwc")
DTYPES = ("bfloat16", "float16", "float32", "tf32")
EXPECTED = {
    "op": (*dict.fromkeys(op for op, _ in GPU), "deform_conv2d"),
    "batch": (4, 16, 64),
    "dtype": DTYPES,
    "layout": LAYOUTS,
}
"""what a whole measurement of the ops has"""
EMPTY = "–"
NETWORK = ("reference", "compile", "compile+graph", "native", "native+graph")
STEP = {
    "released": "released recipe",
    "bf16": "bf16 with reference ops",
    "reference": "HIDA_OPS=reference",
    "compile": "torch.compile",
    "ours": "native, NHWC",
    "nchw": "native, NCHW",
}


def table(head: Iterable[str], rows: Iterable[list[str]]) -> list[str]:
    """Return a Markdown table and an empty line, without rows and columns in which nothing was measured."""
    rows = [row for row in rows if any(cell != EMPTY for cell in row[1:])]
    columns = [k for k, _ in enumerate(head) if k == 0 or any(row[k] != EMPTY for row in rows)]
    lines = [list(head), ["---", *["---:"] * (len(list(head)) - 1)], *rows]
    return [*(f"| {' | '.join(line[k] for k in columns)} |" for line in lines), ""] if rows else []


def goals(rows: list[dict]) -> list[str]:
    """Return a row for each goal and layout: the range of what was found, where it holds, what is furthest from it."""
    groups: dict[tuple[str, str, float], list[Verdict]] = {}
    for v in verdicts(rows):
        if v.wanted is not None:
            name = f"{v.case['op']} {v.direction}, {v.case['layout']}"
            groups.setdefault((name, v.goal, v.wanted), []).append(v)
    lines = []
    for (name, goal, wanted), found in groups.items():
        ordered = sorted(found, key=lambda v: v.found)
        low, high = (f"{v.found:.2f}" for v in (ordered[0], ordered[-1]))
        spread = low if low == high else f"{low} to {high}"
        held = f"{sum(bool(v.holds) for v in found)} of {len(found)}"
        worst = name_of(ordered[-1 if goal in AT_MOST else 0].case)
        lines.append([name, f"{goal} {'≤' if goal in AT_MOST else '≥'} {wanted:g}", spread, held, worst])
    return table(["op", "goal", "found", "holds", "the furthest from it"], lines)


def each_case(rows: list[dict]) -> list[str]:
    """Return the ops' times on a GPU case by case, in bf16 where there is any."""
    found = [one for one in by_case(rows) if one[0]["memory"] == "gpu" and one[1] != "fwd+bwd"]
    dtype = next((d for d in DTYPES if any(case["dtype"] == d for case, _, _ in found)), "")
    lines = []
    for case, direction, methods in found:
        if case["dtype"] == dtype:
            cells = {goal: f"{value:.2f}" for goal, value in ratios(methods).items()}
            if "floor" in methods and methods["floor"]["bytes"] < LARGE:
                cells["of the floor"] = f"({cells['of the floor']})"
            native = methods["native"]
            line = [f"{name_of(case)} {direction}", f"{1e3 * native['median_ms']:.1f}"]
            lines.append([*line, *(cells.get(goal, EMPTY) for goal in RATIOS), f"{native['error']:.0e}"])
    note = ["In brackets: less than 100 MB move, so that the launch counts, too; no goal.", ""]
    return table(["native", "µs", *RATIOS, "error"], lines) + (note if lines else [])


def network(rows: list[dict]) -> list[str]:
    """Return the times of the generator and the decoder, in ms."""
    groups: dict[str, dict[str, dict]] = collections.defaultdict(dict)
    for row in rows:
        groups[name_of(row)][row["method"]] = row
    lines = []
    for name, group in groups.items():
        cells = [f"{group[m]['median_ms']:.3f}" if "median_ms" in group.get(m, {}) else EMPTY for m in NETWORK]
        shares = group.get("native", {}).get("shares_ms") or {}
        whole = sum(shares.values()) or 1.0
        lines.append([name, *cells, ", ".join(f"{k} {100 * v / whole:.0f} %" for k, v in shares.items()) or EMPTY])
    return table(["ms", *NETWORK, "shares of native"], lines)


def step(rows: list[dict]) -> list[str]:
    """Return the images per second of the training iteration, a row for each preset and batch."""

    def cell(row: dict | None) -> str:
        if row is None:
            return EMPTY
        graph = ", no graph" if row["method"] in ("ours", "nchw") and not row["graph"] else ""
        return f"{row['images_per_second']:,.0f} ({row['ms']:.1f} ms, {row['memory_mib']:,.0f} MiB{graph})"

    groups: dict[str, dict[str, dict]] = collections.defaultdict(dict)
    for row in rows:
        if "ms" in row:
            groups[name_of(row)][row["method"]] = row
    lines = [[name, *(cell(groups[name].get(m)) for m in STEP)] for name in sorted(groups, reverse=True)]
    return table(["training iteration: images/s", *STEP.values()], lines)


def kernels(trace: list[dict]) -> list[str]:
    """Return how many kernels a training iteration launches, their time, and the longest."""
    lines = []
    for one in trace:
        sums: dict[str, float] = collections.defaultdict(float)
        for name, (_, ms) in one["kernels"].items():
            sums[short_name(name)] += ms
        longest = ", ".join(f"`{k}` {v:.2f}" for k, v in sorted(sums.items(), key=lambda item: -item[1])[:6])
        lines.append([f"{name_of(one)}, {STEP[one['method']]}", f"{one['count']:,.0f}", f"{one['ms']:.2f}", longest])
    return table(["kernels of a training iteration, ms", "kernels", "sum", "the longest"], lines)


def short_name(kernel: str) -> str:
    """Return a kernel's name without template arguments and parameters."""
    text, depth = "", 0
    for c in kernel.removeprefix("void ").replace("(anonymous namespace)::", ""):
        depth += (c == "<") - (c == ">")
        text += c if depth == 0 and c != ">" else ""
    return text.split("(")[0].strip()[:60]


def failures(found: dict) -> list[str]:
    """Return a line for everything that gave no time, or not as it should, and why."""
    groups: dict[tuple[str, str], dict[str, None]] = collections.defaultdict(dict)
    for row in (row for part in PARTS for row in found[part]["rows"]):
        why = row.get("failed") or row.get("note")
        if why is None and "median_ms" not in row and "ms" not in row:
            why = f"wrong by {row['error']:.0e}, therefore no time"
        if why is not None:
            method = STEP[row["method"]] if "preset" in row else row["method"]
            groups[method, why][name_of(row.get("case", row))] = None
    lines = []
    for (method, why), names in groups.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"- {next(iter(names))}{more}, {method}: {why}")
    return ["What gave no time, or not as it should:", "", *lines, ""] if lines else []


def missing(found: dict) -> list[str]:
    """Return one line that names what was not measured."""
    native = [case for case, _, _ in by_case(found["ops"]["rows"] + found["deform"]["rows"]) if case["memory"] == "gpu"]
    timed = {(row["preset"], row["method"]) for row in found["train_step"]["rows"] if "ms" in row}
    there = {"tests on the chip": found["tests"], "smoke test": found["smoke"]}
    there |= {tool: tool in found["sanitizers"] for tool in TOOLS}
    for key, values in EXPECTED.items():
        there |= {f"{key} {value}": any(case[key] == value for case in native) for value in values}
    there["decoder and generator alone"] = any("median_ms" in row for row in found["sketch"]["rows"])
    for preset in ("small", "released"):
        there |= {f"training of {preset}: {name}": (preset, method) in timed for method, name in STEP.items()}
    there["kernels of a training iteration"] = found["trace"]
    listed = "; ".join(name for name, is_there in there.items() if not is_there)
    return [f"Not measured: {listed}.", ""] if listed else []


def checks(found: dict) -> list[str]:
    """Return what smoke test, tests and sanitizers said."""
    told = []
    if smoke := found["smoke"]:
        more = f", {smoke['left']:,} cases left" if smoke["left"] else ""
        more += f" ({smoke['stopped']})" if smoke["stopped"] else ""
        told.append(f"smoke test {smoke['passed']:,} passed, {smoke['failed']:,} failed{more}")
    for name, counts in found["tests"].items():
        bad, skipped = counts["failures"] + counts["errors"], counts["skipped"]
        told.append(f"{name} {counts['tests'] - bad - skipped:,} passed, {bad} failed, {skipped} skipped")
    for tool, said in found["sanitizers"].items():
        summary = said["summary"] or f"not finished, {'something' if said['told'] else 'nothing'} found"
        told.append(f"{tool} {summary} in {said['calls']} calls")
    return [f"Checks: {'; '.join(told)}.", ""] if told else []


def machine(found: dict) -> list[str]:
    """Return what the machine was, and its ceilings."""
    lines = []
    for one in [m for part in PARTS for m in found[part]["machines"]][:1]:
        smi = one.get("nvidia_smi_at_the_end") or one.get("nvidia_smi") or {"nvidia-smi": "says nothing"}
        said = ", ".join(f"{k} {v}" for k, v in smi.items() if k != "name")
        lines += [f"torch {one['torch']}, CUDA {one.get('cuda', EMPTY)}; {said}.", ""]
    for ceilings in found["ops"]["ceilings"][:1]:
        rates = (f"{k} {v / 1e9:.0f} TFLOP/s" for k, v in ceilings.items() if k != "copy")
        lines += [f"Ceilings: copy {ceilings['copy'] / 1e9:.2f} TB/s; products {', '.join(rates)}.", ""]
    return lines


def tables(found: dict) -> str:
    """Return a chip's tables as Markdown."""
    rows = found["ops"]["rows"] + found["deform"]["rows"]
    on_gpu = [row for row in rows if row["case"]["memory"] == "gpu"]
    lines = machine(found) + checks(found) + goals(on_gpu) + each_case(on_gpu) + network(found["sketch"]["rows"])
    lines += step(found["train_step"]["rows"]) + kernels(found["trace"]) + failures(found) + missing(found)
    return "\n".join(lines).strip()
