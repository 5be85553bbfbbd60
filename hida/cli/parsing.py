"""Read a command line by tyro; its boxes about mistakes become one sentence each.

Tyro says what is wrong on stderr only, by words that differ between its versions and back ends; those of 0.9.2 to 1.0
are known here. Others are passed on as they are, on one line.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from hida.errors import HidaError

_WIDE = "10000"  # columns, so that nothing is wrapped
_EDGE = 2  # columns of a box's left edge and of the space beside it


def unset(metavar: str) -> Any:
    """Describe an option that has no value unless one is given: ``Annotated[Path | None, unset("PATH")]``.

    Its help would end in "(default: None)" or "(default: )", and show None among the values.
    """
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def read_command(
    command: Any, argv: Sequence[str] | None, prog: str, description: str | None = None, default: Any = None
) -> Any:
    """Return an instance of ``command`` (a dataclass, a union of subcommands or a function) as ``argv`` says.

    Args:
        argv: the words after the command's name; those of this process if left out.
        prog: how the command is called, such as ``hida train``.
        default: an instance with the defaults, if they are not the dataclass's own.

    Raises:
        HidaError: for what ``command`` does not take.
        SystemExit: when help was asked for, and printed.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    given = {} if default is None else {"default": default}

    def read() -> Any:
        return tyro.cli(command, args=words, prog=prog, description=description, **given)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return read()
    except SystemExit as end:
        if not end.code:
            raise
    # Once more for a box that is wide enough; help, which has the terminal's width, must not be.
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit), _columns(_WIDE):
        read()
    raise HidaError(sentence(said.getvalue(), prog))


@contextlib.contextmanager
def _columns(number: str) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = number
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def sentence(box: str, prog: str) -> str:
    """Return one sentence for a box in which tyro says what is wrong with a command line."""
    parts = _parts(box)
    text = " ".join(line.strip() for line in parts[0])
    helps = re.findall(re.escape(prog) + r"(?: [a-z0-9-]+)?(?= --help)", " ".join(parts[-1]))
    what = _missing(parts) or _unknown(parts) or _reason(parts) or _choice(text) or text or "it was not understood"
    return f"{what} (see {helps[0] if helps else prog} --help)."


def _parts(box: str) -> list[list[str]]:
    """Return the lines between the lines that tyro draws, without the edges."""
    parts: list[list[str]] = [[]]
    for line in box.strip("\n").splitlines()[1:]:  # the first is the title
        inner = line[_EDGE:].rstrip(" │|")
        if re.fullmatch(r".[─-]{9,}.?", line):  # the box's own
            continue
        if re.fullmatch(r"[─-]{9,}", inner):
            parts.append([])
        elif inner.strip():
            parts[-1].append(inner)
    return parts


def _missing(parts: list[list[str]]) -> str | None:
    """Say which arguments, or which command, are missing."""
    text = " ".join(line.strip() for line in parts[0])
    if found := re.search(r"arguments are required: \{(.+)\}$|^Expected one of \{(.+)\}\.?$", text):
        return f"a command is missing: one of {', '.join(re.split(', *', found[1] or found[2]))}"
    if found := re.search(r"arguments are required: (.+)$", text):
        names = found[1].split(", ")
    elif text.startswith("Missing from "):
        names = [_name(line) for line in parts[0] if re.match(r" {4}\S", line)]
    else:
        return None
    absent = f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} missing"
    unknown = next((part[1].strip() for part in parts[1:] if part and part[0].startswith("Unrecognized ")), None)
    if unknown is None:
        return absent
    near = difflib.get_close_matches(unknown, names, 1)
    return f"{_no_option(unknown)}; {f'did you mean {near[0]}?' if near else absent}"


def _name(line: str) -> str:
    """Return what an argument is called where help describes it: its option, or what stands for its value."""
    return re.split(r", ?| ", line.strip())[0] if line.strip().startswith("-") else line.strip()


def _no_option(word: str) -> str:
    return f"there is no option {word}" if word.startswith("-") else f"the word '{word}' is one too many"


def _unknown(parts: list[list[str]]) -> str | None:
    """Say which word is none of the command's, and which may be meant."""
    text = " ".join(line.strip() for line in parts[0])
    found = re.match(r"Unrecognized (?:or misplaced )?(?:options|arguments): +(.*)", text)
    if not found:
        return None
    words = [word.partition("=")[0] for word in re.split(r", | ", found[1])]
    word = next((word for word in words if word.startswith("-")), words[0])
    for part in parts[1:]:
        if choices := re.match(r"Available subcommands: (.*)", part[0] if part else ""):
            return _none_of(word, re.split(", *", choices[1]))
        if similar := re.match(r"Perhaps you meant:|Arguments similar to (\S+):", part[0] if part else ""):
            return f"{_no_option(similar[1] or word)}; did you mean {_name(part[1])}?"
    return _no_option(word)


def _none_of(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1)
    return f"'{word}' is none of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")


def _choice(text: str) -> str | None:
    """Say which value is none of those that can be chosen, or how many are expected."""
    if found := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*?),?\)\.$", text):
        word, name, choices = found.groups()
    elif found := re.match(r"Argument (.+?): invalid choice: '(.*)' \(choose from (.*)\)$", text):
        name, word, choices = found.groups()
    elif found := re.match(r"Missing value for argument '(.+)'\. Expected (\d+) |Argument (.+): expected (\d+) ", text):
        count = found[2] or found[4]
        needed = "a value" if count == "1" else f"{count} values"
        name = (found[1] or found[3]).strip("(',)")
        return f"{name}: {needed} must follow"
    else:
        return None
    listed = [choice.strip("'\"") for choice in choices.split(", ")]
    if "None" in listed:  # which stands for none given, in a set, whose order is another in every process
        listed = sorted(choice for choice in listed if choice != "None")
    wrong = _none_of(word, listed)
    return wrong if name.startswith("{") else f"{name}: {wrong}"


def _reason(parts: list[list[str]]) -> str | None:
    """Say why a value was refused."""
    found = re.match(r"Error parsing (.+?): (.*)", parts[0][0]) if parts[0] else None
    if not found:
        return None
    name, reason = found[1].split("/")[0], found[2]
    tried = [line.strip() for line in parts[0][1:] if re.match(r" *[-•] ", line)]
    if tried:  # a value or None: the last is why it is no value
        reason = tried[-1].partition(": ")[2] or tried[-1]
    if several := re.match(r"Could not (?:find valid parse for|parse) arguments:? (\[.*?\])(?: into |$)", reason):
        usage = parts[1][1] if len(parts) > 1 and len(parts[1]) > 1 else ""
        with contextlib.suppress(SyntaxError):  # of values that look like tyro's own words
            return f"{name}: {_wrong_one(ast.literal_eval(several[1]), usage)}"
    for pattern, what in (
        (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no integer"),
        (r"could not convert string to float: (.*)", r"\1 is no number"),
        (
            r"input length (\d+) did not match expected argument count (\d+).*",
            r"\2 values, with spaces between, must follow, not \1",
        ),
    ):
        reason = re.sub(pattern, what, reason)
    return f"{name}: {reason}"


def _wrong_one(values: Sequence[str], usage: str) -> str:
    """Return which of an option's values is wrong, and why; ``usage`` is how help describes the option."""
    for word, kind, what in (("INT", int, "integer"), ("FLOAT", float, "number")):
        for value in values if word in usage else ():
            try:
                kind(value)
            except ValueError:
                return f"{value!r} is no {what}"
    return f"{' '.join(values)} is not {usage.strip()}"
