"""Predict the times of the CUDA ops and of a training step on an H100, from counts read off the code; no GPU is needed.

    python bench/roofline.py                                              print the tables without "now"
    python bench/roofline.py --sass sass.json --step trace.txt            print all of them
    python bench/roofline.py --sass sass.json --step trace.txt --write    and put them into docs/kernels.md
    python bench/roofline.py --before general                             another state beside now

What it reads: python tools/sass.py --json sass.json; python bench/trace.py > trace.txt.

bench/chip.py has the model and its constants, bench/counts.py what each op launches, and its states: "general", "two
sweeps" and "now", whose instructions come from --sass. What is not known is printed as –: without --sass the ops "now",
without --sass and --step a step "now".

A training step of 16 images: HIDA's ops as above; convolutions by their FLOP; a cast takes a launch; any other kernel
what it took in the trace of `small` that an H100 made (STEP_US); changes of layout and reductions more in `released`,
in proportion to the width. What a step takes "now" is what was measured before, less what is predicted to be gone.
Products of matrices that are more than before count as any other kernel.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from bench import counts  # noqa: E402
from bench.chip import LAUNCH, TENSOR, Kernel  # noqa: E402
from bench.counts import DIRECTIONS, OPS, STATES, Read, floor_of, kernels_of, microseconds  # noqa: E402
from hida.cli.run import run_command  # noqa: E402
from hida.errors import HidaError, first_line  # noqa: E402
from hida.files.places import require_file_place  # noqa: E402
from hida.files.writing import atomic_path  # noqa: E402

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
Times = dict[tuple[str, int], tuple[float, float]]
# deform_conv2d: instructions for a gathered vector before; to find a sampling point: read off find_sample, and assumed
# once shares are premultiplied.
GATHER, SAMPLE = 182, (480, 150)


class Step(NamedTuple):
    """A training step of 16 images before: by bench/trace.py at ac1a7ee, and measured, ms (RESULTS)."""

    kernels: dict[str, int]
    measured: float


KINDS = ("cast", "layout", "inside", "product", "hida", "multi-tensor", "reduction", "elementwise", "joined", "resized")
STEPS = {
    ("small", "nhwc"): Step(dict(zip(KINDS, (417, 29, 84, 267, 62, 16, 209, 400, 33, 13), strict=True)), 15.28),
    ("small", "nchw"): Step(dict(zip(KINDS, (417, 1, 0, 267, 62, 16, 209, 400, 33, 13), strict=True)), 14.05),
    ("released", "nhwc"): Step(dict(zip(KINDS, (417, 29, 84, 267, 62, 18, 211, 400, 33, 13), strict=True)), 29.08),
    ("released", "nchw"): Step(dict(zip(KINDS, (417, 1, 0, 267, 62, 18, 211, 400, 33, 13), strict=True)), 26.49),
}
WIDTH = {"small": (24, 32), "released": (64, 64)}  # base_width of the generator and the discriminator
# FLOP of an image, forward, by torch's FlopCounterMode: generator and discriminator. A step has the first three times
# (forward, two gradients), the second eight times (twice all three; once two).
FLOP = {"small": 3 * 4.22e9 + 8 * 1.82e9, "released": 3 * 29.15e9 + 8 * 7.19e9}
# Fitted to the H100: the share of TENSOR that convolutions reach: 3.2 ms in the trace of small; what is left of the
# step of released. And by the same trace, in µs a kernel: its 2.7 ms of copies and changes of layout (3.5 less casts)
# in NHWC, the 2.6 ms in NCHW, which are cuDNN's own, by convolutions; 1.1 ms of reductions; 6.4 ms of the rest.
CONVOLUTIONS = {"small": 0.17, "released": 0.35}
STEP_US = {"layout": 24.0, "inside": 24.0, "reduction": 5.3, "multi-tensor": 13.9, "elementwise": 13.9}
STEP_US |= {"product": 13.9, "joined": 13.9, "resized": 13.9, "cast": 1e6 * LAUNCH, "cuDNN's": 9.9}
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


def predicted(state: str, op: str, back: bool, plane: counts.Plane, layout: str, read: Read | None = None) -> float:
    """Return the µs of an op."""
    return microseconds(kernels_of(state, op, back, plane, layout, read))


def op_rows(read: Read | None, before: str) -> Iterator[list[str]]:
    """Yield a row for each op, layout and map: floor, before and now, forward and backward, of each batch."""
    for op in OPS:
        for layout in LAYOUTS:
            for channels, side in PLANES:
                cells = []
                for back in (False, True):
                    planes = [(channels, side, batch) for batch in BATCHES]
                    floors = [floor_of(op, back, plane) for plane in planes]
                    cells.append(" / ".join(map(number, floors)))
                    cells.append(" / ".join(number(predicted(before, op, back, p, layout)) for p in planes))
                    now = [predicted("now", op, back, p, layout, read) for p in planes] if read else []
                    cells.append(" / ".join(map(number, now)) or "–")
                    cells.append(f"{floors[1] / now[1]:.0%}" if now else "–")
                yield [f"{op}, {layout.upper()}", f"{channels} @ {side}²", *cells]


def specialised(results: Path) -> Times:
    """Return what was measured of ida with the specialised kernels, 16 images, µs, as GENERAL.

    Raises:
        HidaError: if the file is not what bench/results.py writes.
    """
    made_by = "python bench/results.py gpu-out --write"
    try:
        rows = [row for row in json.loads(read_text(results, made_by))["ops"]["rows"] if row["method"] == "native"]
        rows = [(row["case"], row["direction"], 1e3 * row["median_ms"]) for row in rows if "median_ms" in row]
    except (ValueError, KeyError, TypeError):
        raise HidaError(f"'{results}' is not what bench/results.py writes; make it with {made_by}.") from None
    found: dict[tuple[str, int], dict[str, float]] = {}
    for case, direction, us in rows:
        if (case["op"], case["batch"], case["dtype"]) == ("ida", IMAGES, "bfloat16"):
            found.setdefault((case["layout"], case["side"]), {})[direction] = us
    return {key: (times["fwd"], times["bwd"]) for key, times in found.items() if {*DIRECTIONS} <= {*times}}


def measured_rows(measured: Times) -> Iterator[list[str]]:
    """Yield what was measured of ida beside what is predicted for the same kernels."""
    for state, found in zip(STATES, (GENERAL, measured), strict=False):
        for (layout, side), times in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1])):
            plane = ({s: c for c, s in PLANES}[side], side, IMAGES)
            for back, us in enumerate(times):
                ours = predicted(state, "ida", bool(back), plane, layout)
                what = f"{layout.upper()}, {plane[0]} @ {side}², {DIRECTIONS[back]}"
                yield [state, what, number(us), number(ours), f"{ours / us - 1:+.0%}".replace("-", "−")]


def deform_rows(read: Read | None) -> Iterator[list[str]]:
    """Yield the rows of deform_conv2d."""
    for batch in BATCHES:
        plane = 64, 128, batch
        before = number(microseconds(counts.deform_large(plane, GATHER, SAMPLE[0])))
        now = "–"
        if read:
            now = number(microseconds(counts.deform_large(plane, read.gather, SAMPLE[read.gather < GATHER])))
        yield ["64→64 @ 128², fwd", str(batch), before, now, "–"]
    for shape, measured in (((512, 512, 2), ("19.8", "71.8")), ((1024, 512, 4), ("71 †", "199 †"))):
        for batch in (4, IMAGES):
            for back, us in enumerate(measured):
                ours = microseconds(counts.deform_small(*shape, batch, bool(back)))
                what = f"{shape[0]}→{shape[1]} @ {shape[2]}², {DIRECTIONS[back]}"
                yield [what, str(batch), number(ours), "–", us if batch == IMAGES else "–"]


# ---- the training step ----------------------------------------------------------------------------------------------


def hida_ms(state: str, layout: str, width: int, read: Read | None) -> float:
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
    """Return the numbers of kernels in a table that bench/trace.py printed.

    Raises:
        ValueError: if there is none, or a row is of another step than is predicted: batch, precision, ops.
    """
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines() if line[:1] == "|"]
    head = next((row for row in rows if row[:4] == ["preset", "layout", "batch", "precision"]), [])
    if not {*KINDS} <= {*head}:
        raise ValueError("it has no table of that command")
    found = {}
    for row in rows:
        if len(row) == len(head) and row[2].isdigit():
            if row[2:4] != [str(IMAGES), "bf16"]:
                raise ValueError(f"a row is of batch {row[2]} in {row[3]}, and the step is predicted of 16 in bf16")
            kernels = {k: int(n.replace(",", "")) for k, n in zip(head[4:], row[4:], strict=True)}
            if not kernels["hida"]:
                raise ValueError("a row has no operators of HIDA, so that PyTorch's were counted instead")
            found[row[0], row[1]] = kernels
    return found


def step_rows(now: dict[tuple[str, str], dict[str, int]], read: Read | None) -> Iterator[list[str]]:
    """Yield the rows of the training step."""
    kinds = [kind for kind in KINDS if kind != "hida"]
    for (preset, layout), step in STEPS.items():
        kernels, after = step.kernels, now.get((preset, layout))
        hida = hida_ms(STATES[1], layout, WIDTH[preset][0], None)
        before = hida + 1e3 * IMAGES * FLOP[preset] / TENSOR / CONVOLUTIONS[preset]
        before += sum(kind_ms(kind, kernels[kind], preset) for kind in kinds if kind != "product")
        before += kind_ms("cuDNN's", OWN * (layout == "nchw"), preset)
        casts = copies = ours = time = speed = "–"
        if after:
            casts, copies = str(after["cast"]), str(after["layout"] + after["inside"])
        if after and read:
            new = hida_ms("now", layout, WIDTH[preset][0], read)
            if after["hida"] >= kernels["hida"] + 28:  # leaky_norm has become an op
                new += norms_ms("now", layout, preset, read)
            gone = hida - new + sum(kind_ms(kind, kernels[kind] - after[kind], preset) for kind in kinds)
            ms = step.measured - gone
            ours, time, speed = f"{new:.2f}", f"{ms:.1f}", f"{1e3 * IMAGES / ms:,.0f}"
        cells = [f"{kernels['cast']} → {casts}", f"{kernels['layout'] + kernels['inside']} → {copies}"]
        cells += [f"{hida:.2f} → {ours}", f"{before:.1f}", f"{step.measured:.1f}", time]
        yield [preset, layout.upper(), *cells, f"{1e3 * IMAGES / step.measured:,.0f}", speed]


# ---- the document ---------------------------------------------------------------------------------------------------


def report(read: Read | None, now: dict[tuple[str, str], dict[str, int]], measured: Times, before: str) -> str:
    """Return what is between the marks."""
    source = "with the kernels as built" if read else "without reading the kernels as built"
    columns = [f"{what}, {d}" for d in DIRECTIONS for what in ("floor", before, "now", "share now")]
    step = ("casts", "copies of layout", "HIDA's ops", "predicted before", "measured before", "predicted now")
    parts: list[str | Iterator[str]] = [
        f"**Predicted, not measured**, {source}: µs on an H100, bfloat16, {' / '.join(map(str, BATCHES))} images;",
        "the share of the floor at 16.\n",
        markdown(("op", "map", *columns), op_rows(read, before), 2),
        "\nThe same model beside what was measured (ida, 16 images, µs). No constant is fitted; what waits for what,",
        "what the second-level cache keeps from one kernel to the next and the 900 instructions of general kernels",
        "in NCHW were, however, settled with these numbers at hand.\n",
        markdown(("kernels", "case", "measured", "predicted", "error"), measured_rows(measured), 2),
        "\ndeform_conv2d, µs. The kernels of small maps (2², 4²) are modelled as they were before; what they are",
        "predicted to take now, in another way, is in the table whose last column is `now, predicted`.\n",
        markdown(("case", "images", "before", "now", "measured"), deform_rows(read), 1),
        "\n† In a process of its own, with synchronous launches.",
        "\nA training step of 16 images, ms: all but the ops and casts is fitted to the H100's trace of `small`, the",
        "speed of convolutions in `released` to its step. `small` is measured as the sum of its kernels. What small",
        "maps of deform_conv2d gain is not in it.\n",
        markdown(("preset", "layout", *step, "images/s before", "predicted now"), step_rows(now, read), 2),
    ]
    return "\n".join(line for part in parts for line in ([part] if isinstance(part, str) else part))


def read_text(path: Path, made_by: str) -> str:
    """Return what a file says.

    Raises:
        HidaError: if it is not there, or is no text; it says what makes the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise HidaError(f"there is no '{path}'; make it with {made_by}.") from None
    except UnicodeDecodeError:
        raise HidaError(f"'{path}' is no text; make it with {made_by}.") from None


def kernels_in(path: Path) -> Read:
    """Return what tools/sass.py read.

    Raises:
        HidaError: if the file is not that, of another chip, or lacks a kernel.
    """
    made_by = "python tools/sass.py --json sass.json"
    try:
        found = json.loads(read_text(path, made_by))
        arch, kernels = found["arch"], found["kernels"]
        if arch != "sm_90a":
            raise HidaError(f"'{path}' is of {arch}, and an H100 is predicted, sm_90a; make it with {made_by}.")
        return counts.read_sass(kernels)
    except KeyError as error:
        raise HidaError(f"'{path}' lacks {error}; make it with {made_by}.") from None
    except LookupError as error:
        raise HidaError(f"'{path}' lacks the kernel {error}, or its counts; make it with {made_by}.") from None
    except (ValueError, TypeError):
        raise HidaError(f"'{path}' is not what tools/sass.py writes; make it with {made_by}.") from None


def steps_in(path: Path, whole: bool) -> dict[tuple[str, str], dict[str, int]]:
    """Return what bench/trace.py counted.

    Raises:
        HidaError: if the file is not that, or, where ``whole``, lacks a step.
    """
    made_by = "python bench/trace.py > trace.txt"
    try:
        found = read_steps(read_text(path, made_by))
    except ValueError as error:
        raise HidaError(f"'{path}' cannot be used ({first_line(error)}); make it with {made_by}.") from None
    lacking = [" in ".join(key) for key in STEPS if key not in found]
    if lacking and (whole or len(lacking) == len(STEPS)):
        raise HidaError(f"'{path}' lacks {', '.join(lacking)}; make it with {made_by}.")
    return found


def between_marks(document: Path) -> str:
    """Return the text of a document that has a place for the tables, and may be written.

    Raises:
        HidaError: if it has not, or may not.
    """
    require_file_place(document)
    text = read_text(document, "git checkout docs/kernels.md")
    if [text.count(mark) for mark in MARKS] != [1, 1] or text.index(MARKS[0]) > text.index(MARKS[1]):
        raise HidaError(f"'{document}' has not one pair of the lines {' and '.join(MARKS)}; put them in.")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sass", type=Path, metavar="JSON", help="what tools/sass.py --json wrote")
    parser.add_argument("--step", type=Path, metavar="FILE", help="what bench/trace.py printed")
    parser.add_argument("--before", choices=STATES[:2], default=STATES[1], help="beside now (default: %(default)s)")
    where = "what was measured (default: bench/results/h100.json)"
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="JSON", help=where)
    where = "where --write puts the tables (default: docs/kernels.md)"
    parser.add_argument("--document", type=Path, default=DOCUMENT, metavar="FILE", help=where)
    parser.add_argument("--write", action="store_true", help="put the tables there; needs --sass and --step")
    given = parser.parse_args(argv)
    if given.write and not (given.sass and given.step):
        raise HidaError("--write needs both --sass and --step: without them what is so now is not known.")
    document = between_marks(given.document) if given.write else ""
    read = kernels_in(given.sass) if given.sass else None
    now = steps_in(given.step, given.write) if given.step else {}
    text = report(read, now, specialised(given.results), given.before)
    print(text, flush=True)
    if given.write:
        between = re.compile(f"({re.escape(MARKS[0])}\n).*(\n{re.escape(MARKS[1])})", re.DOTALL)
        with atomic_path(given.document) as path:
            path.write_text(between.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", document), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command(main, name="roofline"))
