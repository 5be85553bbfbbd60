"""Run a command: a user's mistake becomes one sentence and exit status 2."""

from __future__ import annotations

import atexit
import codecs
import contextlib
import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hida.cli.output import make_printable
from hida.errors import HidaError, HidaWarning, Interrupted, handled, printed, shown, stops

_PACKAGE = Path(__file__).parents[1]
_python_formats = warnings.formatwarning


def run_command(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None, name: str = "hida"
) -> int:
    """Run a command's ``main``; an error that is not the user's is a defect, and keeps its traceback.

    Args:
        main: the command.
        argv: its arguments, if not the process's.
        name: what its messages begin with.

    Returns:
        The exit status: 0 for success; 2 for a :class:`HidaError` or a refusal of the file system, told in one line on
        stderr; 130 when interrupted, 143 by SIGTERM, 129 when the terminal was closed; 141 when the reader of the
        output has gone.
    """
    _require_streams()
    make_printable()
    _wait_asleep()
    warnings.formatwarning = _formatted
    try:
        return _flushed(_run(main, argv, name), name)
    except SystemExit as end:  # --help
        status = end.code or 0
        if isinstance(status, int) and (flushed := _flushed(status, name)) != status:
            return flushed
        raise


def end_process(command: Callable[[], int]) -> NoReturn:
    """Run a command that is all that this process is for, and end with its exit status.

    What Python does at its end is done, but what is loaded is not taken down piece by piece: a torch with CUDA takes
    0.4 s and 130 MB for that, which the system does at once.
    """
    statuses: list[int] = []

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # what cannot be printed has been told
                stream.flush()
        if statuses:
            os._exit(statuses[0])

    # The first to be registered is the last to be called.
    atexit.register(leave)
    statuses.append(command())
    sys.exit(statuses[0])


def _flushed(status: int, name: str) -> int:
    """Print what is still to be printed, here, where what goes wrong can be told; return the exit status."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard_output()
        if isinstance(error, BrokenPipeError):
            return status or 141
        if status == 0:
            reason = (error.strerror or str(error)).lower()
            _tell(f"{name}: what is printed could not be written ({reason}); print it to another place.")
            return 2
    return status


def _run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None, name: str) -> int:
    try:
        # Where SIGINT does something else, as in a program of the caller's own, it still does.
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with handled((number for number in stops() if ours or number != signal.SIGINT), _unwind):
            main(argv)
    except HidaError as error:
        _tell(f"{name}: {printed(str(error))}")  # names of files in it may hold anything
        return 2
    except UnicodeEncodeError as error:
        if not _is_of_names(error.encoding):
            raise
        _tell(f"{name}: {_unwritable(error)}")
        return 2
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _tell(f"{name}: {printed(sentence)}")
        return 2
    except KeyboardInterrupt:
        _tell(f"{name}: interrupted")
        return 128 + signal.SIGINT
    except Interrupted as stop:
        _tell(f"{name}: {stop}")
        return 128 + stop.number
    return 0


def _wait_asleep() -> None:
    """Let torch's threads soon sleep while they wait for each other, unless the user has said how they wait.

    OpenMP's own way is to spin, for milliseconds: where another program has one of the cores, the thread that it holds
    up is waited for by burning what is left of them. GNU's looks a thousand times before it sleeps, which takes
    microseconds: on quiet cores a forward took 113 ms so, 114 by its own way and 138 with none; beside a busy program
    187, 370 and 181. OpenMP reads this when torch is loaded, and whoever imports hida into a program of their own
    decides for it.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="1000")


def _require_streams() -> None:
    """Put the null device where stdout or stderr was closed: else the next file that is opened takes its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)  # open as long as the process
            setattr(sys, name, os.fdopen(null, "w", encoding="utf-8", closefd=False))


def _formatted(message: Warning | str, category: type[Warning], filename: str, *place: Any, **line: Any) -> str:
    """Return a warning of ours as one line for the user; others as Python formats them."""
    of_ours = category is UserWarning and Path(filename).is_relative_to(_PACKAGE)
    if of_ours or issubclass(category, HidaWarning):
        return f"hida: {printed(str(message))}\n"
    return _python_formats(message, category, filename, *place, **line)


def _tell(sentence: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone, or the disk of a log full
        print(sentence, file=sys.stderr, flush=True)


def _discard_output() -> None:
    """Print nothing more, not even at exit: the reader (head, less) has left, or the disk is full."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _unwind(number: int, frame: object) -> None:
    """Let SIGTERM and SIGHUP unwind like an interrupt: what is half done is removed. A second one ends at once."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(f"stopped by {signal.Signals(number).name}.", number)


def _is_of_names(encoding: str) -> bool:
    """Return whether names of files are in this encoding, which is one of a few characters."""
    own = codecs.lookup(sys.getfilesystemencoding()).name
    return codecs.lookup(encoding).name == own != "utf-8"


def _unwritable(error: UnicodeEncodeError) -> str:
    name = shown(os.path.basename(error.object))
    return f"{name} cannot be a file's name here, where names are {error.encoding}; set PYTHONUTF8=1."


def _sentence(error: OSError) -> str | None:
    where = f" ({error.filename})" if error.filename else ""
    known = {
        errno.ENOSPC: f"no space is left on the disk{where}; free some or choose another output folder.",
        errno.EDQUOT: f"the disk quota is used up{where}; free some or choose another output folder.",
        errno.EACCES: f"permission denied{where}; choose a path you may read and write.",
        errno.EPERM: f"the operation is not permitted{where}; choose a path you may read and write.",
        errno.EBUSY: f"another program uses it, or something is mounted there{where}; choose another path.",
        errno.EFBIG: f"the file is larger than it may be here{where}; choose another output folder.",
        errno.EROFS: f"the file system is read-only{where}; choose another output folder.",
        errno.ENAMETOOLONG: f"the file name is too long{where}; shorten it.",
        errno.ENOTDIR: f"a part of the path is a file, not a folder{where}; choose another path.",
        errno.EISDIR: f"there is a folder where a file was expected{where}; choose another path.",
        errno.EEXIST: f"there is a file where a folder was expected{where}; choose another path.",
        errno.ENOENT: f"there is no such file or folder{where}; check the path.",
    }
    return None if error.errno is None else known.get(error.errno)
