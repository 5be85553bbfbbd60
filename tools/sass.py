"""Read the machine code of the CUDA kernels, and print a line of what limits each: no GPU is needed.

    python tools/sass.py                            every kernel of hida/_ops_cuda.so, for sm_90a
    python tools/sass.py --only ida_nhwc bf16       those whose name has all these words
    python tools/sass.py --arch sm_80 kernel.cubin  another chip, another library, object or cubin
    python tools/sass.py --check --json sass.json   say which goals are missed (status 1); keep all that was read

The columns: registers; static shared memory in bytes (from 9.0 on the system takes 1024 of them); stack in bytes and
spills (loads and stores of local memory); 16-byte loads from global memory; then, for each inner loop that has some, or
for the whole kernel where no loop has: how many are on their way at a time before any of their results is waited for;
its instructions; instructions and MUFU (powers, reciprocals) for eight elements, of deform_conv for a gathered vector
of 16 bytes and without those of the tensor cores; tensor core instructions; barriers of a block or a cluster.

How it is counted: a load is on its way until an instruction names one of its registers or waits for its scoreboard (the
control bits of the encoding). Loops are those of the flow graph: a jump to a block that every way to the jump passes.
Of a loop or a kernel the way through is counted that has the most 16-byte loads and stores and products, of those the
shortest: so what finds sampling points, which few warps do, is not part of a gather. Loops within are passed once.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import util
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools/build"))

from toolchain import find_nvcc  # noqa: E402

LIBRARY = ROOT / "hida/_ops_cuda.so"
IN_FLIGHT, GATHER = 4, 90  # the goals: 16-byte loads on their way in NHWC kernels; instructions for a gathered vector
STREAMS, GATHERS = r"(ida|info_acon)_nhwc", r"deform_conv forward_kernel<(Bf16|Fp16)"  # the kernels they are of
NO_BARRIER, COPY = 7, 8  # instead of a scoreboard's number, 0 to 5
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*) ?([^;]*);")
ENCODING = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
WIDE_LOAD = re.compile(r"(LDG|LD|LDGSTS)\.E\b.*\.128")
WIDE_STORE = re.compile(r"(STG|ST)\.E\b.*\.128")
KINDS = {  # what is counted in a kernel and in each loop
    "loads": WIDE_LOAD,
    "stores": WIDE_STORE,
    "mufu": re.compile(r"MUFU\."),
    "tensor": re.compile(r"(HMMA|HGMMA|DMMA|IMMA)\b(?!2)"),
    "barriers": re.compile(r"BAR\.(SYNC|RED)|UCGABAR_WAIT|SYNCS\.PHASECHK"),
    "spills": re.compile(r"(LDL|STL)\b"),
}


class Mistake(Exception):
    """Something that the user can mend."""


class Instruction(NamedTuple):
    """An instruction: its address, its guard, its name with suffixes, the scoreboards it waits for, the one it sets."""

    at: int
    guard: str
    name: str
    operands: str
    waits: int
    sets: int

    @property
    def target(self) -> int:
        """The address it jumps to, or that is named for later; −1 if there is none."""
        found = re.findall(r"\b0x([0-9a-f]+)", self.operands)
        return int(found[-1], 16) if found else -1

    @property
    def always(self) -> bool:
        return self.guard == "" and not re.match(r"!?U?P\d", self.operands)


class Block(NamedTuple):
    """Instructions without a jump but at their end, and the numbers of the blocks that may follow."""

    body: list[Instruction]
    next: list[int]


# ---- reading the text -----------------------------------------------------------------------------------------------


def read_functions(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function of what ``cuobjdump -sass`` printed."""
    functions: dict[str, list[Instruction]] = {}
    here: list[Instruction] = []
    for line in text.splitlines():
        if found := INSTRUCTION.match(line):
            here.append(Instruction(int(found[1], 16), found[2] or "", found[3], found[4].strip(), 0, NO_BARRIER))
        elif here and (found := ENCODING.match(line)):
            control = int(found[1], 16) >> 41  # stall 4 bits, yield 1, barrier to set 3, to set when read 3, to wait 6
            here[-1] = here[-1]._replace(sets=control >> 5 & 7, waits=control >> 11 & 63)
        elif "Function : " in line:
            here = functions.setdefault(line.split("Function : ")[1].strip(), [])
    return functions


def blocks_of(code: list[Instruction]) -> list[Block]:
    """Return the flow graph, in the order of the text."""
    joins: dict[str, int] = {}  # where threads that wait at a BSYNC go on
    jumps: dict[int, int] = {}
    for at, one in enumerate(code):
        if one.name == "BSSY":
            joins[one.operands.split(",")[0]] = one.target
        elif one.name.startswith("BRA"):
            jumps[at] = one.target
        elif one.name == "BSYNC" and joins.get(one.operands, -1) > one.at + 16:
            jumps[at] = joins[one.operands]
    places = {one.at: at for at, one in enumerate(code)}
    ends = [at for at, one in enumerate(code) if at in jumps or one.name.split(".")[0] in ("EXIT", "RET", "BRX", "JMX")]
    starts = sorted({0, *(at + 1 for at in ends), *(places[to] for to in jumps.values() if to in places)} - {len(code)})
    number = {start: n for n, start in enumerate(starts)}
    blocks = []
    for start, stop in zip(starts, [*starts[1:], len(code)], strict=True):
        last = stop - 1
        follow = [number[places[jumps[last]]]] if jumps.get(last) in places else []
        if stop < len(code) and not (last in ends and code[last].always):
            follow.append(number[stop])
        blocks.append(Block(code[start:stop], follow))
    reached = {to for block in blocks for to in block.next}
    switch = 0  # what nobody jumps to is a case of the switch, or a subroutine, above it
    for n, block in enumerate(blocks):
        if n and n not in reached:
            blocks[switch].next.append(n)
        if block.body[-1].name.startswith("BRX"):
            switch = n
    return blocks


def loops_of(blocks: list[Block]) -> dict[int, set[int]]:
    """Return the blocks of each loop, by its first: those from which a jump back to it, which dominates it, is reached."""
    before: list[list[int]] = [[] for _ in blocks]
    for n, block in enumerate(blocks):
        for to in block.next:
            before[to].append(n)
    every = (1 << len(blocks)) - 1
    above = [1] + [every] * (len(blocks) - 1)  # the blocks that every way passes, as bits
    changed = True
    while changed:
        changed = False
        for n in range(1, len(blocks)):
            common = functools.reduce(lambda mask, b: mask & above[b], before[n], every) | 1 << n
            changed |= common != above[n]
            above[n] = common
    loops: dict[int, set[int]] = {}
    for n, block in enumerate(blocks):
        for head in block.next:
            if above[n] >> head & 1 and block.body[-1].at != blocks[head].body[0].at:  # not the trap behind the end
                body, left = loops.setdefault(head, {head}), [n]
                while left:
                    if (one := left.pop()) not in body:
                        body.add(one)
                        left += before[one]
    return loops


def way_through(blocks: list[Block], head: int, among: set[int]) -> list[Instruction]:
    """Return the instructions of the shortest of the ways with the most loads, stores and products."""
    order: list[int] = []
    seen, left = {head}, [(head, iter(blocks[head].next))]
    while left:  # depth first: a block comes behind all that follow it, but for jumps back
        n, follow = left[-1]
        to = next(follow, None)
        if to is None:
            order.append(left.pop()[0])
        elif to in among and to not in seen:
            seen.add(to)
            left.append((to, iter(blocks[to].next)))
    best: dict[int, tuple[int, int, int]] = {}  # worth, -instructions, next
    for n in order:
        counts = count(blocks[n].body)
        worth, size = counts["loads"] + counts["stores"] + counts["tensor"], counts["instructions"]
        further = max(((*best[to][:2], to) for to in blocks[n].next if to in best), default=(0, 0, -1))
        best[n] = (worth + further[0], further[1] - size, further[2])
    way, n = [], head
    while n >= 0:
        way += blocks[n].body
        n = best[n][2]
    return way


def in_flight(blocks: list[Block], among: set[int]) -> int:
    """Return how many 16-byte loads are on their way at a time, before a result of any of them is waited for."""
    most = 0
    entering: list[frozenset[tuple[int, int]]] = [frozenset()] * len(blocks)
    for _ in range(2):  # the second time with what a loop's end leaves to its beginning
        for n in sorted(among):
            flying = set(entering[n])  # (first register, scoreboard)
            for one in blocks[n].body:
                named = {int(r) // 4 * 4 for r in re.findall(r"\bR(\d+)", one.operands)} if flying else set()
                done = {sets for to, sets in flying if to in named and sets != NO_BARRIER}
                done |= {sets for _, sets in flying if one.waits >> sets & 1}
                if one.name.startswith("DEPBAR"):
                    done.add(COPY)
                flying = {(to, sets) for to, sets in flying if to not in named and sets not in done}
                if WIDE_LOAD.match(one.name):
                    target = re.match(r"R(\d+)", one.operands)  # LDGSTS, a copy to shared memory, has none
                    flying.add((int(target[1]), one.sets) if target else (-one.at, COPY))
                    most = max(most, len(flying))
            for to in blocks[n].next:
                entering[to] = max(entering[to], frozenset(flying), key=len)
    return most


# ---- what a kernel is -----------------------------------------------------------------------------------------------


@functools.cache
def enumerators() -> dict[str, list[str]]:
    """Return the names of the values of csrc's enumerations."""
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "csrc").rglob("*.h"))
    found = re.findall(r"enum class (\w+)[^{;]*\{([^}]*)\}", text)
    return {name: [word.split("=")[0].strip() for word in words.split(",")] for name, words in found}


def short_name(mangled: str, demangled: str) -> str:
    """Return the file, the function and its template arguments, as ``ida_nhwc kernel<bf16, whole>``."""
    file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]{8}", mangled)
    text = demangled.replace("(anonymous namespace)", "")
    for kind, names in enumerators().items():
        text = re.sub(rf"\([\w:]*\b{kind}\)(\d+)", lambda m, n=names: n[int(m[1])], text)  # type: ignore[misc]
    name = re.sub(r"\b\w*::", "", re.sub(r"^void ", "", text).split("(")[0]).replace(":", "")
    return f"{file[1] if file else '?'} {name}"


def count(body: Iterable[Instruction]) -> dict[str, int]:
    """Return how many instructions there are, and how many of each kind."""
    names = [one.name for one in body if one.name != "NOP"]
    return {"instructions": len(names)} | {k: sum(bool(p.match(n)) for n in names) for k, p in KINDS.items()}


def eights(name: str, counts: dict[str, int]) -> float:
    """Return for how many times eight elements, or gathered vectors of 16 bytes, the counted code is; 0: not known."""
    rows = re.search(r", (64|128)[>,]", name)
    if name.startswith("deform"):  # a chunk of a product of rows × 64 has 512 vectors for 2 · rows threads, 32 HMMA each
        return max(counts["tensor"], 32) * 8 / int(rows[1]) if rows else 0 if counts["tensor"] else counts["loads"] / 4
    if not (adapts := re.match(r"(ida|info_acon)\w*_n(hwc|chw)", name)) or not counts["loads"]:
        return 0
    back, acon, whole = "backward" in name, adapts[1] == "info_acon", "whole" in name
    wide = 2 if "f32" in name else 1  # 16 bytes are four numbers
    if counts["stores"]:
        return counts["stores"] / ((((1 if acon else 2) + whole) if back else 1) * wide)  # dγ, dx, dlogits; y
    return counts["loads"] / ((((2 if acon else 3) if back else 1) + whole) * wide)  # for the sums: x; dy, γ; logits


def describe(name: str, code: list[Instruction]) -> dict:
    """Return what is read off a kernel's instructions."""
    blocks = blocks_of(code)
    everything = set(range(len(blocks)))
    loops = [(count(way_through(blocks, head, body)), body) for head, body in sorted(loops_of(blocks).items())]
    loops = [(counts, body) for counts, body in loops if counts["loads"]]
    inner = [(counts, body) for counts, body in loops if not any(other < body for _, other in loops)]
    parts = []
    for counts, body in inner or [(count(way_through(blocks, 0, everything)), everything)]:
        parts.append(counts | {"in_flight": in_flight(blocks, body), "eights": (n := eights(name, counts))})
        if n:
            parts[-1]["per_eight"] = {"instructions": (counts["instructions"] - counts["tensor"]) / n}
            parts[-1]["per_eight"]["mufu"] = counts["mufu"] / n
    whole = count(one for block in blocks for one in block.body)
    return {"name": name, **whole, "in_flight": in_flight(blocks, everything), "loops": len(inner), "parts": parts}


# ---- the tools ------------------------------------------------------------------------------------------------------


def find_tool(name: str) -> str | None:
    """Return a tool of the CUDA toolkit: of ``CUDA_HOME``, on the PATH, beside nvcc, in the packages nvidia, triton."""
    folders = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    on_path = shutil.which(name)
    folders += [Path(on_path).parent] if on_path else []
    folders += [Path(nvcc).resolve().parent] if (nvcc := find_nvcc()) else []
    for package, pattern in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = util.find_spec(package)
        folders += [p for f in (spec and spec.submodule_search_locations) or () for p in sorted(Path(f).glob(pattern))]
    return next((str(folder / name) for folder in folders if (folder / name).is_file()), None)


def tool(name: str, *arguments: str, text: str | None = None) -> str:
    """Run a tool; return what it prints."""
    program = find_tool(name) if name == "cuobjdump" else shutil.which(name)
    if program is None:
        where = "CUDA_HOME, on the PATH or in a package; install cuda-cuobjdump or triton"
        raise Mistake(f"there is no {name} {'in ' + where if name == 'cuobjdump' else 'on the PATH; install binutils'}.")
    done = subprocess.run([program, *arguments], input=text, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Mistake(f"{name} cannot read {arguments[-1]} ({said[-1] if said else 'it says nothing'}).")
    return done.stdout


def read(library: Path, arch: str, words: Iterable[str] = ()) -> list[dict]:
    """Return what is read off the kernels of a library whose short names have all of the words."""
    if not library.is_file():
        raise Mistake(f"there is no {library}; build it (HIDA_BUILD_CUDA=1 python setup.py build_ext --inplace).")
    used = tool("cuobjdump", "-res-usage", "-arch", arch, str(library))
    resources = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", used)
    if not resources:
        raise Mistake(f"{library} has no kernels for {arch}; name one that it was built for (--arch).")
    names = [mangled for mangled, *_ in resources]
    short = dict(zip(names, map(short_name, names, tool("c++filt", text="\n".join(names)).splitlines()), strict=True))
    chosen = [mangled for mangled in names if all(word in short[mangled] for word in words)]
    if not chosen:
        raise Mistake(f"no kernel's name has all of {' '.join(words)!r}; without --only all are printed.")
    some = ["-fun", ",".join(chosen)] if len(chosen) < len(names) else []
    functions = read_functions(tool("cuobjdump", "-sass", "-arch", arch, *some, str(library)))
    kernels = []
    for mangled, registers, stack, shared in resources:
        if mangled in functions and mangled in chosen:
            about = {"registers": int(registers), "stack": int(stack), "shared": int(shared)}
            kernels.append(describe(short[mangled], functions[mangled]) | about)
    return sorted(kernels, key=lambda kernel: kernel["name"])


def misses(kernels: Iterable[dict]) -> Iterator[str]:
    """Yield a line for each goal that a kernel misses."""
    for one in kernels:
        name, flying = one["name"], one["in_flight"]
        if one["stack"] or one["spills"]:
            yield f"{name}: {one['stack']} bytes of stack, {one['spills']} spills; the goal is none"
        if re.match(STREAMS, name) and flying < IN_FLIGHT:
            yield f"{name}: {flying} loads of 16 bytes on their way; the goal is {IN_FLIGHT} or more"
        for part in one["parts"]:
            gather = part["per_eight"]["instructions"] if part["eights"] else 0
            if re.match(GATHERS, name) and gather > GATHER:
                yield f"{name}: {gather:.0f} instructions for a gather; the goal is {GATHER} or fewer"


def table(kernels: list[dict]) -> str:
    """Return the lines that are printed."""
    head = ("kernel", "regs", "shared", "stack", "16 B", "in flight", "way", "per 8", "mufu", "tensor", "barriers")
    rows = [head]
    for one in kernels:
        parts = one["parts"] if one["loads"] else []
        eight = [part["per_eight"] for part in parts if part["eights"]]
        columns = [[p["in_flight"] for p in parts], [p["instructions"] for p in parts]]
        columns += [[per[key] for per in eight] for key in ("instructions", "mufu")]
        first = [one["name"], one["registers"], one["shared"], f"{one['stack']}/{one['spills']}", one["loads"]]
        parted = ["+".join(f"{value:.0f}" for value in column) or "–" for column in columns]
        rows.append(tuple(map(str, (*first, *parted, one["tensor"], one["barriers"]))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0]) + "".join("  " + cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, nargs="?", default=LIBRARY, help="a library, an object or a cubin")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="kernels whose names have all of these")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="status 1 and a line for each goal that is missed")
    given = parser.parse_args()
    try:
        kernels = read(given.library, given.arch, given.only)
    except Mistake as mistake:
        print(f"sass: {mistake}", file=sys.stderr)
        return 2
    print(table(kernels))
    if given.json:
        given.json.write_text(json.dumps({"arch": given.arch, "kernels": kernels}, indent=1) + "\n", encoding="utf-8")
    missed = list(misses(kernels)) if given.check else []
    for line in missed:
        print(f"MISSED {line}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
