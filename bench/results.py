"""Put a GPU's results together: one JSON file, and the tables of docs/kernels.md.

python bench/results.py gpu-out                print the tables that the results in gpu-out make
python bench/results.py first.tar.gz --write   also write bench/results/NAME.json (h200.json for an "NVIDIA H200"), and
                                               the tables of all chips between their marks in docs/kernels.md

What is given is a folder, with the archives in it, or an archive: as bench/gpu/short.sh leaves them, or with the files
of single commands (ops.json, deform.json, sketch.json, train_step.json, trace.json, smoke.json, test-*.xml, TOOL.log).
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

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.report import PARTS, TOOLS, tables
from hida.cli.output import make_printable

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- GPU tables: written by bench/results.py -->", "<!-- end of the GPU tables -->"
DOCUMENT = ROOT / "docs/kernels.md"
KERNELS = 40
"""of a training step, which are kept"""
RESULT = re.compile(rf"({'|'.join((*PARTS, 'trace', 'smoke'))})\.json|test-.*\.xml|({'|'.join(TOOLS)})\.log")
"""names of files with results"""


class Mistake(Exception):
    """Something about the input that the user can mend."""


def gather(sources: Iterable[Path]) -> dict:
    """Return all that folders and archives hold: machines, ceilings, rows of every part, and what the checks said."""
    found: dict = {"tests": {}, "smoke": {}, "sanitizers": {}, "trace": []}
    found |= {part: {"machines": [], "ceilings": [], "rows": []} for part in PARTS}
    devices: set[str] = set()
    for where, files in (pair for source in sources for pair in files_of(source)):
        for name, content in sorted(files.items()):
            try:
                devices |= take(found, PurePath(name), content)
            except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
                raise Mistake(f"{where / name} is not a benchmark's result ({error}).") from None
    if len(devices) > 1:
        raise Mistake(f"the results are of different devices: {', '.join(sorted(devices))}; put each together alone.")
    return found | {"device": next(iter(devices), "")}


def files_of(source: Path) -> list[tuple[Path, dict[str, bytes]]]:
    """Return an archive's files by their names, or a folder's, behind those of the archives in it."""
    if source.is_dir():
        inside = [pair for path in sorted(source.glob("*.tar.gz")) for pair in files_of(path)]
        paths = [p for p in (*source.iterdir(), *source.glob("logs/*.log")) if p.is_file() and RESULT.fullmatch(p.name)]
        return [*inside, (source, {p.name: p.read_bytes() for p in paths})]
    try:
        with tarfile.open(source) as archive:
            members = {PurePath(member.name).name: member for member in archive if member.isfile()}
            read = {name: archive.extractfile(m).read() for name, m in members.items() if RESULT.fullmatch(name)}
            return [(source, read)]
    except (OSError, tarfile.TarError) as error:
        raise Mistake(f"'{source}' is neither a folder nor an archive ({error}).") from None


def take(found: dict, name: PurePath, content: bytes) -> set[str]:
    """Add a file's content to what was found; return the devices that it names."""
    if name.suffix == ".log":
        said = sanitizer(content.decode(errors="replace"))
        found["sanitizers"] |= {name.stem: said} if said else {}
        return set()
    if name.suffix == ".xml":
        suite = ElementTree.fromstring(content).find("testsuite")
        found["tests"][name.stem] = {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
        return set()
    said = json.loads(content)
    if name.stem == "smoke":
        found["smoke"] = {k: said[k] for k in ("passed", "failed", "left", "stopped")}
        return {said["device"]} - {"cpu"}
    if name.stem == "trace":
        for one in said:
            one["kernels"] = dict(sorted(one["kernels"].items(), key=lambda item: -item[1][1])[:KERNELS])
        found["trace"] = replaced(found["trace"], said)
        return set()
    part = found[name.stem]
    part["rows"] = replaced(part["rows"], said["rows"])
    for machine in said["machines"]:  # of the files in its command only the names
        machine["command"] = [PurePath(w).name if w.startswith("/") else w for w in machine.get("command", [])]
    for key in ("machines", "ceilings"):
        part[key] += [one for one in said.get(key, []) if one not in part[key]]
    return {machine["device"] for machine in said["machines"]}


def replaced(before: list[dict], new: list[dict]) -> list[dict]:
    """Return the rows before, but of those measurements that the new ones are of, and the new ones."""

    def identity(row: dict) -> str:  # all directions of a case are one measurement
        return json.dumps([row.get(k) for k in ("case", "preset", "batch", "method")], sort_keys=True)

    again = {identity(row) for row in new}
    return [row for row in before if identity(row) not in again] + new


def sanitizer(log: str) -> dict:
    """Return how many calls compute-sanitizer watched, its summary, and whether it told anything before that."""
    if "= COMPUTE-SANITIZER" not in log:
        return {}
    calls = re.findall(r"^(\d+) calls", log, re.MULTILINE)
    lines = re.findall(r"^=+ (.+)$", log, re.MULTILINE)
    summary = next((line.partition("SUMMARY: ")[2] for line in lines if "SUMMARY: " in line), None)
    told = [line for line in lines if "SUMMARY: " not in line and line != "COMPUTE-SANITIZER"]
    return {"calls": int(calls[-1]) if calls else 0, "summary": summary, "told": len(told)}


def document(folder: Path) -> str:
    """Return what is between the marks: under its name the tables of each chip whose results the folder has."""
    chips = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return "\n\n".join(f"### {found['device']}\n\n{tables(found)}" for found in chips) or "No results are kept yet."


def write(found: dict, results: Path, target: Path) -> None:
    """Write the JSON, one line per row, and the tables of all results beside it between their marks in the document."""
    text, (begin, end) = target.read_text(encoding="utf-8"), MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise Mistake(f"{target} has not one pair of the lines {begin!r} and {end!r}.")

    def json_of(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)

    def listed(rows: list[dict]) -> str:
        return "[\n" + ",\n".join(map(json_of, rows)) + "\n]"

    parts = [json_of({k: found[k] for k in ("device", "tests", "smoke", "sanitizers")})[1:-1]]
    for part in PARTS:
        rest = json_of({k: found[part][k] for k in ("machines", "ceilings")})[1:-1]
        parts.append(f'"{part}": {{{rest}, "rows": {listed(found[part]["rows"])}}}')
    parts.append(f'"trace": {listed(found["trace"])}')
    before, rest = text.split(begin)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
    target.write_text(f"{before}{begin}\n\n{document(results.parent)}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="FOLDER_OR_ARCHIVE")
    parser.add_argument("--write", action="store_true", help="write the JSON and the document")
    parser.add_argument("--results", type=Path, help="the JSON; by default bench/results/ and the device's name")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    try:
        found = gather(options.sources)
        print(tables(found))
        if not options.write:
            return
        if not found["device"]:
            raise Mistake(f"there are no results in {', '.join(map(str, options.sources))}.")
        name = found["device"].removeprefix("NVIDIA ").split()[0].lower()
        write(found, options.results or ROOT / f"bench/results/{name}.json", options.document)
    except Mistake as mistake:
        print(f"results: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    make_printable()
    main()
