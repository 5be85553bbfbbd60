"""Put a GPU's results together: one JSON file, and the tables of docs/kernels.md.

python bench/results.py gpu-out                 print the tables that the results in gpu-out make
python bench/results.py gpu-out more --write    also write bench/results/NAME.json (h200.json for an "NVIDIA H200") and
                                                the tables, between their marks in docs/kernels.md

The folders hold ops.json, deform.json, sketch.json, train_step.json and test-gpu.xml, as bench/gpu/run.sh leaves them.
A cell that nothing was measured for says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from targets import GPU, OWN, STILL, TORCHVISION, WORKSPACE, Verdict, verdicts

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("ops", "deform", "sketch", "train_step")
MARKS = "<!-- GPU tables: written by bench/results.py -->", "<!-- end of the GPU tables -->"
NOTHING = "not measured"
PLANES = ((512, 16), (256, 32), (128, 64), (64, 128), (64, 256))


class Mistake(Exception):
    """Something about the input that the user can mend."""


def gather(folders: Iterable[Path]) -> dict:
    """Return all that the folders hold: machines, ceilings, rows of every part, and the counts of the tests."""
    found: dict = {
        "made_up": False,
        **{part: {"machines": [], "ceilings": [], "rows": []} for part in PARTS},
        "tests": {},
    }
    for folder in folders:
        for part in PARTS:
            path = folder / f"{part}.json"
            if not path.is_file():
                continue
            try:
                content = json.loads(path.read_text())
                machines = content["machines"]
                rows = {identity(row): row for row in found[part]["rows"] + content["rows"]}
                found[part]["rows"] = list(rows.values())
            except (ValueError, KeyError, TypeError) as error:
                raise Mistake(f"{path} is not a benchmark's result ({error}).") from None
            found[part]["machines"] += machines
            found[part]["ceilings"] += content.get("ceilings", [])
            found["made_up"] = found["made_up"] or bool(content.get("made_up"))
        for path in sorted(folder.glob("test-*.xml")):
            suite = ElementTree.parse(path).getroot().find("testsuite")
            found["tests"][path.stem] = {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
    devices = {machine["device"] for part in PARTS for machine in found[part]["machines"]}
    if len(devices) > 1:
        raise Mistake(f"the results are of different devices: {', '.join(sorted(devices))}; keep each in its folders.")
    found["device"] = next(iter(devices), "")
    return found


def identity(row: dict) -> str:
    """Return what a row is of: one that was taken along and gone on with comes once."""
    return json.dumps([row.get(k) for k in ("case", "batch", "direction", "method")])


def cell(found: Iterable[Verdict], percent: bool = False) -> str:
    """Return the range of what was found, and in how many cases the goal holds."""
    group = list(found)
    if not group:
        return NOTHING
    low, high = min(v.found for v in group), max(v.found for v in group)
    held = f"{sum(v.holds for v in group)} of {len(group)}"
    if percent:
        return f"{100 * low:.1f}–{100 * high:.1f} %, {held}"
    return f"{low:.2f}–{high:.2f}×, {held}"


def select(found: list[Verdict], goal: str, direction: str, keep: Callable[[dict], bool]) -> list[Verdict]:
    return [v for v in found if v.goal == goal and v.direction == direction and keep(v.case)]


def goals(rows: list[dict]) -> list[str]:
    """Return the two tables of the goals."""
    found = [v for v in verdicts(rows) if v.case["memory"] == "gpu"]
    lines = ["| op | against eager | against torch.compile | of the floor of bytes (≥ 100 MB) |", "|---|---|---|---|"]
    for (op, direction), (eager, rival, share) in GPU.items():
        own = lambda case, op=op: case["op"] == op  # noqa: E731
        wanted = f"≥ {rival:g}×" + (" (from 128² on; below ≥ 1×)" if (op, direction) == ("ida", "fwd") else "")
        lines.append(
            f"| {op} {direction} | ≥ {eager:g}×: {cell(select(found, '× eager', direction, own))} "
            f"| {wanted}: {cell(select(found, '× torch.compile', direction, own))} "
            f"| ≥ {share:.0%}: {cell(select(found, 'of the floor', direction, own), percent=True)} |"
        )
    lines += ["", "| deform_conv2d | forward | backward |", "|---|---|---|"]
    names = {"bfloat16": "bf16 under autocast (torchvision computes fp32)", "float16": "fp16", "tf32": "fp32 with TF32"}
    for dtype, (forward, backward) in TORCHVISION.items():
        large = lambda case, dtype=dtype: case["side"] >= 32 and case["batch"] == 16 and case["dtype"] == dtype  # noqa: E731
        cells = (cell(select(found, "× torchvision", d, large)) for d in ("fwd", "bwd"))
        pair = (f"≥ {goal:g}×: {text}" for goal, text in zip((forward, backward), cells, strict=True))
        lines.append(f"| {names[dtype]}, maps ≥ 32², B16, against torchvision | {' | '.join(pair)} |")
    small = (cell(select(found, "× torchvision", d, lambda case: case["side"] <= 4)) for d in ("fwd", "bwd"))
    lines.append(f"| HIDA's own layers, B4, against torchvision | {' | '.join(f'≥ {OWN:g}×: {c}' for c in small)} |")
    still = (cell(select(found, "of a convolution", d, lambda case: True)) for d in ("fwd", "bwd"))
    lines.append(f"| zero offsets, of cuDNN's convolution | {' | '.join(f'≤ {STILL:g}×: {c}' for c in still)} |")
    work = cell(select(found, "workspace", "fwd", lambda case: True), percent=True)
    lines.append(f"| workspace, of an im2col buffer, maps ≥ 32² | < {WORKSPACE:.0%}: {work} | |")
    bits = select(found, "same bits", "fwd", lambda case: True)
    same = f"{sum(v.holds for v in bits)} of {len(bits)} cases" if bits else NOTHING
    lines.append(f"| deterministic: the only mode, the same bits in three runs | {same} | |")
    return lines


def block(rows: list[dict]) -> list[str]:
    """Return ida's times and floors in bf16, NCHW."""
    known = {(*row["case"].values(), row["direction"], row["method"]): row for row in rows if "direction" in row}

    def one(channels: int, side: int, batch: int, direction: str) -> str:
        case = ("ida", channels, channels, side, batch, "bfloat16", "nchw", "gpu", direction)
        row, floor = (known.get((*case, method), {}) for method in ("native", "floor"))
        if "median_ms" not in row:
            return NOTHING
        return f"{1e3 * row['median_ms']:.1f} of {1e3 * floor['median_ms']:.1f}, {row['error']:.0e}"

    lines = ["| ida, bf16: µs, floor, error | fwd B4 | fwd B16 | fwd B64 | bwd B4 | bwd B16 | bwd B64 |"]
    lines.append("|---|" + "---|" * 6)
    for channels, side in PLANES:
        cells = (one(channels, side, batch, d) for d in ("fwd", "bwd") for batch in (4, 16, 64))
        lines.append(f"| {channels}, {side}² | {' | '.join(cells)} |")
    return lines


def network(rows: list[dict]) -> list[str]:
    """Return the times of the generator and the decoder, in ms."""
    methods = ("reference", "compile", "compile+graph", "native", "native+graph")
    lines = [f"| ms | {' | '.join(methods)} | shares of native |", "|---|" + "---|" * 6]
    measured = {row["case"]["dtype"] for row in rows}
    dtypes = [d for d in ("bfloat16", "float32") if d in measured or d == "bfloat16"]
    pieces = itertools.product(("generator", "decoder"), ("fwd", "fwd+bwd"), (1, 4, 16), dtypes)
    for piece, direction, batch, dtype in pieces:
        group = {
            row["method"]: row
            for row in rows
            if [row["case"][k] for k in ("piece", "direction", "batch", "dtype")] == [piece, direction, batch, dtype]
        }
        cells = [f"{group[m]['median_ms']:.3f}" if "median_ms" in group.get(m, {}) else NOTHING for m in methods]
        shares = group.get("native", {}).get("shares_ms") or {}
        whole = sum(shares.values()) or 1.0
        cells.append(", ".join(f"{k} {v / whole:.0%}" for k, v in shares.items()) or NOTHING)
        lines.append(f"| {piece} {direction}, B{batch}, {dtype} | {' | '.join(cells)} |")
    return lines


def step(rows: list[dict]) -> list[str]:
    """Return the images a second of the training iteration."""
    methods, lines = ("released", "bf16", "compile", "ours"), []
    lines = [f"| training, images/s (MiB) | {' | '.join(methods)} |", "|---|" + "---|" * 4]
    for batch in (4, 16, 64):
        group = {row["method"]: row for row in rows if row["batch"] == batch and "ms" in row}
        cells = (
            f"{group[m]['images_per_second']:.0f} ({group[m]['memory_mib']:.0f})" if m in group else NOTHING
            for m in methods
        )
        lines.append(f"| B{batch} | {' | '.join(cells)} |")
    return lines


def tables(found: dict) -> str:
    """Return the tables as Markdown."""
    lines = ["**MADE UP: the input of a test, nothing here was measured.**", ""] if found["made_up"] else []
    machine = next((m for part in PARTS for m in found[part]["machines"]), None)
    if machine:
        smi = machine.get("nvidia_smi_at_the_end") or machine.get("nvidia_smi") or {}
        said = ", ".join(f"{k} {v}" for k, v in smi.items() if k != "name") or "nvidia-smi says nothing"
        lines += [f"{found['device']}; torch {machine['torch']}; {said}.", ""]
    for ceilings in found["ops"]["ceilings"][:1]:
        rates = (f"{k} {v / 1e9:.0f} TFLOP/s" for k, v in ceilings.items() if k != "copy")
        lines += [f"Ceilings: copy {ceilings['copy'] / 1e9:.2f} TB/s; products {', '.join(rates)}.", ""]
    if found["tests"]:
        told = (f"{k}: {', '.join(f'{n} {w}' for w, n in v.items())}" for k, v in found["tests"].items())
        lines += [f"Tests on the chip: {'; '.join(told)}.", ""]
    rows = found["ops"]["rows"] + found["deform"]["rows"]
    for part in (goals(rows), block(rows), network(found["sketch"]["rows"]), step(found["train_step"]["rows"])):
        lines += [*part, ""]
    return "\n".join(lines).strip()


def write(found: dict, results: Path, document: Path) -> None:
    """Write the JSON, a row a line, and the tables between their marks in the document."""
    text, (begin, end) = document.read_text(), MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise Mistake(f"{document} has not one pair of the lines {begin!r} and {end!r}.")
    words = [json.dumps(found["device"]), *(json.dumps(found[k]) for k in ("made_up", "tests"))]
    parts = []
    for part in PARTS:
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found[part]["rows"])
        kept = {k: found[part][k] for k in ("machines", "ceilings")}
        parts.append(f'"{part}": {{{json.dumps(kept)[1:-1]}, "rows": [\n{rows}\n]}}')
    head = f'"device": {words[0]}, "made_up": {words[1]}, "tests": {words[2]}'
    before, rest = text.split(begin)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("{" + ",\n".join([head, *parts]) + "}\n")
    document.write_text(f"{before}{begin}\n\n{tables(found)}\n\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true", help="write the JSON and the document")
    parser.add_argument("--results", type=Path, help="the JSON; by default bench/results/ and the device's name")
    parser.add_argument("--document", type=Path, default=ROOT / "docs/kernels.md")
    options = parser.parse_args()
    try:
        found = gather(options.folders)
        print(tables(found))
        if options.write:
            if not found["device"]:
                raise Mistake(f"there are no results in {', '.join(map(str, options.folders))}.")
            if found["made_up"] and (options.results is None or options.document == ROOT / "docs/kernels.md"):
                raise Mistake("these results are made up: they go nowhere but into files that are named.")
            name = found["device"].removeprefix("NVIDIA ").split()[0].lower()
            write(found, options.results or ROOT / f"bench/results/{name}.json", options.document)
    except Mistake as mistake:
        print(f"results: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
