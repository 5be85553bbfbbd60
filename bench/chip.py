"""A model of an H100: how long a kernel takes by what it moves and issues, and by how much of it is at work at a time.

A kernel's blocks come to a multiprocessor, as many at a time as its registers take. What waits together (a block that
keeps planes in registers, else a warp) goes round: it waits for memory's latency, then for its turn at memory, at the
second-level cache, and at the instructions (the larger of issue slots and MUFU). With one at work nothing overlaps;
with many the slowest of the three is busy all the time: a roofline. In between, mean value analysis of a closed
queueing network. The first round is alone, which stands for filling and draining the chip; LAUNCH is for the launch.

The constants were written down before the kernels that they are to predict. None is adjusted to a measurement of a
kernel of HIDA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

COPY, TENSOR = 3.0e12, 798e12  # bytes/s of a large copy, FLOP/s of large bfloat16 products: measured on an H100
SMS, CLOCK, ISSUE = 132, 1.755e9, 4  # multiprocessors, Hz, instructions of warps per cycle
MUFU = 0.5  # the same of MUFU: 16 lanes (CUDA programming guide, throughput of instructions, 9.0)
LAUNCH = 2e-6  # s
REGISTERS, THREADS, BLOCKS = 65536, 2048, 32  # of a multiprocessor
# github.com/te42kyfo/gpu-benches, an H100 PCIe: the second-level cache gives 114 multiprocessors at 1.755 GHz
# 6.9 TB/s, of data of up to 36 MB; latencies of memory and of it are 650 and 265 cycles.
L2, CACHED, LATENCY, NEAR = 8.0e12, 36e6, 0.37e-6, 0.4  # NEAR: of LATENCY
PORT = 64 * CLOCK  # bytes/s from the second-level cache to a multiprocessor (NVIDIA's H100 white paper)


class Kernel(NamedTuple):
    """A launch. A unit is eight elements of each thread of a warp, or what else is counted."""

    units: float = 0
    blocks: int = 1
    moved: float = 0  # bytes of a unit to and from memory
    cached: float = 0  # bytes of a unit that come from the second-level cache instead
    instructions: float = 0  # of a warp, for a unit
    mufu: float = 0
    resident: int = 1  # blocks on a multiprocessor
    waiting: int = 1  # of a block: its warps, or 1 where they wait for each other
    together: float = 1  # units between two waits
    waits: float = 1  # latencies of memory that are waited for then
    once: float = 0  # and at the beginning and the end of a block

    def seconds(self) -> float:
        """Return how long it takes."""
        if not self.units:
            return LAUNCH + LATENCY * self.once
        active, rounds = min(SMS, self.blocks), math.ceil(self.blocks / SMS)
        busy = [
            self.together * self.moved / min(COPY / active, PORT),
            self.together * (self.moved + self.cached) / min(L2 / active, PORT),
            self.together * max(self.instructions / ISSUE, self.mufu / MUFU) / CLOCK,
        ]
        visits = max(1.0, self.units / self.blocks / self.waiting / self.together)  # of one who waits, in a block
        thinks = LATENCY * (self.waits + self.once / visits)
        rate = throughput(min(self.resident, rounds) * self.waiting, busy, thinks)
        return LAUNCH + (rounds * visits * self.waiting - 1) / rate + sum(busy) + thinks


def throughput(customers: int, busy: Sequence[float], thinks: float) -> float:
    """Return the visits per second of a closed network: ``customers`` who think, then queue for each of the servers."""
    queues, rate = [0.0] * len(busy), 0.0
    for n in range(1, customers + 1):
        times = [b * (1 + q) for b, q in zip(busy, queues, strict=True)]
        rate = n / (sum(times) + thinks)
        queues = [rate * t for t in times]
    return rate


def resident(registers: int, threads: int) -> int:
    """Return how many blocks a multiprocessor takes."""
    return max(1, min(REGISTERS // (-(-registers // 8) * 8 * threads), THREADS // threads, BLOCKS))
