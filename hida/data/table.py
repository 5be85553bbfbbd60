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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hida.data.source import SPLITS, Fault
from hida.documents import DocumentError, parse_json
from hida.errors import HidaError, prints, shown

_COLUMNS = "give the columns name, style and, optionally, split"
_SEPARATORS = (",", ";", "\t", " ")
_LARGEST = 32 << 20  # bytes
_LINES = 500_000
_SEPARATOR_LINE = re.compile(r"\A\s*sep=.[\r\n]+", re.IGNORECASE)  # which Excel writes and reads
_WRONG = "WRONG"  # in place of a column's name, which is in lower case: what is wrong with the line itself
_END = "(end-of-the-table)"


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
        problems = [row[_WRONG]] if _WRONG in row else []
        problems += _problem("name", name, (str,), "a text")
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
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif 0 in data[:2]:  # every table begins with a character of ASCII
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise DocumentError("it is not text in UTF-8; save it in that encoding") from None


def _rows_of_json(text: str) -> list[dict[str, Any]]:
    """Return the objects of the list with their fields' names in lower case; others count as objects without fields."""
    rows = [item.raw for item in parse_json(text).items()]
    return [{_column(key): value for key, value in row.items()} if isinstance(row, dict) else {} for row in rows]


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    if text.count("\n") + text.count("\r") > _LINES or sum(map(text.count, _SEPARATORS)) > 10 * _LINES:
        raise DocumentError("it holds hundreds of thousands of lines")
    text = _SEPARATOR_LINE.sub("", text, count=1)
    if not text.strip():
        return []
    separator = next((mark for mark in _SEPARATORS if {"name", "style"} <= set(_head(text, mark))), None)
    if separator is None:
        line = next(line for line in re.split(r"[\r\n]+", text) if line.strip())
        raise DocumentError(f"its first line is {shown(line.strip())}, without the columns name and style")
    columns, *filled = _lines(text, separator)
    columns = [_column(field) for field in columns]
    rows: list[dict[str, Any]] = []
    for line in filled:
        rows.append(dict(zip(columns, line, strict=False)))
        words = [field for field in line if field.strip()]
        if separator == " " and len(words) > len(columns):
            rows[-1][_WRONG] = f"it has {len(words)} words for {len(columns)} columns: put names with spaces in quotes"
    return rows


def _head(text: str, separator: str) -> list[str]:
    try:
        return [_column(field) for field in next(_lines(text, separator), [])]
    except csv.Error:  # with another separator it may be right
        return []


def _lines(text: str, separator: str) -> Iterator[list[str]]:
    """Yield the lines that have content. csv itself finds their ends: str.splitlines knows some that are none."""
    text = f"{text}\n{_END}"
    for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True):
        if line == [_END]:
            return
        if any(field.strip() for field in line):
            yield line
    raise csv.Error("a quotation mark is not closed")


def _column(name: str) -> str:
    return name.strip().lower()
