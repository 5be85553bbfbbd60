"""Begin the command again in the same process: from its newest checkpoint, without CUDA graphs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


def is_own_command(words: Sequence[str]) -> bool:
    """Return whether ``words`` end the process's command line, so that it can be begun again with further ones.

    Where another program has called us, replacing the process would end that program.
    """
    return len(words) > 0 and sys.orig_argv[-len(words) :] == list(words)


def begin_again(further: Sequence[str]) -> NoReturn:
    """Replace the process by its own command with ``further`` words at the end; the environment stays."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Whatever keeps the device's memory goes with its files.
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else ():
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                continue  # the one that listed them
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *further])
