"""A table of pairs: which there are, of which style and, optionally, in which split.

A CSV file with a header line, its columns separated by commas, semicolons, tabs or spaces, or a JSON list of objects;
the columns are name, style and, optionally, split (train or test), in any order and case. The text is
UTF-8, or UTF-16 with its mark.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from hida.data.source import SPLITS, Fault
from hida.documents import DocumentError, parse_json
from hida.errors import HidaError, prints, shown

_COLUMNS = "give the columns name, style and, optionally, split"
_SEPARATORS = (",", ";", "\t", " ")
_LARGEST = 32 << 20  # bytes
_LINES = 500_000


class Row(NamedTuple):
    """One pair as a table or the folders name it; without a split it is assigned at random."""

    name: str
    style: str
    split: str | None


def read_table(table: Path) -> tuple[list[Row], list[Fault]]:
    """Read a table; return its rows, and a fault for each in which something is wrong.

    Raises:
        HidaError: if it cannot be read, is no table, or lacks the columns.
    """
    try:
        with table.open("rb") as file:
            text = _text(file.read(_LARGEST + 1))
        rows = _rows_of_json(text) if table.suffix.lower() == ".json" else _rows_of_csv(text)
    except OSError as error:
        raise HidaError(f"the table '{table}' cannot be read ({error.strerror}); check the path.") from None
    except (DocumentError, csv.Error) as error:
        raise HidaError(f"the table '{table}' is neither valid CSV nor JSON ({error}); {_COLUMNS}.") from None
    if not rows:
        raise HidaError(f"the table '{table}' has no lines; {_COLUMNS}.")
    good, faults = [], []
    has_split = any(not _is_empty(row.get("split")) for row in rows)
    for number, row in enumerate(rows, 1):
        name, style, split = (row.get(key) for key in ("name", "style", "split"))
        split = split.strip().lower() if isinstance(split, str) else split
        problems = _problem("name", name, (str,), "a text")
        problems += _problem("style", style, (str, int), "a text or a whole number")
        if has_split and split not in SPLITS:
            problems.append(f"split is {shown(split)}, not train or test")
        if problems:
            label = name.strip() if isinstance(name, str) and prints(name) and name.strip() else f"line {number}"
            faults.append(Fault("entry", label, f"{table.name} line {number}: {'; '.join(problems)}."))
        else:
            # As the names of files are compared.
            name, style = (unicodedata.normalize("NFC", str(text).strip()) for text in (name, style))
            good.append(Row(name, style, str(split) if has_split else None))
    return good, faults


def _is_empty(field: Any) -> bool:
    return field is None or (isinstance(field, str) and not field.strip())


def _problem(column: str, field: Any, types: tuple[type, ...], wanted: str) -> list[str]:
    """Return what is wrong with a field, if anything is."""
    if _is_empty(field):
        return [f"{column} is missing"]
    if isinstance(field, bool) or not isinstance(field, types):
        return [f"{column} is {shown(field)}, not {wanted}"]
    if isinstance(field, str) and not prints(field.strip()):
        return [f"{column} is {shown(field)}, which has characters that do not print"]
    return []


def _text(data: bytes) -> str:
    if len(data) > _LARGEST:
        raise DocumentError(f"it is larger than {_LARGEST:,} bytes")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise DocumentError("it is not text in UTF-8; save it in that encoding") from None


def _rows_of_json(text: str) -> list[dict[str, Any]]:
    """Return the objects of the list with their fields' names in lower case; others count as objects without fields."""
    rows = [item.raw for item in parse_json(text).items()]
    return [{_column(key): value for key, value in row.items()} if isinstance(row, dict) else {} for row in rows]


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    if text.count("\n") + text.count("\r") > _LINES or sum(map(text.count, _SEPARATORS)) > 10 * _LINES:
        raise DocumentError("it holds hundreds of thousands of lines")
    found = re.search(r"[^\r\n]*\S[^\r\n]*", text)
    if found is None:
        return []
    head = found[0]
    separator = next((mark for mark in _SEPARATORS if {"name", "style"} <= set(_fields(head, mark))), None)
    if separator is None:
        raise DocumentError(f"its first line is {shown(head.strip())}, without the columns name and style")
    # csv itself finds the ends of lines: a field may have characters that str.splitlines takes for one.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    columns, *filled = (line for line in lines if any(field.strip() for field in line))
    columns = [_column(field) for field in columns]
    return [dict(zip(columns, line, strict=False)) for line in filled]


def _fields(head: str, separator: str) -> list[str]:
    return [_column(field) for field in next(csv.reader([head], delimiter=separator, skipinitialspace=True), [])]


def _column(name: str) -> str:
    return name.strip().lower()
