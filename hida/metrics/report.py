"""Present an evaluation as a Markdown table and as one HTML file with its best, median and worst pairs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hida.images.embedding import data_uri
from hida.metrics.pairing import Pair
from hida.metrics.protocol import BY_KEY, METRICS, TRAINED_ON, Metric

_SHOWN = 3  # pairs for each of best, median and worst

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
small { opacity: .7; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure div { display: flex; gap: 2px; }
figure img { width: 33%; aspect-ratio: 1; object-fit: contain; background: #fff; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
"""


def cell(metric: Metric, entry: Mapping[str, Any] | None) -> str:
    """Return a value with its interval: ``0.372 [0.368, 0.377]``, or – where it is undefined."""
    if entry is None or entry.get("value") is None:
        return "–"
    text = metric.format(entry["value"])
    if entry.get("low") is not None:
        text += f" [{metric.format(entry['low'])}, {metric.format(entry['high'])}]"
    return text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its first column left and the others right aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def group_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of an evaluation's table: overall, each style, then each group."""
    metrics = [metric for metric in METRICS if metric.key in result["metrics"]]
    head = ["", "n", *[heading(metric, result) for metric in metrics]]
    rows = [
        [name, f"{group['n']:,}", *[cell(metric, group.get(metric.key)) for metric in metrics]]
        for name, group in result["groups"].items()
    ]
    return head, rows


def heading(metric: Metric, result: Mapping[str, Any]) -> str:
    """Return a metric's heading, marked where the training of the weights used its network."""
    return f"{metric.heading} {TRAINED_ON}" if metric.key in result.get("trained_on", ()) else metric.heading


def notes_of(result: Mapping[str, Any]) -> list[str]:
    """Return what is to be known beside the numbers: remarks, and what a mark means."""
    minimised = [BY_KEY[key].title for key in result.get("trained_on", ()) if key in result["metrics"]]
    marked = f"{TRAINED_ON} the training used its network ({', '.join(minimised)}): no independent evidence"
    return [*result["remarks"], *([marked] if minimised else [])]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the whole evaluation as Markdown."""
    parts = [f"# {result['label']}", markdown_table(*group_rows(result)), _protocol_line(result)]
    parts += [f"* {rule}" for rule in result["protocol"]["rules"]]
    parts += [f"* **deviation**: {text}" for text in result["protocol"]["deviations"]]
    parts += [f"* {text}" for text in notes_of(result)]
    return "\n\n".join(parts[:3]) + "\n\n" + "\n".join(parts[3:]) + "\n"


def _protocol_line(result: Mapping[str, Any]) -> str:
    held = "" if not result["protocol"]["deviations"] else ", with deviations"
    return f"Protocol {result['protocol']['name']}{held}:"


def html_report(result: Mapping[str, Any], pairs: Sequence[Pair]) -> str:
    """Return a self-contained page: the table, the protocol, and each metric's best, median and worst pairs."""
    head, rows = group_rows(result)
    cells = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    protocol = result["protocol"]
    notes = [*protocol["rules"], *(f"deviation: {text}" for text in protocol["deviations"]), *notes_of(result)]
    listed = "".join(f"<li>{html.escape(text)}</li>" for text in notes)
    sections = "".join(
        _section(metric, result["pairs"], pairs)
        for metric in METRICS
        if metric.per_pair and metric.key in result["metrics"]
    )
    title = html.escape(result["label"])
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>\n<h1>{title}</h1>\n'
        f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>\n'
        f"<p>{html.escape(_protocol_line(result))}</p><ul>{listed}</ul>\n{sections}"
        "<p><small>The page holds pictures of the data set it was made from: its licence applies to them.</small></p>"
        "</html>\n"
    )


def _section(metric: Metric, records: Sequence[Mapping[str, Any]], pairs: Sequence[Pair]) -> str:
    values = np.array([record[metric.key] for record in records])
    order = np.argsort(-metric.better * values, kind="stable")
    shown = min(_SHOWN, len(order))
    middle = max(0, len(order) // 2 - shown // 2)
    chosen = {"best": order[:shown], "median": order[middle : middle + shown], "worst": order[len(order) - shown :]}
    parts = [f"<h2>{html.escape(metric.heading)}</h2>"]
    for name, rows in chosen.items():
        figures = "".join(_figure(pairs[i], f"{metric.title} {metric.format(values[i])}") for i in rows)
        parts.append(f'<h3>{name}</h3><div class="pairs">{figures}</div>')
    return "\n".join(parts) + "\n"


def _figure(pair: Pair, value: str) -> str:
    named = [("photo", pair.photo), ("prediction", pair.prediction), ("target", pair.target)]
    images = "".join(
        f'<img alt="{name}" title="{name}" src="{_picture(path)}">' for name, path in named if path is not None
    )
    style = "" if pair.style is None else f", style {pair.style + 1}"
    order = ", ".join(name for name, path in named if path is not None)
    caption = html.escape(f"{value} — {pair.name}{style} ({order})")
    return f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>"


def _picture(path: Path) -> str:
    from hida.images.io import read_image

    image = read_image(path)
    image.thumbnail((256, 256))
    channels = np.asarray(image)
    grey = bool((channels == channels[..., :1]).all())
    if grey:
        return data_uri(Image.fromarray(channels[..., 0]), "png")
    # Only for looking at: what is measured is never recompressed.
    return data_uri(image, "jpeg", quality=92)


def as_reported_row(values: Mapping[str, float], metrics: Sequence[str]) -> list[str]:
    """Return the cells of a row from a publication, each marked as reported."""
    return [f"{BY_KEY[key].format(values[key])} (as reported)" if key in values else "–" for key in metrics]
