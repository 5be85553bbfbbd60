"""Predict the times of the CUDA ops and of a training step on an H100, from counts read off the code; no GPU is needed.

    python bench/roofline.py                            print the tables
    python bench/roofline.py --sass sass.json --write   with what tools/sass.py read (--json), into docs/kernels.md
    python bench/roofline.py --step trace.txt           with the kernels of a training step that bench/trace.py counted
    python bench/roofline.py --before general           the ops beside the kernels of the other state before

bench/chip.py has the model and its constants, bench/counts.py what each op launches, and its states: "general", "two
sweeps" and "now", whose instructions come from --sass; without it they are those of "two sweeps".

A training step of 16 images: HIDA's ops as above; convolutions by their FLOP; a cast takes a launch; any other kernel
what it took in the trace of `small` that an H100 made (STEP_US); changes of layout and reductions more in `released`,
in proportion to the width. What a step takes "now" is what was measured before, less what is predicted to be gone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from bench import counts  # noqa: E402
from bench.chip import LAUNCH, TENSOR, Kernel  # noqa: E402
from bench.counts import DIRECTIONS, OPS, STATES, Read, floor_of, kernels_of, microseconds  # noqa: E402
from hida.cli.output import make_printable  # noqa: E402

DOCUMENT, RESULTS = ROOT / "docs/kernels.md", ROOT / "bench/results/h100.json"
MARKS = "<!-- predicted: written by bench/roofline.py -->", "<!-- end of what is predicted -->"
PLANES, BATCHES, LAYOUTS = ((64, 128), (128, 64), (256, 32), (512, 16)), (4, 16, 64), ("nchw", "nhwc")
# Measured on an H100 with the general kernels, 16 images, µs (docs/kernels.md); with the specialised ones: RESULTS.
GENERAL = {
    ("nchw", 128): (80.7, 192.0),
    ("nhwc", 128): (887.0, 3257.0),
    ("nchw", 64): (61.2, 107.0),
    ("nhwc", 64): (488.0, 1371.0),
}
# deform_conv2d: instructions for a gathered vector before; to find a sampling point: read off find_sample, and assumed
# once shares are premultiplied.
GATHER, SAMPLE = 182, (480, 150)


class Step(NamedTuple):
    """A training step of 16 images before: by bench/trace.py at ac1a7ee, and measured, ms (RESULTS)."""

    kernels: dict[str, int]
    measured: float


KINDS = ("cast", "layout", "inside", "hida", "multi-tensor", "reduction", "elementwise", "joined", "resized")
STEPS = {
    ("small", "nhwc"): Step(dict(zip(KINDS, (417, 29, 84, 62, 16, 209, 412, 33, 13), strict=True)), 15.28),
    ("small", "nchw"): Step(dict(zip(KINDS, (417, 1, 0, 62, 16, 209, 400, 33, 13), strict=True)), 14.05),
    ("released", "nhwc"): Step(dict(zip(KINDS, (417, 29, 84, 62, 18, 211, 412, 33, 13), strict=True)), 29.08),
    ("released", "nchw"): Step(dict(zip(KINDS, (417, 1, 0, 62, 18, 211, 400, 33, 13), strict=True)), 26.49),
}
WIDTH = {"small": (24, 32), "released": (64, 64)}  # base_width of the generator and the discriminator
# FLOP of an image, forward, by torch's FlopCounterMode: generator and discriminator. A step has the first three times
# (forward, two gradients), the second eight times (twice all three; once two).
FLOP = {"small": 3 * 4.22e9 + 8 * 1.82e9, "released": 3 * 29.15e9 + 8 * 7.19e9}
# Fitted to the H100: the share of TENSOR that convolutions reach: 3.2 ms in the trace of small; what is left of the
# step of released. And by the same trace, in µs a kernel: its 2.7 ms of copies and changes of layout (3.5 less casts)
# in NHWC, the 2.6 ms in NCHW, which are cuDNN's own, by convolutions; 1.1 ms of reductions; 6.4 ms of the rest.
CONVOLUTIONS = {"small": 0.17, "released": 0.35}
STEP_US = {"layout": 24.0, "inside": 24.0, "reduction": 5.3, "multi-tensor": 13.5, "elementwise": 13.5}
STEP_US |= {"joined": 13.5, "resized": 13.5, "cast": 1e6 * LAUNCH, "cuDNN's": 9.9}
GROWING = {"layout", "inside", "reduction", "cuDNN's"}
IMAGES, OWN = 16, 267  # of a step; its convolutions, each of which in NCHW has cuDNN's conversions


# ---- ops ------------------------------------------------------------------------------------------------------------


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]], words: int) -> Iterator[str]:
    """Yield the lines of a table whose first ``words`` columns are of words."""
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * words + "---:|" * (len(head) - words)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def number(us: float) -> str:
    return f"{us:.1f}" if us < 99.5 else f"{us:,.0f}"


def predicted(state: str, op: str, back: bool, plane: counts.Plane, layout: str, read: Read) -> float:
    """Return the µs of an op."""
    return microseconds(kernels_of(state, op, back, plane, layout, read))


def op_rows(read: Read, before: str) -> Iterator[list[str]]:
    """Yield a row for each op, layout and map: floor, before and now, forward and backward, of each batch."""
    for op in OPS:
        for layout in LAYOUTS:
            for channels, side in PLANES:
                cells = []
                for back in (False, True):
                    planes = [(channels, side, batch) for batch in BATCHES]
                    floors = [floor_of(op, back, plane) for plane in planes]
                    times = [[predicted(s, op, back, p, layout, read) for p in planes] for s in (before, "now")]
                    cells += [" / ".join(map(number, column)) for column in (floors, *times)]
                    cells.append(f"{floors[1] / times[1][1]:.0%}")
                yield [f"{op}, {layout.upper()}", f"{channels} @ {side}²", *cells]


def specialised(results: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Return what was measured of ida with the specialised kernels, 16 images, µs, as GENERAL."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in json.loads(results.read_text(encoding="utf-8"))["ops"]["rows"]:
        case = row["case"]
        if (row["method"], case["op"], case["batch"], case["dtype"]) == ("native", "ida", IMAGES, "bfloat16"):
            found.setdefault((case["layout"], case["side"]), {})[row["direction"]] = 1e3 * row["median_ms"]
    return {key: (times["fwd"], times["bwd"]) for key, times in found.items() if {*DIRECTIONS} <= {*times}}


def measured_rows(results: Path, read: Read) -> Iterator[list[str]]:
    """Yield what was measured of ida beside what is predicted for the same kernels."""
    for state, measured in zip(STATES, (GENERAL, specialised(results)), strict=False):
        for (layout, side), times in sorted(measured.items(), key=lambda item: (item[0][0], -item[0][1])):
            plane = ({s: c for c, s in PLANES}[side], side, IMAGES)
            for back, us in enumerate(times):
                ours = predicted(state, "ida", bool(back), plane, layout, read)
                what = f"{layout.upper()}, {plane[0]} @ {side}², {DIRECTIONS[back]}"
                yield [state, what, number(us), number(ours), f"{ours / us - 1:+.0%}".replace("-", "−")]


def deform_rows(read: Read) -> Iterator[list[str]]:
    """Yield the rows of deform_conv2d."""
    gather = read.gather or GATHER
    for batch in BATCHES:
        plane = 64, 128, batch
        times = [counts.deform_large(plane, *of) for of in ((GATHER, SAMPLE[0]), (gather, SAMPLE[gather < GATHER]))]
        yield ["64→64 @ 128², fwd", str(batch), *(number(microseconds(kernels)) for kernels in times), ""]
    for shape, measured in (((512, 512, 2), (19.8, 71.8)), ((1024, 512, 4), (0, 0))):
        for batch in (4, 16):
            for back, us in enumerate(measured):
                ours = microseconds(counts.deform_small(*shape, batch, bool(back)))
                what = f"{shape[0]}→{shape[1]} @ {shape[2]}², {DIRECTIONS[back]}"
                yield [what, str(batch), number(ours), "", number(us) if us and batch == IMAGES else ""]


# ---- the training step ----------------------------------------------------------------------------------------------


def hida_ms(state: str, layout: str, width: int, read: Read) -> float:
    """Return what HIDA's ops take in a step: seven ida, 22 info_acon with one θ per plane, two deform_conv2d."""
    decoder = [(8, 2), (8, 4), (8, 8), (8, 16), (4, 32), (2, 64), (1, 128)]
    encoder = [(2, 128)] * 3 + [(2, 64), (4, 32), (8, 16), (8, 8), (8, 4), (8, 2)]
    calls = [("ida", of) for of in decoder] + [("info_acon, θ per plane", of) for of in encoder + decoder]
    us = microseconds([Kernel(once=4)] * 12)  # info_acon of one channel
    for back in (False, True):
        for op, (times, side) in calls:
            us += predicted(state, op, back, (times * width, side, IMAGES), layout, read)
        for channels, out, side in ((8, 8, 2), (16, 8, 4)):
            us += microseconds(counts.deform_small(channels * width, out * width, side, IMAGES, back))
    return us / 1e3


def norms_ms(state: str, layout: str, preset: str, read: Read) -> float:
    """Return what the leaky_norms of a step take: six of the generator, four of the discriminator, twice."""
    of, its = WIDTH[preset]
    planes = [(times * of, side, IMAGES) for times, side in ((2, 64), (4, 32), (8, 16), (8, 8), (8, 4), (8, 2))]
    scales = ((1, 129), (2, 65), (4, 33), (8, 34))
    planes += [(times * its, side, many * IMAGES) for many in (1, 2) for times, side in scales]
    return sum(predicted(state, "leaky_norm", back, p, layout, read) for p in planes for back in (False, True)) / 1e3


def kind_ms(kind: str, kernels: int, preset: str) -> float:
    """Return what the kernels of a kind take."""
    fixed, wide = 1e6 * LAUNCH, WIDTH[preset][0] / WIDTH["small"][0] if kind in GROWING else 1
    return kernels * (fixed + (STEP_US[kind] - fixed) * wide) / 1e3


def read_steps(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Return the numbers of kernels in a table that bench/trace.py printed."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines() if line[:1] == "|"]
    head = next((row for row in rows if row[:2] == ["preset", "layout"]), [])
    found = {}
    for row in rows:
        if len(row) == len(head) and row[2].replace(",", "").isdigit():
            found[row[0], row[1]] = {k: int(n.replace(",", "")) for k, n in zip(head[2:], row[2:], strict=True)}
    if not found:
        raise ValueError("no row of a preset and its kernels")
    return found


def step_rows(now: dict[tuple[str, str], dict[str, int]], read: Read) -> Iterator[list[str]]:
    """Yield the rows of the training step."""
    kinds = [kind for kind in KINDS if kind != "hida"]
    for (preset, layout), step in STEPS.items():
        after = {**step.kernels, **now.get((preset, layout), {})}
        hida = [hida_ms(state, layout, WIDTH[preset][0], read) for state in STATES[1:]]
        before = hida[0] + 1e3 * IMAGES * FLOP[preset] / TENSOR / CONVOLUTIONS[preset]
        before += sum(kind_ms(kind, step.kernels[kind], preset) for kind in kinds)
        before += kind_ms("cuDNN's", OWN * (layout == "nchw"), preset)
        if after["hida"] >= step.kernels["hida"] + 28:  # leaky_norm has become an op
            hida[1] += norms_ms("now", layout, preset, read)
        gone = hida[0] - hida[1] + sum(kind_ms(kind, step.kernels[kind] - after[kind], preset) for kind in kinds)
        ms = step.measured - gone
        copies = [kernels["layout"] + kernels["inside"] for kernels in (step.kernels, after)]
        cells = [f"{step.kernels['cast']} → {after['cast']}", f"{copies[0]} → {copies[1]}"]
        cells += [f"{hida[0]:.2f} → {hida[1]:.2f}", f"{before:.1f}", f"{step.measured:.1f}", f"{ms:.1f}"]
        yield [preset, layout.upper(), *cells, *(f"{1e3 * IMAGES / t:,.0f}" for t in (step.measured, ms))]


# ---- the document ---------------------------------------------------------------------------------------------------


def report(read: Read, now: dict[tuple[str, str], dict[str, int]], results: Path, before: str) -> str:
    """Return what is between the marks."""
    source = "the kernels as built" if read.nhwc else "the counts of the kernels before"
    columns = [f"{what}, {d}" for d in DIRECTIONS for what in ("floor", before, "now", "share now")]
    step = ("casts", "copies of layout", "HIDA's ops", "predicted before", "measured before", "predicted now")
    parts: list[str | Iterator[str]] = [
        f"**Predicted, not measured**, with {source}: µs on an H100, bfloat16, {' / '.join(map(str, BATCHES))} images;",
        "the share of the floor at 16.\n",
        markdown(("op", "map", *columns), op_rows(read, before), 2),
        "\nThe same model beside what was measured (ida, 16 images, µs). No constant is fitted; what waits for what,",
        "what the second-level cache keeps from one kernel to the next and the 900 instructions of general kernels",
        "in NCHW were, however, settled with these numbers at hand.\n",
        markdown(("kernels", "case", "measured", "predicted", "error"), measured_rows(results, read), 2),
        "\ndeform_conv2d, µs:\n",
        markdown(("case", "images", "before", "now", "measured"), deform_rows(read), 1),
        "\nA training step of 16 images, ms: all but the ops and casts is fitted to the H100's trace of `small`, the",
        "speed of convolutions in `released` to its step. `small` is measured as the sum of its kernels.\n",
        markdown(("preset", "layout", *step, "images/s before", "predicted now"), step_rows(now, read), 2),
    ]
    return "\n".join(line for part in parts for line in ([part] if isinstance(part, str) else part))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sass", type=Path, metavar="JSON", help="what tools/sass.py --json wrote")
    parser.add_argument("--step", type=Path, metavar="FILE", help="what bench/trace.py printed")
    parser.add_argument("--before", choices=STATES[:2], default=STATES[1], help="the state beside now, of the ops")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what was measured")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--write", action="store_true", help="put the tables between their marks in the document")
    given = parser.parse_args()
    name: Path | None = None
    try:
        read, now = Read({}, {}, 0), {}
        if name := given.sass:
            read = counts.read_sass(json.loads(name.read_text(encoding="utf-8"))["kernels"])
        if name := given.step:
            now = read_steps(name.read_text(encoding="utf-8"))
        name = given.results
        text = report(read, now, name, given.before)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"roofline: '{name}' is not what was asked for ({error!r}).", file=sys.stderr)
        return 2
    print(text)
    if given.write:
        document = given.document.read_text(encoding="utf-8")
        if any(document.count(mark) != 1 for mark in MARKS):
            print(f"roofline: {given.document} has not one pair of the lines {' and '.join(MARKS)}.", file=sys.stderr)
            return 2
        between = re.compile(f"({re.escape(MARKS[0])}\n).*(\n{re.escape(MARKS[1])})", re.DOTALL)
        written = between.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", document)
        given.document.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    make_printable()
    sys.exit(main())
