"""Seeded mutations of good files, and what every reader must keep to: no fault but its own, no hang, bounded memory."""

from __future__ import annotations

import json
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hida.errors import HidaError

_Case = TypeVar("_Case")
MEMORY = 1 << 30
"""bytes that one case may take above what the process had before"""
EXTREMES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
)


class Late(BaseException):
    """A case that takes too long; no Exception, so that no reader mistakes it for a fault of the file."""


def mutations(samples: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``count`` files: of each sample some bytes changed, cut, doubled, or replaced by a piece of another."""
    chance = random.Random(seed)
    for number in range(count):
        data = bytearray(samples[number % len(samples)])
        for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
            # Half of the changes are made where headers are.
            place = chance.randrange(max(1, min(len(data), 256) if chance.random() < 0.5 else len(data)))
            kind = chance.randrange(6)
            if kind == 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            elif kind == 1:
                extreme = chance.choice(EXTREMES)
                data[place : place + len(extreme)] = extreme
            elif kind == 2:
                del data[place:]
            elif kind == 3:
                del data[place : place + chance.randrange(1, 64)]
            elif kind == 4:
                data[place:place] = data[place : place + chance.randrange(1, 512)]
            else:
                other = samples[chance.randrange(len(samples))]
                begin = chance.randrange(max(1, len(other)))
                data[place : place + 64] = other[begin : begin + chance.randrange(1, 128)]
        yield bytes(data)


class Raw(str):
    """JSON text that :func:`json.dumps` would not write."""


ODD = (
    *(None, True, False, 0, 1, -1, 0.5, 3, 1e308, -1e308, 10**18, 10**300, [], {}, [[]], [0], {"a": 1}),
    *("", "a", "p0", "1", "..", "../../../ESC0", "..\\ESC0", "C:\\ESC0", "a/b", "a\0b", "a\nb", "\u2028", "\ud800"),
    *("x" * 300, "ä" * 200),
    *map(Raw, ("NaN", "-Infinity", "1e999", "-0.0", "9" * 500, "9" * 5000, '{"a":1,"a":2}')),
    *(Raw("[" * n + "]" * n) for n in (20, 40, 900, 30_000)),
)
"""values of other kinds than a document expects"""


def json_mutations(samples: Sequence[object], count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``count`` JSON documents: of each sample some values replaced, removed, doubled, moved or renamed."""
    chance = random.Random(seed)
    for number in range(count):
        document = json.loads(json.dumps(samples[number % len(samples)]))
        raw: list[str] = []

        def odd(raw: list[str] = raw, value: object = None) -> object:
            value = chance.choice(ODD) if value is None else value
            if isinstance(value, Raw):
                raw.append(value)
                return f"raw {len(raw) - 1} raw"
            return json.loads(json.dumps(value))

        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            boxes = [box for box in _boxes(document) if box]
            if not boxes:
                break
            box = chance.choice(boxes[:1] + boxes)
            key = chance.choice(list(box) if isinstance(box, dict) else range(len(box)))
            kind = chance.randrange(6)
            if kind <= 2:
                box[key] = odd()
            elif kind == 3:
                del box[key]
            elif kind == 4:
                other = chance.choice(boxes)
                box[key] = json.loads(
                    json.dumps(chance.choice(list(other.values() if isinstance(other, dict) else other)))
                )
            elif isinstance(box, list):
                box.insert(key, json.loads(json.dumps(box[key])))
            elif chance.random() < 0.5:
                box[str(chance.choice(ODD))[:20]] = box.pop(key)
            else:  # a field that is there twice
                text = json.dumps(box)
                box.clear()
                box["double"] = odd(value=Raw(f"{text[:-1]}, {json.dumps(key)}: 1}}"))
        text = json.dumps(document)
        for place, value in enumerate(raw):
            text = text.replace(f'"raw {place} raw"', value)
        yield text.encode()


def _boxes(value: object) -> list[Any]:
    """Return the objects and lists of a document, itself included."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, dict | list) else []
    return own + [box for item in inside for box in _boxes(item)]


def withstand(
    read: Callable[[_Case], object],
    cases: Iterable[_Case],
    *,
    allowed: tuple[type[BaseException], ...] = (HidaError,),
    seconds: int = 20,
    memory: int = MEMORY,
) -> int:
    """Read every case; return how many were taken.

    Args:
        read: called with a case, in this process.
        allowed: exceptions that refuse a case.
        seconds: that one case may take.
        memory: bytes that the process may grow by during one case.

    Raises:
        AssertionError: with the first faults, each with its number, so that it can be made again.
    """
    faults: list[str] = []
    taken = 0

    def late(*_: object) -> None:
        raise Late(f"no answer within {seconds} s")

    before_alarm = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # The machine is protected, too: what asks for much more fails instead of being measured.
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 4 * memory, hard))
    try:
        for number, case in enumerate(cases):
            before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins here
            signal.alarm(seconds)
            try:
                read(case)
                taken += 1
            except allowed as error:
                if "\n" in str(error).strip():
                    faults.append(f"case {number}: a message of several lines: {error}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                where = traceback.extract_tb(error.__traceback__)[-1]
                faults.append(
                    f"case {number}: {type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})"
                )
            finally:
                signal.alarm(0)
            grown = _status("VmHWM") - before
            if grown > memory:
                faults.append(f"case {number}: {grown / 2**20:.0f} MiB more")
    finally:
        signal.signal(signal.SIGALRM, before_alarm)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not faults, f"{len(faults)} faults, of which the first:\n" + "\n".join(faults[:10])
    return taken


def _status(key: str) -> int:
    """Return the bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
