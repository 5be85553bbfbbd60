"""What the CUDA ops launch: for each op, state, layout and map the kernels, with counts read off the code.

States: "general", of any dtype and strides by branches (before 180a300); "two sweeps", of a known dtype (ac1a7ee), NHWC
maps of more than 1024 pixels in two kernels; "now": the kernels as built, of NHWC in two sweeps again, leaky_norm too.
Tilings follow the host code of csrc/cuda. Everything is bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from bench.chip import CACHED, COPY, NEAR, SMS, Kernel, resident

STATES = ("general", "two sweeps", "now")
Plane = tuple[int, int, int]  # channels, side, batch
DIRECTIONS, LAYOUTS = ("fwd", "bwd"), ("nchw", "nhwc")
EIGHTS = 512.0  # bytes of a tensor in a unit: eight elements of each thread of a warp
WHOLE = 1024  # pixels of a plane that a block has in NHWC


class Op(NamedTuple):
    """What an op moves, in n, forward and backward; what its sweep for sums reads; whether it has sums for p1, p2."""

    traffic: tuple[int, int]
    again: tuple[int, int]
    sums: bool


class Counts(NamedTuple):
    """Registers; instructions and MUFU of a warp for eight elements a thread: of a sweep for sums, and for results.

    Of two kernels the registers are those of the one that has more.
    """

    registers: int
    sums: tuple[float, float]
    results: tuple[float, float]


OPS = {
    "ida": Op((5, 7), (2, 4), True),
    "info_acon": Op((3, 5), (0, 0), True),
    "info_acon, θ per plane": Op((2, 3), (0, 0), True),
    "instance_norm_modulate": Op((4, 5), (1, 3), False),
    "leaky_norm": Op((2, 3), (1, 2), False),
}
KERNELS = {  # of ida and info_acon: the file, the template argument of the logits
    "ida": ("ida", "whole"),
    "info_acon": ("info_acon", "whole"),
    "info_acon, θ per plane": ("info_acon", "plane"),
    "instance_norm_modulate": ("ida", "none"),
    "leaky_norm": ("leaky_norm", ""),
}
# Read by tools/sass.py at ac1a7ee, sm_90a, of "two sweeps". NCHW: of one pack per thread, and of two. leaky_norm had no
# kernel then.
NONE = (0.0, 0.0)
NHWC = {
    ("ida", "fwd"): Counts(128, (160, 32), (211, 32)),
    ("ida", "bwd"): Counts(125, (208, 32), (421, 32)),
    ("info_acon", "fwd"): Counts(76, NONE, (136, 32)),
    ("info_acon", "bwd"): Counts(118, NONE, (272, 32)),
    ("info_acon, θ per plane", "fwd"): Counts(78, NONE, (90, 16)),
    ("info_acon, θ per plane", "bwd"): Counts(121, NONE, (214, 16)),
    ("instance_norm_modulate", "fwd"): Counts(89, (52, 0), (102, 0)),
    ("instance_norm_modulate", "bwd"): Counts(90, (96, 0), (125, 0)),
}
NCHW = {
    ("ida", "fwd"): (Counts(40, NONE, (325, 33)), Counts(64, NONE, (297, 32))),
    ("ida", "bwd"): (Counts(64, NONE, (466, 32)), Counts(128, NONE, (434, 32))),
    ("info_acon", "fwd"): (Counts(38, NONE, (170, 32)), Counts(47, NONE, (158, 32))),
    ("info_acon", "bwd"): (Counts(55, NONE, (315, 32)),),
    ("info_acon, θ per plane", "fwd"): (Counts(37, NONE, (122, 16)), Counts(40, NONE, (108, 16))),
    ("info_acon, θ per plane", "bwd"): (Counts(52, NONE, (246, 16)),),
    ("instance_norm_modulate", "fwd"): (Counts(40, NONE, (210, 1)), Counts(63, NONE, (190, 0))),
    ("instance_norm_modulate", "bwd"): (Counts(40, NONE, (197, 0)), Counts(64, NONE, (188, 0))),
}
# The general kernels. NCHW: some 900 instructions for eight elements of ida, forward (docs/kernels.md), the others in
# proportion. NHWC: of ida 59 and 67 loads of 16 bits for eight elements, each waited for; blocks, and their warps.
GENERAL_TIMES, GENERAL_REGISTERS = 900 / 297, (64, 124)
GENERAL_NHWC = {"fwd": (59, 8 * SMS, 16), "bwd": (67, 160, 8)}


class Read(NamedTuple):
    """What tools/sass.py read: the counts of "now"."""

    nhwc: dict[tuple[str, str], Counts]
    nchw: dict[tuple[str, str], tuple[Counts, ...]]
    gather: float  # instructions of deform_conv2d, forward, for a gathered vector


GATHER_KERNEL = "deform_conv forward_kernel<Bf16, 64>"


def names_of(op: str, back: bool, layout: str) -> list[str]:
    """Return the names by tools/sass.py of an op's kernels: in NHWC, of large planes, by sweeps; in NCHW by packs."""
    file, logits = KERNELS[op]
    info, arguments = file == "info_acon", f"bf16, {logits}" if logits else "bf16"
    start = f"{file}_{layout}{'_backward' if back and not info else ''}"
    if layout == "nhwc":
        sweeps = [("backward" if back else "forward")] if info else ["first_sweep", "second_sweep"]
        return [f"{start} {name}<{arguments}>" for name in sweeps]
    packs = range(1, 1 + len(NCHW.get((op, DIRECTIONS[back]), ())))
    return [f"{start} {'backward' if back else 'forward'}<{arguments}, {n}>" for n in packs]


def read_sass(kernels: list[dict]) -> Read:
    """Return the counts in the JSON of tools/sass.py.

    Raises:
        LookupError: if a kernel is not there, or its counts are not; its name is the argument.
    """
    known = {one["name"]: one for one in kernels}

    def parts_of(name: str) -> list[dict]:
        parts = [part for part in known[name]["parts"] if "per_eight" in part] if name in known else []
        if not parts:
            raise LookupError(name)
        return parts

    def counts(*names: str) -> Counts:
        parts = [part for name in names for part in parts_of(name)]
        sweeps = [[p for p in parts if bool(p["stores"]) == results] for results in (False, True)]
        per = [(sum(p["per_eight"] for p in s), sum(p["mufu_per_eight"] for p in s)) for s in sweeps]
        return Counts(max(known[name]["registers"] for name in names), *per)

    read = Read({}, {}, parts_of(GATHER_KERNEL)[0]["per_eight"])
    for op in OPS:
        for back, direction in enumerate(DIRECTIONS):
            read.nhwc[op, direction] = counts(*names_of(op, bool(back), "nhwc"))
            read.nchw[op, direction] = tuple(map(counts, names_of(op, bool(back), "nchw")))
    return read


def units_of(plane: Plane) -> float:
    """Return how many units an op has, in which each thread of a warp has eight elements."""
    return plane[0] * plane[1] ** 2 * plane[2] / 256


def nchw(op: str, back: bool, plane: Plane, counts: Counts, packs: int, rounds: bool = False) -> list[Kernel]:
    """Return the kernel whose blocks have planes in registers (size_launch in ida_nchw.cu).

    rounds: blocks stay, and the next plane is on its way while they compute one (nchw_rounds.h).
    """
    channels, side, batch = plane
    whole = max(1, side * side // 8)
    if whole <= 32:
        threads, blocks = 128, math.ceil(channels * whole / 128) * batch
    else:
        most = 512 if (op.startswith("info_acon") and back) or whole > 4096 else 256
        cluster = 2 ** max(0, math.ceil(math.log2(whole / (most * packs))))
        threads, blocks = math.ceil(whole / (cluster * packs * 32)) * 32, channels * cluster * batch
    units, (instructions, mufu) = units_of(plane), counts.results
    # Loads, and half a latency each time that a plane's blocks wait for each other.
    waits = 1 if op.startswith("info_acon") and not back else 2.5 if back else 1.5
    kernel = Kernel(units, blocks, EIGHTS * OPS[op].traffic[back], 0, instructions, mufu)
    kernel = kernel._replace(resident=resident(counts.registers, threads), together=units / blocks, waits=waits)
    if not rounds or whole <= 32:
        return [kernel]
    # Of the two planes that a block has on the chip one waits for memory, the other for the block's sums.
    staying = kernel._replace(blocks=2 * SMS * kernel.resident, resident=2 * kernel.resident, once=3)
    return [kernel] if blocks <= staying.blocks else [staying]


def whole_of(op: str) -> int:
    """Return the most pixels of a plane that a block has as a whole in NHWC."""
    return 2 * WHOLE if op == "leaky_norm" else WHOLE


def tiles(op: str, plane: Plane) -> tuple[int, int]:
    """Return blocks and threads of a sweep in NHWC (whole_planes and chunked in nhwc.h)."""
    channels, side, batch = plane
    packs, pixels, fill = channels // 8, side * side, 3 * SMS // 2
    if pixels <= whole_of(op):
        groups = min(64, max(2, 2048 // pixels))
        while groups > 2 and batch * math.ceil(packs / groups) < fill:
            groups //= 2
        blocks = batch * math.ceil(packs / groups)
        return blocks, 512 if blocks <= SMS else 256

    def cut(groups: int, each: int) -> int:
        return batch * math.ceil(packs / groups) * math.ceil(pixels / (each * 256 // groups))

    small = [blocks for groups, each in ((8, 16), (4, 8), (4, 4)) if (blocks := cut(groups, each)) >= fill]
    blocks = small[0] if small else cut(4, 2)
    return min([blocks, *(cut(8, each) for each in (32, 64) if blocks > 12 * fill)]), 256


def nhwc(op: str, back: bool, plane: Plane, counts: Counts) -> list[Kernel]:
    """Return the kernels that sweep over chunks of pixels, eight channels a thread."""
    floor, again, pixels = OPS[op].traffic[back], OPS[op].again[back], plane[1] ** 2
    units, (blocks, threads) = units_of(plane), tiles(op, plane)
    shared = {"resident": resident(counts.registers, threads), "waiting": threads // 32}
    instructions, mufu = (a + b for a, b in zip(counts.sums, counts.results, strict=True))
    one = Kernel(units, blocks, EIGHTS * floor, 0, instructions, mufu, together=2, once=5)._replace(**shared)
    adding = (
        [Kernel(once=4)] if back and OPS[op].sums and pixels > whole_of(op) else []
    )  # of chunks, for p1, p2 and logits
    if pixels <= whole_of(op) or not again:  # the second sweep, if any, reads from the first-level cache
        return [one, *adding]
    kept = EIGHTS * again * (floor * units * EIGHTS <= CACHED)  # of the first sweep, if all that the op touches fits
    first = one._replace(moved=EIGHTS * again, instructions=counts.sums[0], mufu=counts.sums[1])
    second = one._replace(moved=one.moved - kept, cached=kept, instructions=counts.results[0], mufu=counts.results[1])
    return [first._replace(together=4 - 2 * back), second._replace(together=2 - back), *adding]


def general(op: str, back: bool, plane: Plane, layout: str) -> list[Kernel]:
    """Return the kernels of any dtype and strides."""
    direction = DIRECTIONS[back]
    if layout == "nchw":
        instructions, mufu = NCHW[op, direction][0].results
        counts = Counts(GENERAL_REGISTERS[back], NONE, (instructions * GENERAL_TIMES, mufu))
        return nchw(op, back, plane, counts, 1)
    of_ida, blocks, warps = GENERAL_NHWC[direction]
    traffic, whole = (OPS[name].traffic[back] + OPS[name].again[back] for name in (op, "ida"))
    one = Kernel(units_of(plane), blocks, EIGHTS * traffic, waiting=warps, waits=of_ida * traffic / whole)
    return [one, *[Kernel()] * (1 + back)]


def plain(plane: Plane, traffic: float) -> Kernel:
    """Return an elementwise kernel of PyTorch."""
    units = units_of(plane)
    return Kernel(units, math.ceil(units / 16), EIGHTS * traffic, resident=4, waiting=8, together=2)


def by_torch(back: bool, plane: Plane, layout: str) -> list[Kernel]:
    """Return the kernels of leaky_norm without one of its own: statistics, normalisation, one leaky ReLU; in NCHW."""
    own = [plain(plane, n) for n in ((5, 3) if back else (1, 2, 2))]
    return own + [plain(plane, 2)] * (layout == "nhwc") * (1 + back)  # what is read, and written, changes its layout


def kernels_of(state: str, op: str, back: bool, plane: Plane, layout: str, read: Read | None) -> list[Kernel]:
    """Return the launches of an op; those of "now" are known by what was read."""
    new = state == "now"
    if new and read is None:
        raise ValueError("what was read is needed")
    if op == "leaky_norm" and not (new and layout == "nhwc"):
        return by_torch(back, plane, layout)
    if state == "general":
        return general(op, back, plane, layout)
    key = op, DIRECTIONS[back]
    if layout == "nhwc":
        return nhwc(op, back, plane, read.nhwc[key] if new and read else NHWC[key])
    counts = read.nchw[key] if new and read else NCHW[key]
    packs = len(counts) if plane[1] ** 2 > 256 else 1
    return nchw(op, back, plane, counts[packs - 1], packs, rounds=new and back and not op.startswith("info_acon"))


# ---- deform_conv2d --------------------------------------------------------------------------------------------------


def deform_large(plane: Plane, gather: float, samples: float) -> list[Kernel]:
    """Return what convolves 64 → 64 channels of large NCHW maps; a unit is a chunk of a block: 64 pixels of a tap.

    Args:
        plane: channels, side, batch.
        gather: instructions of a warp for a gathered vector of 16 bytes, of which each of its threads has four.
        samples: instructions of a warp for a sampling point of each thread; there are 64 for four warps.
    """
    channels, side, batch = plane
    blocks = side * side * batch // 64
    moved = 64 * 2 * (2 * channels + 27)  # x, y, offsets and mask, of a block's pixels
    corners = 64 * 4 * 2 * channels / 2  # half of them from the first-level cache (assumed)
    work = 4 * (4 * gather + 32) + 2 * samples
    one = Kernel(9 * blocks, blocks, moved / 9, corners + 64 * 2 * channels, work, resident=3, waits=NEAR, once=3)
    return [plain(plane, 2), Kernel(once=2), one]  # x to NHWC; weights


def deform_small(channels: int, out: int, side: int, batch: int, back: bool) -> list[Kernel]:
    """Return what HIDA's own layers launch (deform_conv_tiny.cu), two deformable groups, by the loads that wait."""
    pixels, depth, each = side * side * batch, 9 * channels, channels // 2

    def product(rows: int, columns: int, deep: int, splits: int, moved: float) -> Kernel:
        blocks, chunks = math.ceil(rows / 64) * math.ceil(columns / 64) * splits, math.ceil(deep / 64 / splits)
        return Kernel(blocks * chunks, blocks, moved / blocks / chunks, 0, 4 * 443, resident=2, once=3)

    gathering, weights = Kernel(once=6), 2.0 * depth * out  # offsets, then corners, then the line
    if not back:
        tiles_of = math.ceil(out / 64) * math.ceil(pixels / 64)
        splits = max(1, min(math.ceil(2 * SMS / tiles_of), depth // 64 // 4))
        return [gathering, product(out, pixels, depth, splits, weights), Kernel(once=3 + splits * NEAR)]
    products = [product(pixels, depth, out, 1, weights), product(out, depth, pixels, 1, 2 * weights)]
    to_input = Kernel(once=3 + 5 * side * side)  # for each pixel its line of G, then three loads for sampling points
    to_samples = Kernel(once=6 + 3 * math.ceil(each / 32) * 5 * NEAR)  # taps, channels, G and four corners in turn
    return [Kernel(once=3), products[0], gathering, products[1], to_input, to_samples]


def microseconds(kernels: Iterable[Kernel]) -> float:
    """Return how long launches take, one after the other."""
    return 1e6 * sum(kernel.seconds() for kernel in kernels)


def floor_of(op: str, back: bool, plane: Plane) -> float:
    """Return the bytes that an op must move, at the speed of a copy, in µs."""
    return 1e6 * OPS[op].traffic[back] * units_of(plane) * EIGHTS / COPY
