"""Put a GPU's results together: one JSON file, and the tables of docs/kernels.md.

python bench/results.py gpu-out                print the tables that the results in gpu-out make
python bench/results.py first.tar.gz --write   also write bench/results/NAME.json (h200.json for an "NVIDIA H200"), and
                                               the tables of all chips between their marks in docs/kernels.md

What is given is a folder, with the archives in it, or an archive: as bench/gpu/short.sh and bench/gpu/run.sh leave them
(ops.json, deform.json, sketch.json, train_step.json, trace.json, smoke.json, test-*.xml, logs of compute-sanitizer).
What comes later takes the place of the same measurement before. Only what was measured has a place in a table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path, PurePath

sys.path.insert(0, str(Path(__file__).resolve().parent))

from result_tables import PARTS, TOOLS, tables

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- GPU tables: written by bench/results.py -->", "<!-- end of the GPU tables -->"
KERNELS = 40
"""of a training step, which are kept"""


class Mistake(Exception):
    """Something about the input that the user can mend."""


def gather(sources: Iterable[Path]) -> dict:
    """Return all that folders and archives hold: machines, ceilings, rows of every part, and what the checks said."""
    found: dict = {
        "made_up": False,
        **{part: {"machines": [], "ceilings": [], "rows": []} for part in PARTS},
        **{"tests": {}, "smoke": {}, "sanitizers": {}, "trace": []},
    }
    devices: set[str] = set()
    for where, files in (pair for source in sources for pair in files_of(source)):
        for name, content in sorted(files.items()):
            try:
                take(found, devices, PurePath(name), content)
            except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
                raise Mistake(f"{where / name} is not a benchmark's result ({error}).") from None
    if len(devices) > 1:
        raise Mistake(f"the results are of different devices: {', '.join(sorted(devices))}; put each together alone.")
    found["device"] = next(iter(devices), "")
    return found


def files_of(source: Path) -> list[tuple[Path, dict[str, bytes]]]:
    """Return an archive's files by their names, or a folder's, behind those of the archives in it."""
    if source.is_dir():
        inside = [pair for path in sorted(source.glob("*.tar.gz")) for pair in files_of(path)]
        paths = [p for p in (*source.iterdir(), *source.glob("logs/*.log")) if p.is_file() and is_result(p.name)]
        return [*inside, (source, {p.name: p.read_bytes() for p in paths})]
    try:
        with tarfile.open(source) as archive:
            members = [m for m in archive if m.isfile() and is_result(PurePath(m.name).name)]
            return [(source, {PurePath(m.name).name: archive.extractfile(m).read() for m in members})]
    except (OSError, tarfile.TarError) as error:
        raise Mistake(f"'{source}' is neither a folder nor an archive ({error}).") from None


def is_result(name: str) -> bool:
    return name in {*(f"{part}.json" for part in PARTS), "trace.json", "smoke.json"} or bool(
        re.fullmatch(rf"test-.*\.xml|(sanitize-)?({'|'.join(TOOLS)})\.log", name)
    )


def take(found: dict, devices: set[str], name: PurePath, content: bytes) -> None:
    """Add a file's content to what was found."""
    if name.suffix == ".log":
        said = sanitizer(content.decode(errors="replace"))
        if said:
            found["sanitizers"][name.stem.removeprefix("sanitize-")] = said
    elif name.suffix == ".xml":
        suite = ElementTree.fromstring(content).find("testsuite")
        found["tests"][name.stem] = {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
    elif name.stem == "smoke":
        said = json.loads(content)
        found["smoke"] = {k: said[k] for k in ("passed", "failed", "left", "stopped")}
        devices |= {said["device"]} - {"cpu"}
    elif name.stem == "trace":
        new = json.loads(content)
        for one in new:
            one["kernels"] = dict(sorted(one["kernels"].items(), key=lambda item: -item[1][1])[:KERNELS])
        found["trace"] = replaced(found["trace"], new)
    else:
        said, part = json.loads(content), found[name.stem]
        part["rows"] = replaced(part["rows"], said["rows"])
        for key in ("machines", "ceilings"):
            new = said["machines"] if key == "machines" else said.get(key, [])
            part[key] += [one for one in map(without_paths, new) if one not in part[key]]
        devices |= {machine["device"] for machine in said["machines"]}
        found["made_up"] = found["made_up"] or bool(said.get("made_up"))


def replaced(before: list[dict], new: list[dict]) -> list[dict]:
    """Return the rows before, but of those measurements that the new ones are of, and the new ones."""
    again = {identity(row) for row in new}
    return [row for row in before if identity(row) not in again] + new


def identity(row: dict) -> str:
    """Return what a row is of; all directions of a case are one measurement."""
    return json.dumps([row.get(k) for k in ("case", "preset", "batch", "method")], sort_keys=True)


def without_paths(machine: dict) -> dict:
    """Return a machine's description; of the files in its command only the names."""
    if "command" not in machine:
        return machine
    return machine | {"command": [PurePath(w).name if w.startswith("/") else w for w in machine["command"]]}


def sanitizer(log: str) -> dict:
    """Return how many calls compute-sanitizer watched, its summary, and whether it told anything before that."""
    if "= COMPUTE-SANITIZER" not in log:
        return {}
    calls = re.findall(r"^(\d+) calls", log, re.MULTILINE)
    lines = re.findall(r"^=+ (.+)$", log, re.MULTILINE)
    summary = next((line.partition("SUMMARY: ")[2] for line in lines if "SUMMARY: " in line), None)
    told = [line for line in lines if "SUMMARY: " not in line and line != "COMPUTE-SANITIZER"]
    return {"calls": int(calls[-1]) if calls else 0, "summary": summary, "told": len(told)}


def document(chips: Iterable[dict]) -> str:
    """Return what stands between the marks: each chip's tables under its name."""
    parts = [f"### {found['device']}\n\n{tables(found)}" for found in chips]
    return "\n\n".join(parts) or "No results are kept yet."


def kept(folder: Path) -> list[dict]:
    """Return the results that a folder keeps, chip by chip."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def write(found: dict, results: Path, target: Path) -> None:
    """Write the JSON, a row a line, and the tables of all that lies beside it between their marks in the document."""
    text, (begin, end) = target.read_text(), MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise Mistake(f"{target} has not one pair of the lines {begin!r} and {end!r}.")
    head = {k: found[k] for k in ("device", "made_up", "tests", "smoke", "sanitizers")}
    parts = [json.dumps(head, ensure_ascii=False)[1:-1]]
    for part in PARTS:
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found[part]["rows"])
        rest = json.dumps({k: found[part][k] for k in ("machines", "ceilings")}, ensure_ascii=False)
        parts.append(f'"{part}": {{{rest[1:-1]}, "rows": [\n{rows}\n]}}')
    parts.append('"trace": [\n' + ",\n".join(json.dumps(one, ensure_ascii=False) for one in found["trace"]) + "\n]")
    before, rest = text.split(begin)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("{" + ",\n".join(parts) + "}\n")
    target.write_text(f"{before}{begin}\n\n{document(kept(results.parent))}\n\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="FOLDER_OR_ARCHIVE")
    parser.add_argument("--write", action="store_true", help="write the JSON and the document")
    parser.add_argument("--results", type=Path, help="the JSON; by default bench/results/ and the device's name")
    parser.add_argument("--document", type=Path, default=ROOT / "docs/kernels.md")
    options = parser.parse_args()
    try:
        found = gather(options.sources)
        print(tables(found))
        if options.write:
            if not found["device"]:
                raise Mistake(f"there are no results in {', '.join(map(str, options.sources))}.")
            if found["made_up"] and (options.results is None or options.document == ROOT / "docs/kernels.md"):
                raise Mistake("these results are made up: they go nowhere but into files that are named.")
            name = found["device"].removeprefix("NVIDIA ").split()[0].lower()
            write(found, options.results or ROOT / f"bench/results/{name}.json", options.document)
    except Mistake as mistake:
        print(f"results: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
