"""Names that tell files of several folders apart."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path


def told_apart(paths: Iterable[Path], forms: Sequence[Callable[[Path], str]], joint: str) -> dict[Path, str]:
    """Return a name for each path, of which no two are equal, but for the case of letters, if their folders allow it.

    Args:
        paths: of which no two should lead to the same place: these get the same name.
        forms: what a path may be called, the shortest first. Those that would share it get the next, then the names of
            as many of their folders as tell them apart before the first, or before the next.
        joint: what is between the names of folders and the name.
    """
    names = {path: forms[0](path) for path in paths}
    alike: dict[str, list[Path]] = defaultdict(list)
    for path, name in names.items():
        alike[name.casefold()].append(path)
    for group in alike.values():
        most = max(len(path.absolute().parts) for path in group) if len(group) > 1 else 0
        for count, form in product(range(most), forms):
            longer = {path: joint.join([*_folders(path, count), form(path)]) for path in group}
            if len({name.casefold() for name in longer.values()}) == len(group):
                names |= longer
                break
    return names


def _folders(path: Path, count: int) -> list[str]:
    """Return the names of the last ``count`` folders above a path, or of all that there are."""
    folders = Path(os.path.abspath(path)).parts[1:-1]
    return [*folders[max(0, len(folders) - count) :]]
