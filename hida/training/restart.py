"""Begin the command again in the same process: from its newest checkpoint, without CUDA graphs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

_SINCE = "HIDA_BEGUN_AGAIN"
"""environment variable: time.monotonic() when the first process ended; all processes of a machine share that clock"""


def is_own_command(words: Sequence[str]) -> bool:
    """Return whether ``words`` end the process's command line, so that it can begin again with further ones.

    Where another program has called us, replacing the process would end that program.
    """
    return len(words) > 0 and sys.orig_argv[-len(words) :] == list(words)


def begin_again(further: Sequence[str]) -> NoReturn:
    """Replace the process by its own command with ``further`` words at the end; the environment stays."""
    os.environ[_SINCE] = f"{time.monotonic()}"
    sys.stdout.flush()
    sys.stderr.flush()
    # Closing the device's files frees its memory.
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else ():
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                continue  # the one that listed them
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *further])


def seconds_between() -> float:
    """Return the seconds since this process was begun again, which it spent loading; 0 when asked once more."""
    since = os.environ.pop(_SINCE, None)
    return time.monotonic() - float(since) if since else 0.0
