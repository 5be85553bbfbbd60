"""Put one plausible fault after another into the code, and say which tests notice it and which faults nobody does.

    python tools/mutants.py                     all of them, about half an hour
    python tools/mutants.py scoot csrc/cpu      those of some modules
    python tools/mutants.py --jobs 2 metrics    two at a time

``tools/mutants.txt`` lists them: the module and the tests that should notice, then the lines to take out and to put in.
``(pure)`` behind the tests leaves the native libraries out. A copy of the checkout gets one fault at a time, and the
tests run in it until one fails. Faults in ``csrc/cpu`` are compiled first; those in ``csrc/cuda`` are, for a CPU, by
the tests of the emulation. The exit status is 1 when a fault survives, and 2 when a line that a fault replaces is gone:
then the list must follow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 900  # seconds of the tests of one fault: one that hangs is noticed too


class Mutant(NamedTuple):
    """A fault: in ``module`` (of hida, or a path in csrc) ``old`` becomes ``new``; ``tests`` should notice."""

    module: str
    old: str
    new: str
    tests: list[str]
    pure: bool

    @property
    def path(self) -> str:
        return self.module if self.module.startswith("csrc/") else f"hida/{self.module}.py"


def read_list() -> list[Mutant]:
    """Return the faults of ``mutants.txt``, whose paragraphs are ``module: tests``, ``- old`` and ``+ new``."""
    found = []
    for paragraph in (ROOT / "tools/mutants.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        head, *lines = (line for line in paragraph.split("\n") if not line.startswith("#"))
        module, tests = head.split(": ")
        old, new = ("\n".join(line[2:] for line in lines if line[0] == mark) for mark in "-+")
        found.append(Mutant(module, old, new, tests.removesuffix(" (pure)").split(), tests.endswith(" (pure)")))
    return found


def killed_by(folder: Path, mutant: Mutant) -> str:
    """Run the mutant's tests in ``folder``; return the first that fails, or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HIDA_BUILD_NATIVE": "1", "HIDA_BUILD_CUDA": "0"}
    if not mutant.path.startswith("csrc/"):
        environment["CXX"] = "none"  # no emulation: compiling it takes longer than most tests
    elif not mutant.path.startswith("csrc/cuda/"):
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        if subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode:
            return "compiler"
    tests = [f"tests/{name}" for name in mutant.tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "-rfE", *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return f"{LONGEST} s without an end"
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    # 5: all tests were left out, which notices nothing.
    return failed[0] if failed else ("" if done.returncode in (0, 5) else f"exit status {done.returncode}")


def copy(folder: Path, pure: bool) -> None:
    """Copy what git lists, and the libraries that are built in place."""
    words = ["git", "ls-files", "-z"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    built = [] if pure else [str(path.relative_to(ROOT)) for path in (ROOT / "hida").glob("*.so")]
    for name in [*filter(None, listed.split("\0")), *built]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def tried(group: Sequence[Mutant]) -> Iterator[str]:
    """Try faults one after another in one copy; yield "noticed", "survived" or "stale" of each, and print it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder, group[0].pure)
        for mutant in group:
            path, began = folder / mutant.path, time.monotonic()
            text = path.read_text(encoding="utf-8")
            if text.count(mutant.old) != 1:
                print(f"{mutant.module:<28} STALE: {text.count(mutant.old)} times: {mutant.old}", flush=True)
                yield "stale"
                continue
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            found = killed_by(folder, mutant)
            path.write_text(text, encoding="utf-8")
            what = found or f"SURVIVED: {mutant.new.strip() or mutant.old.strip()}"
            print(f"{mutant.module:<28} {what}  ({time.monotonic() - began:.0f} s)", flush=True)
            yield "noticed" if found else "survived"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names of modules; without, all of them")
    parser.add_argument("--jobs", type=int, default=1, help="how many copies are tested at a time")
    given = parser.parse_args()
    mutants = read_list()
    unknown = [word for word in given.words if not any(word in m.module for m in mutants)]
    if unknown:
        parser.error(f"there is no fault in a module named {unknown[0]!r}; without words all are tried")
    chosen = [m for m in mutants if not given.words or any(word in m.module for word in given.words)]
    absent = [name for m in chosen for name in m.tests if not (ROOT / "tests" / name).exists()]
    if absent:
        parser.error(f"there are no tests {absent[0]!r}, which the list names")
    # What is compiled shares a copy, so that only what a fault changes is compiled again.
    native = [m for m in chosen if m.module.startswith("csrc/")]
    groups = [*([native] if native else []), *([m] for m in chosen if m not in native)]
    with ThreadPoolExecutor(given.jobs) as pool:
        ends = [end for ended in pool.map(lambda group: list(tried(group)), groups) for end in ended]
    print(f"{ends.count('noticed')} of {len(chosen)} faults are noticed")
    return 2 if "stale" in ends else int("survived" in ends)


if __name__ == "__main__":
    sys.exit(main())
