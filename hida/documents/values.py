"""Read JSON strictly: bounded, finite, every field once; and take values out of it by type, naming their place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hida.documents.names import DocumentError, require_name, require_path
from hida.errors import prints, shown

LARGEST = 64 << 20
"""bytes of a document; the index of FS2K has 2.3 million"""
# What a document becomes in memory: at most some 230 bytes for each container and 130 for each other value.
_CONTAINERS = 1_000_000
_VALUES = 3_000_000
_DEEPEST = 32
_DIGITS = 400


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a document and its place in it, such as ``pairs[3].style``.

    Each method returns the value, or those in it, if it is what the method is named after.

    Raises:
        DocumentError: from every method, if it is something else.
    """

    raw: Any
    place: str = ""

    def wrong(self, wanted: str) -> DocumentError:
        """Return the error that says what is there instead of what is wanted."""
        return DocumentError(f"{self.place or 'it'} is {shown(self.raw)}, not {wanted}")

    def field(self, key: str) -> Value:
        found = self.optional(key)
        if found is None:
            raise DocumentError(f"{self.place or 'it'} has no field {key!r}")
        return found

    def optional(self, key: str) -> Value | None:
        """Return a field, or None where there is none."""
        if not isinstance(self.raw, dict):
            raise self.wrong("an object with named fields")
        return Value(self.raw[key], f"{self.place}.{key}".lstrip(".")) if key in self.raw else None

    def only(self, known: Sequence[str]) -> Value:
        """Return the object itself if it has no fields but the known ones."""
        for key in self.fields():
            if key not in known:
                raise DocumentError(f"{self.place or 'it'} has the unknown field {shown(key)}")
        return self

    def fields(self) -> dict[str, Value]:
        if not isinstance(self.raw, dict):
            raise self.wrong("an object with named fields")
        return {key: Value(value, f"{self.place}[{shown(key)}]") for key, value in self.raw.items()}

    def items(self, least: int = 0, most: int | None = None) -> list[Value]:
        if not isinstance(self.raw, list):
            raise self.wrong("a list")
        if len(self.raw) < least or (most is not None and len(self.raw) > most):
            wanted = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            raise self.wrong(f"of {wanted}")
        return [Value(value, f"{self.place}[{k}]") for k, value in enumerate(self.raw)]

    def text(self) -> str:
        if not isinstance(self.raw, str) or any("\ud800" <= character <= "\udfff" for character in self.raw):
            raise self.wrong("a text")
        return self.raw

    def line(self) -> str:
        """Return a text that can be shown on a terminal: all its characters print."""
        text = self.text()
        if not prints(text):
            raise self.wrong("a text of characters that print")
        return text

    def one_of(self, choices: Sequence[str]) -> str:
        if not isinstance(self.raw, str) or self.raw not in choices:
            raise self.wrong(f"one of {', '.join(choices)}")
        return self.raw

    def whole(self, least: int, most: int) -> int:
        if type(self.raw) is not int or not least <= self.raw <= most:
            raise self.wrong(f"a whole number {least} to {most}")
        return self.raw

    def number(self, bound: float = 1e12) -> float:
        """Return a number whose size is at most ``bound``, so that what is computed of it is finite too."""
        if type(self.raw) not in (int, float) or not -bound <= self.raw <= bound:
            raise self.wrong("a number")
        return float(self.raw)

    def name(self) -> str:
        """Return a text that can be the name of a file."""
        return self._named(require_name)

    def path(self) -> str:
        """Return a text that is a path inside a folder."""
        return self._named(require_path)

    def _named(self, require: Any) -> str:
        try:
            return str(require(self.raw))
        except DocumentError as error:
            raise DocumentError(f"{self.place or 'it'}: {error}") from None


def read_json(path: str | os.PathLike[str], largest: int = LARGEST) -> Value:
    """Read a JSON document; see :func:`parse_json`.

    Raises:
        DocumentError: see there.
        OSError: if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        return parse_json(file.read(largest + 1), largest)


def parse_json(data: bytes | str, largest: int = LARGEST, finite: bool = True) -> Value:
    """Parse a JSON document in UTF-8.

    Args:
        finite: refuse numbers that are not; a log of losses may hold some.

    Raises:
        DocumentError: if it is none, has a field twice or a number that is not finite, is nested more than some
            thirty-fold, or is too large to be what it should be.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    except UnicodeDecodeError:
        raise DocumentError("it is not text in UTF-8") from None
    if len(data) > largest:
        raise DocumentError(f"it is larger than {largest:,} bytes")
    del data
    if text.count("{") + text.count("[") > _CONTAINERS or text.count(",") + text.count(":") > _VALUES:
        raise DocumentError("it holds millions of values")
    infinite: list[str] = []

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            infinite.append(digits)
        return value

    try:
        parsed = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=number, parse_constant=number
        )
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except ValueError as error:
        raise DocumentError(f"it is not valid JSON: {error}") from None
    _require_shallow(parsed)
    if infinite and finite:
        place = _place_of_infinite(Value(parsed))
        raise DocumentError(f"{place or 'it'} is {infinite[0][:20]}, not a finite number")
    return Value(parsed)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"the field {shown(double)} is there twice in one object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise DocumentError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _require_shallow(value: Any) -> None:
    """Refuse what is nested so deeply that a later step (copying, comparing, writing) could fail at it."""
    level = [[value]]
    for _ in range(_DEEPEST):
        level = [
            list(item.values()) if isinstance(item, dict) else item
            for box in level
            for item in box
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise DocumentError("it is nested too deeply")


def _place_of_infinite(root: Value) -> str:
    """Return where the first number is that is not finite."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value.raw, float) and not math.isfinite(value.raw):
            return value.place
        if isinstance(value.raw, dict):
            waiting += [value.field(key) if key.isidentifier() else item for key, item in value.fields().items()]
        elif isinstance(value.raw, list):
            waiting += value.items()
    return ""
