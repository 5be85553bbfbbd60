"""The machine code of a kernel, as ``cuobjdump -sass`` prints it: its flow graph, its loops, the loads on their way."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

NO_BARRIER, COPY = 7, 8  # instead of a scoreboard's number, 0 to 5
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*) ?([^;]*);")
ENCODING = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
WIDE_LOAD = re.compile(r"(LDG|LD|LDGSTS)\.E\b.*\.128")
WIDE_STORE = re.compile(r"(STG|ST)\.E\b.*\.128")
KINDS = {  # what is counted in a kernel and in each loop
    "loads": WIDE_LOAD,
    "stores": WIDE_STORE,
    "mufu": re.compile(r"MUFU\."),
    "tensor": re.compile(r"(HMMA|HGMMA|DMMA|IMMA)\b"),
    "barriers": re.compile(r"BAR\.(SYNC|RED)|UCGABAR_WAIT|SYNCS\.PHASECHK"),
    "spills": re.compile(r"(LDL|STL)\b"),
}


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
        """Whether it jumps whatever a predicate, or a comparison of its own, says."""
        return not self.guard and "," not in self.operands


class Block(NamedTuple):
    """Instructions without a jump but at their end, and the numbers of the blocks that may follow."""

    body: list[Instruction]
    next: list[int]


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
    """Return the blocks of each loop by its first, which every way to a jump back to it passes."""
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


def count(body: Iterable[Instruction]) -> dict[str, int]:
    """Return how many instructions there are, and how many of each kind."""
    names = [one.name for one in body if one.name != "NOP"]
    return {"instructions": len(names)} | {k: sum(bool(p.match(n)) for n in names) for k, p in KINDS.items()}


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
        ways = [(*best[to][:2], to) for to in blocks[n].next if to in best]
        further = max(ways + [(0, 0, -1)] * (not ways or head in blocks[n].next))
        best[n] = (worth + further[0], further[1] - size, further[2])
    way: list[Instruction] = []
    n = head
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
                    flying.add((int(target[1]), one.sets) if target else (-1 - one.at, COPY))
                    most = max(most, len(flying))
            for to in blocks[n].next:
                entering[to] = max(entering[to], frozenset(flying), key=len)
    return most
