"""The command line of bench/gpu/short.sh: a quarter of an hour on a GPU, in parts with limits."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import packing
from first import LIMITS, First
from second import fetch, second


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name not in LIMITS:
        raise argparse.ArgumentTypeError(f"give NAME=VALUE with a name of {', '.join(LIMITS)}")
    return name, value


def seconds(text: str) -> tuple[str, float]:
    name, value = pair(text)
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"the limit of {name} is {value!r}; give seconds") from None


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
    pack.add_argument("--travel-mib", type=float, default=60, help="most that may travel, the checkout included")
    pack.add_argument("--wheels", nargs="+", default=list(packing.WHEELS), help="packages that are missing there")
    pack.add_argument("--no-wheels", action="store_true")
    pack.add_argument("--python-version", default=packing.PYTHON, help="the python there")

    first = parts.add_parser("first", parents=[common, travel], help="prove, measure, begin to train")
    first.add_argument("--minutes", type=float, default=8, help="most that this call may take")
    first.add_argument("--until", type=float, default=13, help="training ends so many minutes after this call began")
    first.add_argument("--limit", type=seconds, nargs="+", default=[], metavar="PART=SECONDS")
    first.add_argument("--skip", nargs="+", default=[], choices=list(LIMITS), help="parts to leave out")
    first.add_argument("--command", type=pair, nargs="+", default=[], metavar="PART=SHELL", help="instead of its own")
    first.add_argument("--insist", action="store_true", help="native ops although their smoke test fails: to find out")
    first.add_argument("--device", default="cuda", help="cpu: a rehearsal at a tiny size")
    first.add_argument("--workers", type=int, default=8, help="processes of pytest (needs pytest-xdist; 0: one)")
    first.add_argument("--data", type=Path, help="training pairs; by default those in the pack")
    first.add_argument("--preset", default="small")
    first.add_argument("--batch", type=int, default=16)
    first.add_argument(
        "--step-batch", type=int, nargs="+", help="batches that the step is timed at; by default --batch"
    )
    first.add_argument("options", nargs="*", help="after --: further options of hida train")

    bring = argparse.ArgumentParser(add_help=False, parents=[common])
    bring.add_argument("--piece-mib", type=float, default=15, help="most of a file")
    bring.add_argument("--files", type=int, default=8, help="most files of a return")
    bring.add_argument("--return-mib", type=float, default=60, help="most of a return")
    parts.add_parser("second", parents=[bring], help="wait for the training, bring out its weights").add_argument(
        "--minutes", type=float, default=6.5, help="most that this call may take"
    )
    parts.add_parser("fetch", parents=[bring], help="bring what did not fit").add_argument(
        "--from", dest="first_piece", type=int, default=0, metavar="K", help="the first piece"
    )
    return made


def main() -> int:
    options = parser().parse_args()
    try:
        if options.part == "pack":
            packing.pack(options)
            return 0
        if options.part == "first":
            return First(options).run()
        return second(options) if options.part == "second" else fetch(options)
    except packing.Mistake as mistake:
        print(f"short: {mistake}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
