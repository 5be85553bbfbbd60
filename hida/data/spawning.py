"""Child processes of ours, which import nothing from the current folder.

Python puts the current folder first on the path of ``python -c`` and ``python -m``, which is how workers are begun: a
``pickle.py`` among somebody's photos would run in them before anything of ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from multiprocessing import util

_SAFE = "PYTHONSAFEPATH"  # since Python 3.11


@contextlib.contextmanager
def spawning() -> Iterator[None]:
    """Begin ``multiprocessing``'s spawned workers, in here, without the current folder on their path.

    They are given this process's own path before they import anything of ours, so that HIDA is found where it was.
    """
    if sys.version_info >= (3, 11):
        before = os.environ.get(_SAFE)
        os.environ[_SAFE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SAFE]
            else:
                os.environ[_SAFE] = before
    else:
        # There is only the command line, which multiprocessing puts together by this function.
        name = "_args_from_interpreter_flags"
        flags = getattr(util, name)
        setattr(util, name, lambda: [*flags(), "-I"])
        try:
            yield
        finally:
            setattr(util, name, flags)
