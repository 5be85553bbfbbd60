"""Errors that the user can correct, and what ends work that was interrupted."""

from __future__ import annotations

_SHOWN = 60  # characters of a value in a message


class HidaError(Exception):
    """A fault in what the user gave: the message is one sentence naming what is wrong and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def shown(value: object) -> str:
    """Return a value of unknown origin as a message shows it: short, on one line, in the words of JSON."""
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except ValueError:  # a number of too many digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def label(name: str) -> str:
    """Return a name of unknown origin, such as a tensor's, as it is, or as :func:`shown` where it is an odd one."""
    plain = name.replace(".", "").isidentifier() and name.isprintable() and len(name) <= 120
    return name if plain else shown(name)


class Interrupted(BaseException):
    """Work that was stopped by a signal after its state had been saved.

    Raised from a signal handler, so it may arise anywhere: like KeyboardInterrupt it is no Exception, lest a handler
    meant for faults swallow it.
    """
