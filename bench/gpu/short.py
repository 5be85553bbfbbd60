"""The command line of bench/gpu/short.sh: a quarter of an hour on a GPU, in parts with limits."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.gpu import packing
from bench.gpu.first import LIMITS, First
from bench.gpu.parts import json_of
from bench.gpu.second import fetch, pids, second

T = TypeVar("T", int, float)
KINDS = {float: "a number", int: "a whole number"}


def number(kind: type[T], least: T) -> Callable[[str], T]:
    """Return what reads a number that is not below ``least``."""

    def read(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is not {KINDS[kind]} from {least} on")
        return value

    return read


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value or name not in LIMITS:
        raise argparse.ArgumentTypeError(f"give NAME=VALUE with a name of {', '.join(LIMITS)}")
    return name, value


def seconds(text: str) -> tuple[str, float]:
    name, value = pair(text)
    return name, above_zero(value)


above_zero, whole = number(float, 0.01), number(int, 1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="short.sh", description=__doc__)
    parts = made.add_subparsers(dest="part", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-out")), help="what is brought back")
    common.add_argument("--work", type=Path, default=Path("build/short"), help="what stays on the machine")
    travel = argparse.ArgumentParser(add_help=False)
    travel.add_argument("--pack", type=Path, default=Path("gpu-pack"), help="the folder that travels")
    travel.add_argument("--arch", default="9.0a", help="the chip: 9.0a is an H100 or H200")

    pack = parts.add_parser("pack", parents=[travel], help="put together what must travel")
    pack.add_argument("--data", type=Path, required=True, help="folder of hida prepare, or a packed file")
    pack.add_argument("--libraries", type=Path, help="folder with built libraries; by default they are built")
    pack.add_argument("--travel-mib", type=above_zero, default=60, help="most that may travel, with the checkout (60)")
    pack.add_argument("--wheels", nargs="+", default=list(packing.WHEELS), help="packages that are missing there")
    pack.add_argument("--no-wheels", action="store_true", help="nothing is missing there")
    pack.add_argument("--python-version", default=packing.PYTHON, help="the python there")

    first = parts.add_parser("first", parents=[common, travel], help="prove, measure, begin to train")
    first.add_argument("--minutes", type=above_zero, default=8, help="most that this call may take (8)")
    first.add_argument("--until", type=above_zero, default=13, help="training ends so long after this call began (13)")
    first.add_argument("--limit", type=seconds, nargs="+", default=[], metavar="PART=SECONDS", help="of a part")
    first.add_argument("--skip", nargs="+", default=[], choices=list(LIMITS), help="parts to leave out")
    first.add_argument("--command", type=pair, nargs="+", default=[], metavar="PART=SHELL", help="instead of its own")
    first.add_argument("--insist", action="store_true", help="native ops although their smoke test fails: to find out")
    first.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal at a tiny size")
    first.add_argument("--workers", type=number(int, 0), default=8, help="of pytest (needs pytest-xdist; 0: one)")
    first.add_argument("--data", type=Path, help="training pairs; by default those in the pack")
    first.add_argument("--preset", default="small", help="what is timed and trained (small)")
    first.add_argument("--batch", type=whole, default=16, help="pairs an iteration, timed and trained with (16)")
    first.add_argument(
        "--step-batch", type=whole, nargs="+", help="batches that the step is timed at; by default --batch"
    )
    first.add_argument("options", nargs="*", help="after --: further options of hida train")

    bring = argparse.ArgumentParser(add_help=False, parents=[common])
    bring.add_argument("--piece-mib", type=above_zero, default=15, help="most of a file (15); the same in every call")
    bring.add_argument("--files", type=whole, default=8, help="most files of a return (8)")
    bring.add_argument("--return-mib", type=above_zero, default=60, help="most of a return (60)")
    parts.add_parser("second", parents=[bring], help="wait for the training, bring out its weights").add_argument(
        "--minutes", type=above_zero, default=6.5, help="most that this call may take (6.5)"
    )
    parts.add_parser("fetch", parents=[bring], help="bring what did not fit").add_argument(
        "--from", dest="first_piece", type=number(int, 0), default=0, metavar="K", help="the first piece"
    )
    return made


def require_runnable(options) -> None:
    """Find at once what would cost the lent minutes later; Mistake then."""
    work, run = options.work, options.work / "run"
    if running := pids(json_of(work / "train-state.json")):
        raise packing.Mistake(
            f"a training still runs in '{work}' (process {running[0]}); bring it out with the part second, or choose "
            "another --work."
        )
    if work.is_dir() and any(work.iterdir()) and not (work / "logs").is_dir():
        raise packing.Mistake(f"'{work}' holds other files; choose another --work.")
    if "train" in options.skip or "train" in dict(options.command):
        return
    if run.exists():
        raise packing.Mistake(f"'{run}' holds an earlier training; bring it out, or choose another --work.")
    data = options.data or options.pack / "train.zip"
    if not data.exists():
        raise packing.Mistake(f"there is no '{data}'; make it with the part pack, or give --pack or --data.")
    preset = options.preset
    if not (packing.ROOT / f"hida/presets/{preset}.toml").is_file() and not Path(preset).is_file():
        raise packing.Mistake(f"there is no preset '{preset}'; give one of hida presets, or a TOML file.")


def main() -> int:
    options = parser().parse_args()
    try:
        if options.part == "pack":
            packing.pack(options)
            return 0
        if options.part == "first":
            require_runnable(options)
            return First(options).run()
        return second(options) if options.part == "second" else fetch(options)
    except packing.Mistake as mistake:
        print(f"short: {mistake}", file=sys.stderr)
    except OSError as error:
        print(f"short: '{error.filename}': {error.strerror}; choose other folders.", file=sys.stderr)
    except KeyboardInterrupt:
        print("short: interrupted", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
