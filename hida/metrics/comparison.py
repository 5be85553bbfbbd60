"""Compare evaluations: one table, with paired differences from the first (what ``hida compare`` does).

Every difference is over the images that both have, with a 95 % bootstrap interval. The paper's own numbers are marked
as reported: they were measured under another protocol (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hida.errors import HidaError, printed
from hida.metrics.bootstrap import mean_interval
from hida.metrics.groups import group_name
from hida.metrics.protocol import AS_REPORTED, METRICS, TRAINED_ON, Metric
from hida.metrics.report import as_reported_row, cell, markdown_table


def comparison(results: Sequence[Mapping[str, Any]], paper: bool = True) -> str:
    """Return the table and the differences as Markdown.

    Args:
        results: evaluations as :func:`hida.metrics.scores.load` reads them.
        paper: whether to add what the paper reports.

    Raises:
        HidaError: if two evaluations that share a name were scored against different targets.
    """
    shown = [metric for metric in METRICS if any(metric.key in result["metrics"] for result in results)]
    labels = _labels(results)
    names = list(dict.fromkeys(name for result in results for name in result["groups"]))
    rows, notes = [], []
    for name in names:
        counts = set()
        for label, result in zip(labels, results, strict=True):
            group = result["groups"].get(name)
            if group is not None:
                counts.add(group["n"])
                rows.append([label, name, f"{group['n']:,}", *[_marked(metric, group, result) for metric in shown]])
        if len(counts) > 1:
            notes.append(f"{name}: n differs, so the FID values there are not comparable.")
        if name == "overall" and paper:
            keys = [metric.key for metric in shown]
            rows += [[who, name, "1,046", *as_reported_row(values, keys)] for who, values in AS_REPORTED.items()]
    if any(set(result.get("trained_on", ())) & set(result["metrics"]) for result in results):
        notes.append(f"{TRAINED_ON} the training of these weights used its network: no independent evidence.")
    for label, result in zip(labels, results, strict=True):
        notes += [f"{label}: deviates from the protocol: {text}." for text in result["protocol"]["deviations"]]
    if paper:
        notes.append("as reported: from the publication, under another protocol; not comparable digit by digit.")
    parts = [markdown_table(["", "set", "n", *[metric.heading for metric in shown]], rows)]
    if len(results) > 1:
        parts += [f"Differences against {labels[0]}, paired by image:", _differences(results, labels, names, shown)]
    parts.append("\n".join(f"* {note}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _differences(
    results: Sequence[Mapping[str, Any]], labels: Sequence[str], names: Sequence[str], shown: Sequence[Metric]
) -> str:
    rows = []
    base = results[0]
    for label, other in zip(labels[1:], results[1:], strict=True):
        shared = [metric for metric in shown if metric.key in base["metrics"] and metric.key in other["metrics"]]
        for name in names:
            n, values = paired_differences(base, other, name, [metric.key for metric in shared if metric.per_pair])
            if not n:
                continue
            cells = []
            for metric in shown:
                if metric.key in values:
                    cells.append(_difference_cell(metric, *values[metric.key]))
                elif metric in shared:
                    cells.append(_set_difference(metric, base["groups"].get(name), other["groups"].get(name)))
                else:
                    cells.append("–")
            rows.append([label, name, f"{n:,}", *cells])
    return markdown_table(["", "set", "pairs", *[metric.title for metric in shown]], rows) if rows else ""


def paired_differences(
    base: Mapping[str, Any], other: Mapping[str, Any], group: str, keys: Sequence[str]
) -> tuple[int, dict[str, tuple[float, float | None, float | None]]]:
    """Compute the mean of other − base over the names that both have in a group, with its interval.

    Args:
        group: "overall", "style k" or a name of :func:`hida.metrics.groups.group_name`.
        keys: of pair-wise metrics.

    Returns:
        The number of pairs, and (mean, low, high) of each key; low and high are None for a single pair.

    Raises:
        HidaError: if the two were scored against different targets.
    """
    first = {record["name"]: record for record in base["pairs"]}
    # One of them may have been grouped by more than the other.
    common = [
        (first[record["name"]], record)
        for record in other["pairs"]
        if record["name"] in first and group in _groups_of(record, first[record["name"]])
    ]
    for a, b in common:
        if a["target"] != b["target"]:
            raise HidaError(
                f"{printed(base['label'])} and {printed(other['label'])} were scored against different targets "
                f"(first: {printed(a['name'])}); "
                "evaluate both against the same ones."
            )
    if not common or not keys:
        return len(common), {}
    values = np.array([[b[key] - a[key] for key in keys] for a, b in common])
    interval = mean_interval(values)
    low, high = interval if interval is not None else ([None] * len(keys),) * 2
    return len(common), {key: (float(values[:, k].mean()), low[k], high[k]) for k, key in enumerate(keys)}


def _marked(metric: Metric, group: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    text = cell(metric, group.get(metric.key))
    return f"{text} {TRAINED_ON}" if text != "–" and metric.key in result.get("trained_on", ()) else text


def _groups_of(record: Mapping[str, Any], base: Mapping[str, Any]) -> set[str]:
    """Return a pair's groups: those of the base, by further annotations the other's."""
    by = {**record.get("by", {}), **base.get("by", {})}
    return {"overall", f"style {record.get('style')}", *(group_name(name, label) for name, label in by.items())}


def _difference_cell(metric: Metric, mean: float, low: float | None, high: float | None) -> str:
    text = f"{mean * metric.factor:+.{metric.digits}f}"
    if low is None or high is None:
        return text
    verdict = "≈" if low <= 0 <= high else ("better" if mean * metric.better > 0 else "worse")
    return f"{text} [{low * metric.factor:+.{metric.digits}f}, {high * metric.factor:+.{metric.digits}f}] {verdict}"


def _set_difference(metric: Metric, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> str:
    """Return the difference of a distance of sets: without an interval, and not comparable where n differs."""
    if a is None or b is None or a[metric.key]["value"] is None or b[metric.key]["value"] is None:
        return "–"
    if a["n"] != b["n"]:
        return "n differs"
    return f"{(b[metric.key]['value'] - a[metric.key]['value']) * metric.factor:+.{metric.digits}f}"


def _labels(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the labels, numbered where two evaluations have the same."""
    # One line, without the mark that separates the cells of a table.
    plain = [" ".join(result["label"].split()).replace("|", "\\|") for result in results]
    return [label if plain.count(label) == 1 else f"{label} ({i + 1})" for i, label in enumerate(plain)]
