"""Read the machine code of the CUDA kernels, and print a line of what limits each: no GPU is needed.

    python tools/sass.py                            every kernel of hida/_ops_cuda.so, for sm_90a
    python tools/sass.py --only ida_nhwc bf16       those whose name has all these words; the first is the file's
    python tools/sass.py --arch sm_80 kernel.cubin  another chip, another library, object or cubin
    python tools/sass.py --json before.json         keep all that was read
    python tools/sass.py --against before.json      only what has changed since then, old → new
    python tools/sass.py --check                    say which goals are missed (status 1)

The columns: registers; static shared memory in bytes (from 9.0 on the system takes 1024 of them); stack in bytes and
spills (loads and stores of local memory); 16-byte loads from global memory; then, for each inner loop that has some, or
for the whole kernel where no loop has: how many are on their way at a time before any of their results is waited for;
its instructions; instructions and MUFU (powers, reciprocals) for eight elements, of deform_conv for a gathered vector
of 16 bytes and without those of the tensor cores (– in deform_conv_tiny's products, which gather nothing); tensor core
instructions; barriers of a block or a cluster. Of more than three loops in a row that differ: how many, and from what
to what.

The goals of --check: no kernel has a stack or spills; in each loop that has 16-byte loads of ida_nhwc,
ida_nhwc_backward (instance_norm_modulate, ``none``, included) and info_acon_nhwc four of them or more are on their way;
a gathered vector takes forward_kernel of deform_conv 90 instructions or fewer in bf16 and fp16. No goal: leaky_norm,
NCHW, the loads of general kernels, gathers of float32, float64 and TF32 and those of the gradients.

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
from collections.abc import Iterable, Iterator, Sequence
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tools"), str(ROOT / "tools/build")]

from machine_code import Instruction, blocks_of, count, in_flight, loops_of, read_functions, way_through  # noqa: E402
from toolchain import find_nvcc  # noqa: E402

from hida.cli.run import run_command  # noqa: E402
from hida.errors import HidaError  # noqa: E402
from hida.files.places import require_file_place  # noqa: E402
from hida.files.writing import atomic_path  # noqa: E402

LIBRARY = ROOT / "hida/_ops_cuda.so"
BUILD = "HIDA_BUILD_CUDA=1 python setup.py build_ext --inplace"
IN_FLIGHT, GATHER = 4, 90  # the goals: 16-byte loads on their way in NHWC kernels; instructions for a gathered vector
STREAMS, GATHERS = r"(ida|info_acon)_nhwc", r"deform_conv forward_kernel<(Bf16|Fp16)"  # the kernels they are of


@functools.cache
def enumerators() -> dict[str, list[str]]:
    """Return the names of the values of csrc's enumerations."""
    files = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cu")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    found = re.findall(r"enum class (\w+)[^{;]*\{([^}]*)\}", text)
    return {name: [word.split("=")[0].strip() for word in words.split(",")] for name, words in found}


def short_name(mangled: str, demangled: str) -> str:
    """Return the file, the function and its template arguments, as ``ida_nhwc kernel<bf16, whole>``."""
    file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]{8}", mangled)
    text = demangled.replace("(anonymous namespace)", "")
    for kind, names in enumerators().items():
        text = re.sub(rf"\([\w:]*\b{kind}\)(\d+)", lambda m, n=names: n[int(m[1])], text)  # type: ignore[misc]
    text = re.sub(r"\([\w:]+\)(?=[\d-])", "", text)  # an enumeration, or a width, that is not known
    name = re.sub(r"\b\w*::", "", re.sub(r"^void ", "", text).split("(")[0]).replace(":", "")
    return f"{file[1] if file else '?'} {name}"


def eights(name: str, counts: dict[str, int]) -> float:
    """Return for how many times eight elements, or gathered vectors of 16 bytes, the counted code is; 0: not known."""
    if made := re.search(r"(forward|weight_gradient)_kernel<\w+, (64|128)>", name):
        # A chunk of rows × 64 results: 512 vectors for 2·rows threads, who have 32 products of the tensor cores each.
        return max(counts["tensor"], 32) * 8 / int(made[2])
    if re.match(r"deform_conv_tiny (for|back)ward", name):  # products, whose operands were gathered before
        return 0
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
        raise HidaError(
            f"there is no {name} {'in ' + where if name == 'cuobjdump' else 'on the PATH; install binutils'}."
        )
    done = subprocess.run([program, *arguments], input=text, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise HidaError(f"{name} cannot read {arguments[-1]} ({said[-1] if said else 'it says nothing'}).")
    return done.stdout


def has(name: str, words: Iterable[str]) -> bool:
    """Return whether a kernel's name has all of the words."""
    return all(word.lower() in name.lower() for word in words)


def require_arch(library: Path, arch: str) -> None:
    """Check that a library has kernels for a chip.

    Raises:
        HidaError: if it has not, or the chip's name is not one; it says which names there are.
    """
    if found := re.fullmatch(r"(?:sm_|compute_)?(\d+)\.?(\d)([af]?)", arch.lower()):
        name = f"sm_{found[1]}{found[2]}{found[3]}"
        if name != arch:
            raise HidaError(f"{arch!r} is no name of cuobjdump's; say {name}.")
    listed = re.findall(r"\.(sm_\w+)\.cubin", tool("cuobjdump", "-lelf", str(library)))
    if listed and not resources_of(library, arch if arch in listed else ""):
        there = [one for one in dict.fromkeys(listed) if resources_of(library, one)]
        raise HidaError(f"'{library}' has no kernels for {arch}, but for {', '.join(there) or 'no chip'} (--arch).")


def resources_of(library: Path, arch: str) -> list[tuple[str, str, str, str]]:
    """Return each function's name, registers, stack and shared memory."""
    used = tool("cuobjdump", "-res-usage", "-arch", arch, str(library)) if arch else ""
    return re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", used)


def read(library: Path, arch: str, words: Iterable[str] = ()) -> list[dict]:
    """Return what is read off the kernels of a library whose short names have all of the words.

    Raises:
        HidaError: if there is no library, no kernel or no tool.
    """
    if library.is_dir():
        raise HidaError(f"'{library}' is a folder; name a library, an object or a cubin.")
    if not library.is_file():
        raise HidaError(f"there is no '{library}'; build it ({BUILD}).")
    require_arch(library, arch)
    resources = resources_of(library, arch)
    if not resources:
        raise HidaError(f"'{library}' has no kernels for {arch}; name what it was built for (--arch).")
    names = [mangled for mangled, *_ in resources]
    short = dict(zip(names, map(short_name, names, tool("c++filt", text="\n".join(names)).splitlines()), strict=True))
    chosen = [mangled for mangled in names if has(short[mangled], words)]
    if not chosen:
        raise HidaError(f"no kernel's name has all of {' '.join(words)!r}; without --only all are printed.")
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
        name, parts = one["name"], one["parts"]
        if one["stack"] or one["spills"]:
            yield f"{name}: {one['stack']} bytes of stack, {one['spills']} spills; the goal is none"
        for n, part in enumerate(parts, 1):
            where = f"loop {n} of {len(parts)}: " if len(parts) > 1 else ""
            if re.match(STREAMS, name) and part["in_flight"] < IN_FLIGHT:
                yield f"{name}: {where}{part['in_flight']} loads of 16 bytes on their way; the goal is {IN_FLIGHT}"
            if re.match(GATHERS, name) and part.get("per_eight", 0) > GATHER:
                yield f"{name}: {where}{part['per_eight']:.4g} instructions for a gather; the goal is {GATHER}"


def joined(values: Iterable[float]) -> str:
    """Return numbers with + between them, and how often each is repeated; of many, from what to what; – of none."""
    numbers = [f"{value:.0f}" for value in values]
    runs = [(number, len(list(same))) for number, same in itertools.groupby(numbers)]
    if len(runs) > 3:
        return f"{len(numbers)}·({min(numbers, key=int)}–{max(numbers, key=int)})"
    return "+".join(number if times == 1 else f"{times}·{number}" for number, times in runs) or "–"


HEAD = ("kernel", "regs", "shared", "stack", "16 B", "in flight", "way", "per 8", "mufu", "tensor", "bars")
WIDTHS = (58, 4, 6, 5, 4, 9, 13, 13, 5, 6, 4)  # of any kernels, so that a kernel's line stays the same
CHANGING = ("regs", "stack", "in flight", "way", "per 8", "mufu")


def cells(one: dict) -> tuple[str, ...]:
    """Return what is printed of a kernel."""
    parts = one["parts"] if one["loads"] else []
    keys = ("in_flight", "instructions", "per_eight", "mufu_per_eight")
    parted = [joined(part[key] for part in parts if key in part) for key in keys]
    first = [one["name"], one["registers"], one["shared"], f"{one['stack']}/{one['spills']}", one["loads"]]
    return tuple(map(str, (*first, *parted, one["tensor"], one["barriers"])))


def table(kernels: list[dict]) -> str:
    """Return the lines that are printed."""
    return "\n".join(
        " ".join([row[0].ljust(WIDTHS[0]), *(cell.rjust(w) for cell, w in zip(row[1:], WIDTHS[1:], strict=True))])
        for row in (HEAD, *map(cells, kernels))
    )


def changes(old: list[dict], new: list[dict], words: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each kernel that has changed, come or gone; of the old ones those whose names have the words."""
    before = {one["name"]: dict(zip(HEAD, cells(one), strict=True)) for one in old if has(one["name"], words)}
    for one in new:
        now, then = dict(zip(HEAD, cells(one), strict=True)), before.pop(one["name"], None)
        changed = [f"{key} {then[key]} → {now[key]}" for key in CHANGING if then[key] != now[key]] if then else ["new"]
        if changed:
            yield f"{one['name'].ljust(WIDTHS[0])} {', '.join(changed)}"
    yield from (f"{name.ljust(WIDTHS[0])} gone" for name in before)


def read_before(path: Path, arch: str) -> list[dict]:
    """Return the kernels of a file of --json.

    Raises:
        HidaError: if it is none, or of another chip.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        of, kernels = found["arch"], found["kernels"]
        for one in kernels:
            cells(one)
    except FileNotFoundError:
        raise HidaError(f"there is no '{path}'; make it with python tools/sass.py --json {path}.") from None
    except (ValueError, KeyError, TypeError):
        raise HidaError(f"'{path}' was not written by --json; name a file that was.") from None
    if of != arch:
        raise HidaError(f"'{path}' is of {of}, not of {arch}; say --arch {of}, or make another.")
    return kernels


def newer_source(library: Path) -> Path | None:
    """Return a source that was changed after the library was built from it; none of a library that is not LIBRARY."""
    if library.resolve() != LIBRARY or not library.is_file():
        return None
    files = (p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cu", ".h") and p.parent.name != "cpu")
    newest = max(files, key=lambda path: path.stat().st_mtime)
    return newest if newest.stat().st_mtime > library.stat().st_mtime else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = "a library, an object or a cubin (default: hida/_ops_cuda.so)"
    parser.add_argument("library", type=Path, nargs="?", default=LIBRARY, help=told)
    parser.add_argument("--arch", default="sm_90a", help="the chip, as cuobjdump calls it (default: %(default)s)")
    told = "kernels whose names have all of these, in capitals or not (default: all)"
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=told)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was read there")
    told = "what --json wrote before: print only the kernels that have changed since"
    parser.add_argument("--against", type=Path, metavar="FILE", help=told)
    parser.add_argument("--check", action="store_true", help="status 1 and a line for each goal that is missed")
    given = parser.parse_args(argv)
    if given.json:
        require_file_place(given.json)
    before = read_before(given.against, given.arch) if given.against else None
    if newer := newer_source(given.library):
        print(f"sass: {newer.relative_to(ROOT)} is newer than the library; build it again ({BUILD}).", file=sys.stderr)
    kernels = read(given.library, given.arch, given.only)
    if before is None:
        print(table(kernels))
    else:
        print("\n".join(changes(before, kernels, given.only)) or "No kernel has changed.")
    if given.json:
        with atomic_path(given.json) as path:
            text = json.dumps({"arch": given.arch, "kernels": kernels}, indent=1)
            path.write_text(text + "\n", encoding="utf-8")
    missed = list(misses(kernels)) if given.check else []
    for line in missed:
        print(f"MISSED {line}")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(run_command(main, name="sass"))
