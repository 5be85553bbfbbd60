"""Read ``scores.json``, and check all of it: what is read can be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hida.documents import DocumentError, Value, read_json
from hida.errors import HidaError, shown
from hida.metrics.groups import LABELS, is_group
from hida.metrics.protocol import METRICS, Metric
from hida.metrics.scoring import SCHEMA

_GROUP = re.compile(r"overall|style [1-9][0-9]{0,3}")
_STYLES = 9_999
_LARGEST = 1e9  # of a value of any metric; differences and their means stay finite


def load(path: Path) -> dict[str, Any]:
    """Read an evaluation: a scores.json, or the folder that holds it.

    Raises:
        HidaError: if it is none, damaged, or of another format.
    """
    path = path / "scores.json" if path.is_dir() else path
    if not path.exists():
        raise HidaError(f"'{path}' does not exist; give a scores.json that hida evaluate wrote.")
    try:
        result = read_json(path)
        schema = result.field("schema")
        if schema.raw != SCHEMA or isinstance(schema.raw, bool):
            raise HidaError(f"'{path}' has format {shown(schema.raw)}, this program reads {SCHEMA}; evaluate again.")
        _check(result)
    except DocumentError as error:
        raise HidaError(f"'{path}' is not a file of scores ({error}); run hida evaluate again.") from None
    read: dict[str, Any] = result.raw
    return read


def _check(result: Value) -> None:
    """Check the types, ranges and lengths of everything that a comparison uses."""
    result.field("label").line()
    protocol = result.field("protocol")
    for text in protocol.field("deviations").items():
        text.line()
    known = {metric.key: metric for metric in METRICS}
    minimised = result.optional("trained_on")
    for key in minimised.items() if minimised is not None else ():
        key.one_of(tuple(known))
    keys = [key.one_of(tuple(known)) for key in result.field("metrics").items()]
    if len(set(keys)) < len(keys):
        raise result.field("metrics").wrong("a list of different metrics")
    metrics = [known[key] for key in keys]
    records = result.field("pairs").items(1)
    _check_records(records, metrics)
    groups = result.field("groups")
    if groups.field("overall").field("n").whole(0, len(records)) != len(records):
        raise groups.field("overall").field("n").wrong(f"{len(records)}, the number of pairs")
    for name, group in groups.fields().items():
        if not _GROUP.fullmatch(name) and not is_group(name):
            raise DocumentError(f"groups has {shown(name)}, which is no group that hida evaluate makes")
        group.field("n").whole(0, len(records))
        for metric in METRICS:  # a table shows what any of its evaluations measured
            if metric in metrics or group.optional(metric.key) is not None:
                _check_mean(group.field(metric.key), metric)


def _check_records(records: Sequence[Value], metrics: Sequence[Metric]) -> None:
    names: set[str] = set()
    for record in records:
        name = record.field("name")
        if not isinstance(name.raw, str) or not name.raw:  # any text: a name on disk need not be valid Unicode
            raise name.wrong("a name")
        if name.raw in names:
            raise DocumentError(f"{name.place} is {shown(name.raw)}, which another pair has")
        names.add(name.raw)
        record.field("target").text()
        style = record.optional("style")
        if style is not None and style.raw is not None:
            style.whole(1, _STYLES)
        by = record.optional("by")
        for annotation, label in by.fields().items() if by is not None else ():
            if annotation not in LABELS:
                raise DocumentError(f"{record.place}.by has {shown(annotation)}, which is no annotation")
            label.one_of(LABELS[annotation])
        for metric in metrics:
            if metric.per_pair:
                record.field(metric.key).number(_LARGEST)


def _check_mean(entry: Value, metric: Metric) -> None:
    """Check the value of a group, and the interval that a mean has; a single pair has no distance and no interval."""
    value = entry.field("value")
    if metric.per_pair or value.raw is not None:
        value.number(_LARGEST)
    low, high = entry.optional("low"), entry.optional("high")
    ends = [end.number(_LARGEST) for end in (low, high) if end is not None and end.raw is not None]
    if len(ends) == 1 or (ends and ends[0] > ends[1]):
        raise entry.wrong("a value with both ends of its interval, the lower one first")
