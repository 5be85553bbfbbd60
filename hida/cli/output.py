"""What the commands print, on any terminal: a character that its encoding lacks is written in another way."""

from __future__ import annotations

import codecs
import sys
import unicodedata

NAME = "hida.readable"
"""the error handler's name among Python's"""

_LIKE = {
    "…": "...", "×": "x", "÷": "/", "−": "-", "±": "+/-", "·": ".", "•": "*", "√": "sqrt", "∞": "inf", "≈": "~",
    "≠": "!=", "≤": "<=", "≥": ">=", "→": "->", "←": "<-", "↔": "<->", "⇒": "=>", "°": " degrees", "µ": "u", "′": "'",
    "″": '"', "€": "EUR",
}  # fmt: skip


def make_printable() -> None:
    """Let stdout and stderr print everything, whatever their encoding; see :func:`readable`."""
    codecs.register_error(NAME, readable)
    for stream in (sys.stdout, sys.stderr):
        # A stream may be absent, or another object in its place.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=NAME)


def readable(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks, as an error handler of :mod:`codecs` does.

    Punctuation, signs, superscripts, lines of boxes and Greek letters become ASCII that reads alike; any other
    character becomes an escape such as ``\\xe9``, so that names remain distinct. Halves of surrogate pairs, which stand
    for bytes that are not UTF-8 in names of files, do so in every encoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object
    return "".join(_replacement(text, at) for at in range(error.start, error.end)), error.end


def _replacement(text: str, at: int) -> str:
    character = text[at]
    if character in _LIKE:
        return _LIKE[character]
    kind, name = unicodedata.category(character), unicodedata.name(character, "")
    if kind == "Zs":
        return " "
    if kind == "Pd":
        return "-"
    if "QUOTATION MARK" in name:
        return "'" if "SINGLE" in name else '"'
    if name.startswith("SUPERSCRIPT"):
        within = at > 0 and unicodedata.name(text[at - 1], "").startswith("SUPERSCRIPT")
        return ("" if within else "^") + unicodedata.normalize("NFKD", character).replace("−", "-")
    if name.startswith("BOX DRAWINGS"):
        return "+" if " AND " in name else {"HORIZONTAL": "-", "VERTICAL": "|"}.get(name.split()[-1], "+")
    if name.startswith("GREEK ") and " LETTER " in name and " WITH " not in name:
        letter = name.split()[-1].lower()
        return letter.capitalize() if kind == "Lu" else letter
    return character.encode("ascii", "backslashreplace").decode()
