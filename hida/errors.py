"""Errors that the user can correct, and what ends work that was interrupted."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

_SHOWN = 60  # characters of a value in a message
_JOINERS = "\u200c\u200d"  # parts of words and of emoji
_WITHIN = ("hida", "torch", "contextlib")  # modules of frames between a warning and who called: torch's decorate ours
_AGAIN = 0.02  # seconds after which a signal that came at a bad moment is sent again


class HidaError(Exception):
    """A fault in what the user gave: the message is one sentence naming what is wrong and what to do."""


class HidaWarning(UserWarning):
    """What the user should know of a result: the message is one sentence."""


def warn(message: str, category: type[Warning] = HidaWarning) -> None:
    """Warn in the name of the line that called this package, however deep in it the reason is."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _WITHIN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun, "1 photo", "1,200 photos"; ``nouns`` is its plural where that is not with an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Let the message of an error in here begin with what it is about, if that is not empty."""
    try:
        yield
    except HidaError as error:
        if what:
            error.args = (f"{what}: {error}", *error.args[1:])
        raise


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


def prints(text: str) -> bool:
    """Return whether all characters of a text print: none steers a terminal, breaks a line or turns its direction.

    Spaces of any width and joiners in words and emoji count as printing, other than in :meth:`str.isprintable`.
    """
    return all(map(_prints, text))


def printed(text: str) -> str:
    """Return a text with escapes, such as ``\\x1b``, in place of the characters that do not print."""
    return "".join(c if _prints(c) else ascii(c)[1:-1] for c in text)


def _prints(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs" or character in _JOINERS


def label(name: str) -> str:
    """Return a name of unknown origin, such as a tensor's, as it is, or as :func:`shown` where it is an odd one."""
    plain = name.replace(".", "").isidentifier() and name.isprintable() and len(name) <= 120
    return name if plain else shown(name)


class Interrupted(BaseException):
    """Work that was stopped by a signal, which is its second argument, after its state had been saved.

    Raised from a signal handler, so it may arise anywhere: like KeyboardInterrupt it is no Exception, lest a handler
    meant for faults swallow it.
    """

    def __init__(self, message: str = "stopped.", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


def stops() -> list[int]:
    """Return the signals that ask a process to end; SIGHUP is none of them where nohup had it ignored."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


Handler = Callable[[int, Any], Any]


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Handler | signal.Handlers) -> Iterator[None]:
    """Give signals to ``handler`` in here; in another thread than the main one, which may not, its caller has them.

    A function gets them :func:`outside_imports`.
    """
    before: dict[int, Any] = {}
    if not isinstance(handler, signal.Handlers):
        handler = outside_imports(handler)
    try:
        for number in numbers if threading.current_thread() is threading.main_thread() else ():
            before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def outside_imports(handler: Handler) -> Handler:
    """Return a signal handler that is called when what is being imported has been.

    What a handler raises would arise anywhere in there. Compiled modules, such as torch's, end the process by abort()
    when Python code that they call as they are imported raises, and no file would be put in order.
    """
    imports = _imports(sys._getframe())

    def later(number: int, frame: FrameType | None) -> None:
        if _imports(frame) <= imports:
            handler(number, frame)
            return
        again = threading.Timer(_AGAIN, _send, (number,))
        again.daemon = True
        again.start()

    return later


def _send(number: int) -> None:
    """Send a signal to the main thread, which may be waiting for something."""
    if hasattr(signal, "pthread_kill") and (main := threading.main_thread().ident) is not None:
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)


def _imports(frame: FrameType | None) -> int:
    """Return how many frames of the import system are below this one."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return count
