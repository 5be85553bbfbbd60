"""The tables of docs/kernels.md, made of what bench/results.py has gathered; only what was measured is in a table."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from bench.goals import GPU, LARGE, OWN, STILL, TORCHVISION, WORKSPACE, Verdict, by_case, medians, name_of, verdicts

PARTS = ("ops", "deform", "sketch", "train_step")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
OPS = (*dict.fromkeys(op for op, _ in GPU), "deform_conv2d")
EMPTY = "–"
LAYOUTS = {"nchw": "NCHW", "nhwc": "NHWC"}
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "tf32": "TF32"}
BATCHES = (4, 16, 64)
NETWORK = ("reference", "compile", "compile+graph", "native", "native+graph")
STEP = {
    "released": "released recipe",
    "bf16": "bf16 with reference ops",
    "reference": "HIDA_OPS=reference",
    "compile": "torch.compile",
    "ours": "native, NHWC",
    "nchw": "native, NCHW",
}


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return a Markdown table and an empty line, without rows and columns in which nothing was measured."""
    rows = [row for row in rows if any(cell != EMPTY for cell in row[1:])]
    columns = [k for k in range(len(head)) if k == 0 or any(row[k] != EMPTY for row in rows)]
    if not rows:
        return []
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*(f"| {' | '.join(line[k] for k in columns)} |" for line in lines), ""]


def spread(found: list[Verdict], goal: str, percent: bool = False) -> str:
    """Return the goal, the range of what was found, and in how many cases the goal holds."""
    values = sorted((100 if percent else 1) * v.found for v in found)
    if not values:
        return EMPTY
    low, high = (f"{value:.1f}" if percent else f"{value:.2f}" for value in (values[0], values[-1]))
    held = [v.holds for v in found if v.holds is not None]
    text = (low if low == high else f"{low}–{high}") + (" %" if percent else "×")
    return goal + text + (f", {sum(held)} of {len(held)}" if held else "")


def goals(rows: list[dict]) -> list[str]:
    """Return the tables of the goals: the adaptation's ops, then deform_conv2d; a row for each layout."""
    found = [v for v in verdicts(rows) if v.case["memory"] == "gpu"]

    def of(op: str, layout: str) -> list[Verdict]:
        return [v for v in found if (v.case["op"], v.case["layout"]) == (op, layout)]

    lines = [
        adaptation_goals(op, direction, layout, [v for v in of(op, layout) if v.direction == direction])
        for op, direction in GPU
        for layout in LAYOUTS
    ]
    head = ["op", "cases", "against eager", "against torch.compile"]
    text = table([*head, "of the floor, ≥ 100 MB moved", "of the floor, less moved: no goal"], lines)
    lines = [line for layout in LAYOUTS for line in deform_goals(LAYOUTS[layout], of("deform_conv2d", layout))]
    return text + table(["deform_conv2d", "forward", "backward"], lines)


def adaptation_goals(op: str, direction: str, layout: str, found: list[Verdict]) -> list[str]:
    """Return an op's line: its cases, and what was found for each goal."""
    eager, rival, share = GPU[op, direction]
    better = f"≥ {rival:g}×" + (" (from 128² on; below ≥ 1×)" if (op, direction) == ("ida", "fwd") else "")
    goal = {name: [v for v in found if v.goal == name] for name in ("× eager", "× torch.compile", "of the floor")}
    large, small = ([v for v in goal["of the floor"] if (v.holds is None) == no] for no in (False, True))
    dtypes = [short for name, short in DTYPES.items() if any(v.case["dtype"] == name for v in found)]
    batches, sides = (sorted({v.case[k] for v in found}) for k in ("batch", "side"))
    kinds = f"{', '.join(dtypes)}; {', '.join(f'B{b}' for b in batches)}; {', '.join(f'{s}²' for s in sides)}"
    return [
        f"{op} {direction}, {LAYOUTS[layout]}",
        kinds if found else EMPTY,
        spread(goal["× eager"], f"≥ {eager:g}×: "),
        spread(goal["× torch.compile"], f"{better}: "),
        spread(large, f"≥ {100 * share:.0f} %: ", percent=True),
        spread(small, "", percent=True),
    ]


def deform_goals(layout: str, found: list[Verdict]) -> list[list[str]]:
    """Return deform_conv2d's lines: a goal forward and backward."""
    names = {"bfloat16": "bf16 under autocast (torchvision computes fp32)", "float16": "fp16", "tf32": "fp32 with TF32"}

    def line(name: str, goal: str, words: Iterable[str], dtype: str = "", own: bool | None = None) -> list[str]:
        cells = {"fwd": EMPTY, "bwd": EMPTY}
        for direction, word in zip(cells, words, strict=False):
            group = [v for v in found if (v.goal, v.direction) == (goal, direction) and v.holds is not None]
            group = [v for v in group if own is None or own == (v.case["side"] <= 4)]
            group = [v for v in group if not dtype or dtype == v.case["dtype"]]
            cells[direction] = spread(group, f"{word}: ", percent=goal == "workspace")
        return [name, *cells.values()]

    rivals = [
        (f"{names[dtype]}, maps ≥ 32², B16", [f"≥ {goal:g}×" for goal in least], dtype, False)
        for dtype, least in TORCHVISION.items()
    ]
    rivals.append(("HIDA's own layers, B4", [f"≥ {OWN:g}×"] * 2, "", True))
    bits = [v.holds for v in found if v.goal == "same bits"]
    same = f"{sum(bits)} of {len(bits)} cases" if bits else EMPTY
    return [
        *(line(f"{name}, {layout}, against torchvision", "× torchvision", *rest) for name, *rest in rivals),
        line(f"zero offsets, {layout}, of cuDNN's convolution", "of a convolution", [f"≤ {STILL:g}×"] * 2),
        line(f"workspace, of an im2col buffer, maps ≥ 32², {layout}", "workspace", [f"< {100 * WORKSPACE:.0f} %"]),
        [f"the same bits in three runs, {layout}", same, EMPTY],
    ]


def each_case(rows: list[dict], op: str) -> list[str]:
    """Return an op's times on a GPU case by case, in bf16 where there is any, layouts beside each other."""
    found = [(case, by) for case, by in by_case(rows) if (case["op"], case["memory"]) == (op, "gpu")]
    found = [(case, by) for case, by in found if any("native" in methods for methods in by.values())]
    dtype = next((d for d in DTYPES if any(case["dtype"] == d for case, _ in found)), "")
    if not dtype:
        return []
    ratios = {"× eager": ("reference", "native"), "× torch.compile": ("compile", "native")}
    if op == "deform_conv2d":
        still = "native, zero offsets", "convolution"
        ratios = {"× torchvision": ("torchvision", "native"), "zero offsets, of a convolution": still}
    head = [f"{op}, {DTYPES[dtype]}"]
    head += [f"{d}{what}" for d in ("fwd", "bwd") for what in (", µs", ", of the floor", *(f", {r}" for r in ratios))]

    def order(one: tuple[dict, dict]) -> tuple:
        case = one[0]
        return -case["side"], case["channels"], case["out"], case["batch"], list(LAYOUTS).index(case["layout"])

    lines = []
    for case, by in sorted((one for one in found if one[0]["dtype"] == dtype), key=order):
        channels = f"{case['channels']}" + (f"→{case['out']}" if case["out"] != case["channels"] else "")
        line = [f"{channels} @ {case['side']}², B{case['batch']}, {LAYOUTS[case['layout']]}"]
        for direction in ("fwd", "bwd"):
            methods = by.get(direction, {})
            ms = medians(methods)
            line.append(f"{1e3 * ms['native']:.1f}" if "native" in ms else EMPTY)
            share = f"{100 * ms['floor'] / ms['native']:.0f} %" if {"floor", "native"} <= ms.keys() else EMPTY
            small = share != EMPTY and methods["floor"]["bytes"] < LARGE
            line.append(f"({share})" if small else share)
            line += [f"{ms[a] / ms[b]:.2f}×" if {a, b} <= ms.keys() else EMPTY for a, b in ratios.values()]
        error = max(methods["native"]["error"] for methods in by.values() if "native" in methods)
        lines.append([*line, f"{error:.0e}"])
    return table([*head, "error"], lines)


def network(rows: list[dict]) -> list[str]:
    """Return the times of the generator and the decoder, in ms."""
    lines = []
    for name in dict.fromkeys(map(name_of, rows)):
        group = {row["method"]: row for row in rows if name_of(row) == name}
        case = next(iter(group.values()))["case"]
        cells = [f"{group[m]['median_ms']:.3f}" if "median_ms" in group.get(m, {}) else EMPTY for m in NETWORK]
        shares = group.get("native", {}).get("shares_ms") or {}
        whole = sum(shares.values()) or 1.0
        cells.append(", ".join(f"{k} {100 * v / whole:.0f} %" for k, v in shares.items()) or EMPTY)
        kind = f"B{case['batch']}, {DTYPES[case['dtype']]}, {LAYOUTS[case['layout']]}"
        lines.append([f"{case['piece']} {case['direction']}, {kind}", *cells])
    return table(["ms", *NETWORK, "shares of native"], lines)


def step(rows: list[dict]) -> list[str]:
    """Return the images per second of the training iteration, a row for each preset and batch."""

    def cell(method: str, row: dict | None) -> str:
        if row is None:
            return EMPTY
        graph = ", no graph" if method in ("ours", "nchw") and not row["graph"] else ""
        return f"{row['images_per_second']:,.0f} ({row['ms']:.1f} ms, {row['memory_mib']:,.0f} MiB{graph})"

    lines = []
    kinds = {(row["preset"], row["batch"]) for row in rows}
    for preset, batch in sorted(kinds, key=lambda kind: (kind[0] != "small", *kind)):
        group = {r["method"]: r for r in rows if (r["preset"], r["batch"]) == (preset, batch) and "ms" in r}
        lines.append([f"{PurePath(preset).stem}, B{batch}", *(cell(m, group.get(m)) for m in STEP)])
    return table(["training iteration: images/s", *STEP.values()], lines)


def kernels(trace: list[dict]) -> list[str]:
    """Return how many kernels a training iteration launches, their time, and the longest."""
    lines = []
    for one in trace:
        sums: dict[str, float] = collections.defaultdict(float)
        for name, (_, ms) in one["kernels"].items():
            sums[short_name(name)] += ms
        longest = ", ".join(f"`{k}` {v:.2f}" for k, v in sorted(sums.items(), key=lambda item: -item[1])[:6])
        name = f"{PurePath(one['preset']).stem}, B{one['batch']}, {STEP[one['method']]}"
        lines.append([name, f"{one['count']:,.0f}", f"{one['ms']:.2f}", longest])
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
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for part in PARTS:
        for row in found[part]["rows"]:
            why = row.get("failed") or row.get("note")
            if why is None and "median_ms" not in row and "ms" not in row:
                why = f"wrong by {row['error']:.0e}, therefore no time"
            if why is None:
                continue
            if part == "train_step":
                name = f"training of {PurePath(row['preset']).stem}, B{row['batch']}"
                groups.setdefault((STEP[row["method"]], why), {})[name] = None
            else:
                groups.setdefault((row["method"], why), {})[name_of(row["case"])] = None
    lines = []
    for (method, why), names in groups.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"- {next(iter(names))}{more}, {method}: {why}")
    return ["What gave no time, or not as it should:", "", *lines, ""] if lines else []


def missing(found: dict) -> list[str]:
    """Return one line that names what was not measured."""
    rows = [row for part in ("ops", "deform") for row in found[part]["rows"] if "median_ms" in row]
    rows = [row for row in rows if row["case"]["memory"] == "gpu"]
    native = [row["case"] for row in rows if row["method"] == "native"]
    methods = {row["method"] for row in rows}
    timed = {(row["preset"], row["method"]) for row in found["train_step"]["rows"] if "ms" in row}

    def absent(key: str, names: Mapping[object, str]) -> list[str]:
        return [name for value, name in names.items() if all(case[key] != value for case in native)]

    kinds = absent("batch", {b: f"B{b}" for b in BATCHES}) + absent("dtype", DTYPES) + absent("layout", LAYOUTS)
    sketched = any("median_ms" in row for row in found["sketch"]["rows"])
    names = {
        "tests on the chip": not found["tests"],
        "smoke test": not found["smoke"],
        **{tool: tool not in found["sanitizers"] for tool in TOOLS},
        **dict.fromkeys(absent("op", {op: op for op in OPS}), True),
        "max-autotune of torch.compile": "compile" in methods and "max-autotune" not in methods,
        f"the ops in {', '.join(kinds)}": bool(native and kinds),
        "decoder and generator alone": not sketched,
    }
    for preset in ("small", "released"):
        left = [name for method, name in STEP.items() if (preset, method) not in timed]
        which = f" with {', '.join(left)}" if len(left) < len(STEP) else ""
        names[f"training of {preset}{which}"] = bool(left)
    names["kernels of a training iteration"] = not found["trace"]
    listed = "; ".join(name for name, is_missing in names.items() if is_missing)
    return [f"Not measured: {listed}.", ""] if listed else []


def checks(found: dict) -> list[str]:
    """Return what smoke test, tests and sanitizers said."""
    told = []
    if found["smoke"]:
        smoke = found["smoke"]
        left = f", {smoke['left']:,} cases left" if smoke["left"] else ""
        why = f" ({smoke['stopped']})" if smoke["stopped"] else ""
        told.append(f"smoke test {smoke['passed']:,} passed, {smoke['failed']:,} failed{left}{why}")
    for name, counts in found["tests"].items():
        bad, skipped = counts["failures"] + counts["errors"], counts["skipped"]
        told.append(f"{name} {counts['tests'] - bad - skipped:,} passed, {bad} failed, {skipped} skipped")
    for tool, said in found["sanitizers"].items():
        summary = said["summary"] or f"not finished, {'something' if said['told'] else 'nothing'} found"
        told.append(f"{tool} {summary} in {said['calls']} calls")
    return [f"Checks: {'; '.join(told)}.", ""] if told else []


def tables(found: dict) -> str:
    """Return a chip's tables as Markdown."""
    lines = ["**MADE UP: the input of a test, nothing here was measured.**", ""] if found["made_up"] else []
    machine = next((m for part in PARTS for m in found[part]["machines"]), None)
    if machine:
        smi = machine.get("nvidia_smi_at_the_end") or machine.get("nvidia_smi") or {}
        said = ", ".join(f"{k} {v}" for k, v in smi.items() if k != "name") or "nvidia-smi says nothing"
        cuda = f", CUDA {machine['cuda']}" if "cuda" in machine else ""
        lines += [f"torch {machine['torch']}{cuda}; {said}.", ""]
    for ceilings in found["ops"]["ceilings"][:1]:
        rates = (f"{k} {v / 1e9:.0f} TFLOP/s" for k, v in ceilings.items() if k != "copy")
        lines += [f"Ceilings: copy {ceilings['copy'] / 1e9:.2f} TB/s; products {', '.join(rates)}.", ""]
    rows = found["ops"]["rows"] + found["deform"]["rows"]
    lines += checks(found) + goals(rows)
    cases = [line for op in OPS for line in each_case(rows, op)]
    if cases:
        lines += [*cases, "In brackets: less than 100 MB move, so that the launch counts, too; no goal.", ""]
    lines += network(found["sketch"]["rows"]) + step(found["train_step"]["rows"]) + kernels(found["trace"])
    return "\n".join(lines + failures(found) + missing(found)).strip()
