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
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tools"), str(ROOT / "tools/build")]

from machine_code import Instruction, blocks_of, count, in_flight, loops_of, read_functions, way_through  # noqa: E402
from toolchain import find_nvcc  # noqa: E402

LIBRARY = ROOT / "hida/_ops_cuda.so"
IN_FLIGHT, GATHER = 4, 90  # the goals: 16-byte loads on their way in NHWC kernels; instructions for a gathered vector
STREAMS, GATHERS = r"(ida|info_acon)_nhwc", r"deform_conv forward_kernel<(Bf16|Fp16)"  # the kernels they are of


class Mistake(Exception):
    """Something that the user can mend."""


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


def eights(name: str, counts: dict[str, int]) -> float:
    """Return for how many times eight elements, or gathered vectors of 16 bytes, the counted code is; 0: not known."""
    if made := re.search(r"(forward|weight_gradient)_kernel<\w+, (64|128)>", name):
        # A chunk of rows × 64 results: 512 vectors for 2·rows threads, who have 32 products of the tensor cores each.
        return max(counts["tensor"], 32) * 8 / int(made[2])
    if name.startswith("deform"):  # four corners of a point, or a line of G that goes to a pixel
        return 0 if counts["tensor"] else counts["loads"] / (1 if "input_gradient" in name else 4)
    if not (adapts := re.match(r"(ida|info_acon|leaky_norm)\w*_n(hwc|chw)", name)) or not counts["loads"]:
        return 0
    back, ida, whole = "backward" in name, adapts[1] == "ida", ", whole" in name
    wide = 2 if "f32" in name else 1  # 16 bytes are four numbers
    if counts["stores"]:
        return counts["stores"] / (((1 + ida + whole) if back else 1) * wide)  # dx, dγ, dlogits; y
    return counts["loads"] / (((2 + ida if back else 1) + whole) * wide)  # a sweep for sums: x; dy, γ; logits


def describe(name: str, code: list[Instruction]) -> dict:
    """Return what is read off a kernel's instructions."""
    blocks = blocks_of(code)
    everything = set(range(len(blocks)))
    loops = [(count(way_through(blocks, head, body)), body) for head, body in sorted(loops_of(blocks).items())]
    loops = [(counts, body) for counts, body in loops if counts["loads"]]
    inner = [(counts, body) for counts, body in loops if not any(other < body for _, other in loops)]
    parts = []
    for counts, body in inner or [(count(way_through(blocks, 0, everything)), everything)]:
        n = eights(name, counts)
        per = (
            {"per_eight": (counts["instructions"] - counts["tensor"]) / n, "mufu_per_eight": counts["mufu"] / n}
            if n
            else {}
        )
        parts.append({**counts, "in_flight": in_flight(blocks, body), "eights": n, **per})
    whole = count(one for block in blocks for one in block.body)
    return {"name": name, **whole, "in_flight": in_flight(blocks, everything), "loops": len(inner), "parts": parts}


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
        raise Mistake(
            f"there is no {name} {'in ' + where if name == 'cuobjdump' else 'on the PATH; install binutils'}."
        )
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
            if re.match(GATHERS, name) and part.get("per_eight", 0) > GATHER:
                yield f"{name}: {part['per_eight']:.0f} instructions for a gather; the goal is {GATHER} or fewer"


def joined(words: Iterable[str]) -> str:
    """Return words with + between them, and how often each is repeated."""
    runs = [(word, len(list(same))) for word, same in itertools.groupby(words)]
    return "+".join(word if times == 1 else f"{times}·{word}" for word, times in runs)


def table(kernels: list[dict]) -> str:
    """Return the lines that are printed."""
    head = ("kernel", "regs", "shared", "stack", "16 B", "in flight", "way", "per 8", "mufu", "tensor", "barriers")
    rows: list[tuple[str, ...]] = [head]
    for one in kernels:
        parts = one["parts"] if one["loads"] else []
        keys = ("in_flight", "instructions", "per_eight", "mufu_per_eight")
        columns = [[part[key] for part in parts if key in part] for key in keys]
        first = [one["name"], one["registers"], one["shared"], f"{one['stack']}/{one['spills']}", one["loads"]]
        parted = [joined(f"{value:.0f}" for value in column) or "–" for column in columns]
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
