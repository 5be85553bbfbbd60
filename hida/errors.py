"""Errors that the user can correct, and what ends work that was interrupted."""

from __future__ import annotations


class HidaError(Exception):
    """A fault in what the user gave: the message is one sentence naming what is wrong and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class Interrupted(BaseException):
    """Work that was stopped by a signal after its state had been saved.

    Raised from a signal handler, so it may arise anywhere: like KeyboardInterrupt it is no Exception, lest a handler
    meant for faults swallow it.
    """
