"""Groups of pairs by who is drawn, from FS2K's annotations: whether some are drawn worse than others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hida.data import skin
from hida.errors import HidaError, counted

SKIN = ((41.0, "light"), (28.0, "intermediate"), (10.0, "tan"), (-30.0, "brown"), (-math.inf, "dark"))
"""ITA in degrees above which skin belongs to a group, from the lightest on (Chardon et al. 1991; Del Bino et al. 2006,
their very light and light as one)"""
NO_GROUP = ""

# The field, and what its 0 and its 1 mean.
_CODES: dict[str, tuple[str, tuple[str, str]]] = {
    "frontal": ("frontal_face", ("yes", "no")),
    "gender": ("gender", ("men", "women")),
    "hair": ("hair", ("yes", "no")),
    "smile": ("smile", ("yes", "no")),
}
LABELS: dict[str, tuple[str, ...]] = {
    "skin": tuple(label for _, label in SKIN),
    **{name: labels for name, (_, labels) in _CODES.items()},
}
"""the groups of each annotation, in the order of the table"""

PROXY = (
    "skin: groups of the individual typology angle at the point that FS2K's annotators marked, a proxy that mixes skin "
    "with light and camera: light above 41°, intermediate above 28°, tan above 10°, brown above −30°, dark"
)
COUNTS = "FID grows as n falls: between groups compare KID, which does not, and mind its interval"


def labels_of(pairs: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, str]]:
    """Return of each pair, given by its attributes, its group of every annotation in ``by``.

    A pair whose marked point is outside of its photo (one of FS2K's training pairs) has no group of skin.

    Raises:
        HidaError: if a pair lacks an annotation; the message says what to do.
    """
    found = [{name: _READERS[name](attributes) for name in by} for attributes in pairs]
    for name in by:
        without = sum(labels[name] is None for labels in found)
        if not without:
            continue
        which = "no pair has" if without == len(pairs) else f"{counted(without, 'pair lacks', 'pairs lack')}"
        way = "FS2K's annotations hold it"
        if name == "skin":
            way = "it is written when FS2K is prepared: run 'hida prepare fs2k' on the same folders again"
        raise HidaError(f"--by {name}: {which} that annotation ({way}); leave {name} out to score without it.")
    return [{name: label for name, label in labels.items() if label} for labels in found]


def group_name(by: str, label: str) -> str:
    """Return what a group is called in scores.json and in tables."""
    return f"{by}: {label}"


def is_group(name: str) -> bool:
    """Return whether a text is a name that :func:`group_name` gives."""
    by, _, label = name.partition(": ")
    return label in LABELS.get(by, ())


def _skin(attributes: Mapping[str, Any]) -> str | None:
    angle = attributes.get(skin.KEY)
    if angle is None and skin.KEY in attributes:
        return NO_GROUP
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not -180 <= angle <= 180:
        return None
    return next(label for least, label in SKIN if angle > least)


def _coded(key: str, labels: tuple[str, str]) -> Callable[[Mapping[str, Any]], str | None]:
    def read(attributes: Mapping[str, Any]) -> str | None:
        value = attributes.get(key)
        return labels[value] if type(value) is int and value in (0, 1) else None

    return read


_READERS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "skin": _skin,
    **{name: _coded(key, labels) for name, (key, labels) in _CODES.items()},
}
