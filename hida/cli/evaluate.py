"""Score sketches against their targets under one written protocol.

    hida evaluate --pred DIR --target DIR                    any sketches against a folder of targets
    hida evaluate --pred DIR --target PREPARED               ... against the test split of a prepared data set
    hida evaluate --weights small --target PREPARED          draw the test split first, then score it
    hida evaluate --weights RUN --target PREPARED --split held_out    ... or the pairs that RUN held out, to tune by

Writes OUT/scores.json, OUT/scores.md and OUT/report.html. Every result is cached by the content of its images, so a
stopped run continues where it was and a second run measures only what is new. Definitions: docs/metrics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from hida.cli.parsing import read_command, unset
from hida.cli.photos import told_warnings
from hida.errors import HidaError
from hida.files import folder_lock, require_folder_place
from hida.training.options import METRICS, Annotation, MetricName


@dataclass(frozen=True)
class Command:
    """Score sketches against their targets: FID, KID, LPIPS, SCOOT, FSIM; overall and per style."""

    target: Path
    """folder of target sketches, or a prepared data set or a pack of it (its test split, with styles and photos)"""
    pred: Annotated[Path | None, unset("PATH")] = None
    """folder of sketches to score, named like the targets"""
    weights: Annotated[str | None, unset("WEIGHTS")] = None
    """draw the test split of a prepared data set with these weights instead: a built-in name, a file or a folder"""
    photos: Annotated[Path | None, unset("PATH")] = None
    """folder of photos to show in the report, named like the targets"""
    out: Path = Path("evaluation")
    """folder for scores.json, scores.md, report.html and, with --weights, the sketches drawn"""
    label: Annotated[str | None, unset("TEXT")] = None
    """name of this evaluation in tables; by default the folder of sketches or the weights"""
    metrics: tuple[MetricName, ...] = METRICS
    """what to measure; scoot and fsim need no weights. lpips_vgg (weights: vgg16-features) is a witness for weights
    that were trained on lpips"""
    by: Annotated[tuple[Annotation, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """score groups of a prepared FS2K as well, by who is drawn: skin, frontal, gender, hair, smile (commas will do)"""
    split: Literal["test", "held_out"] = "test"
    """with --weights: test, or held_out, the training pairs that these weights were not trained on, to tune by"""
    limit: int = 0
    """with --weights: draw and score this many pairs, evenly spread over the split (0: all)"""
    only_common: bool = False
    """score only the names that both folders have, instead of refusing unpaired ones"""
    resize: bool = False
    """resize sketches to their targets' size (bicubic, antialiased), instead of refusing other sizes"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    cache: Annotated[str | None, unset("PATH")] = None
    """file that caches results, or "none"; by default metrics.sqlite in the cache folder"""


def _separated(argv: Sequence[str] | None) -> list[str]:
    """Return the words of the command, those after --by and --metrics without commas: "a,b" is two of them."""
    words: list[str] = []
    listing = False
    given = set()
    for word in sys.argv[1:] if argv is None else argv:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            listing = name in ("--by", "--metrics")
            if listing and name in given:
                raise HidaError(f"{name} is given twice; name all behind one, with spaces or commas between.")
            given.add(name)
            words += [name] if listing and equals else [word]
            word = value
            if not (listing and equals):
                continue
        words += [part.strip() for part in word.split(",") if part.strip()] if listing else [word]
    return words


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida evaluate``."""
    words = _separated(argv)
    command: Command = read_command(Command, words, "hida evaluate", __doc__)
    if (command.pred is None) == (command.weights is None):
        raise HidaError("give either --pred DIR with the sketches to score or --weights to draw them with.")
    from hida.device import choose_device, tune
    from hida.metrics.evaluation import FILES, evaluate
    from hida.metrics.pairing import is_prepared
    from hida.metrics.report import markdown

    if command.photos is not None and (is_prepared(command.target) or command.target.is_file()):
        raise HidaError("--photos has no effect with a prepared data set, which brings its own; leave it out.")
    if command.limit < 0 or (command.limit and command.weights is None):
        raise HidaError("--limit must be 0 or more, and limits what --weights draws; leave it out with --pred.")
    if command.split != "test" and command.weights is None:
        raise HidaError("--split chooses what --weights draws; leave it out with --pred.")
    if not command.metrics:
        raise HidaError(f"--metrics names none; choose from {', '.join(METRICS)}.")
    if not command.by and any(word.split("=")[0] == "--by" for word in words):
        raise HidaError(f"--by names none; choose from {', '.join(get_args(Annotation))}.")
    require_folder_place(command.out)
    device = choose_device(command.device)
    tune(device)
    with folder_lock(command.out, "hida evaluate"), told_warnings():
        result = evaluate(
            command.target,
            command.out,
            prediction=command.pred,
            weights=command.weights,
            metrics=command.metrics,
            photos=command.photos,
            label=command.label,
            by=tuple(dict.fromkeys(command.by)),
            split=command.split,
            limit=command.limit,
            only_common=command.only_common,
            resize=command.resize,
            device=device,
            cache=command.cache,
        )
    print(markdown(result))
    print(f"written: {', '.join(str(command.out / name) for name in FILES)}")
