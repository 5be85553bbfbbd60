"""Train the paper's ablations under one budget and score them (what ``hida ablate`` does with its options)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hida.config import Config, load_preset
from hida.data.prepared import PreparedSet
from hida.documents import DocumentError, parse_json, read_json, require_name
from hida.drawing.sketcher import Sketcher
from hida.errors import HidaError, Interrupted
from hida.files import write_bytes, write_json
from hida.images.io import read_image, write_png
from hida.images.sheet import sheet
from hida.metrics.evaluation import evaluate, sketch_of, spread
from hida.metrics.protocol import BY_KEY, PAIRS
from hida.metrics.report import cell, heading, markdown_table, notes_of
from hida.metrics.scoring import load_networks
from hida.models.cost import cost
from hida.training.distributed import World
from hida.training.options import LENGTH_UNKNOWN, AblationOptions, RunOptions
from hida.training.run import train

TRIAL = 12
"""Iterations that a network's speed is measured by; they are the first of its run, not extra ones."""
FILES = ("table.md", "table.json", "figure.png")
_EVERY = 4  # iterations between log lines


@dataclass(frozen=True)
class Run:
    """One network and seed: its configuration without the length, and its folder."""

    config: Config
    seed: int
    folder: Path

    @property
    def weights(self) -> Path:
        """The file that the run ends with."""
        return self.folder / "weights.safetensors"

    @property
    def evaluation(self) -> Path:
        """The folder that its scores are written to."""
        return self.folder / "evaluation"


def ablate(options: AblationOptions, device: str) -> str:
    """Train and score every network, write :data:`FILES`, and return the table as Markdown.

    Raises:
        HidaError: for too few pairs, too small a budget, or a folder of another ablation.
        Interrupted: if a signal has stopped a training; the same options continue from there.
    """
    check(options, device)
    prepared = PreparedSet.load(options.data)
    runs = [make_run(options, name, seed, len(prepared.styles)) for name in options.presets for seed in options.seeds]
    listed, holdout = len(prepared.split("train")), runs[0].config.train.holdout
    size = listed - holdout
    if size < 1:
        raise HidaError(f"'{options.data}' has {listed} training pairs and {holdout} are held out; prepare more.")
    iterations = plan(options, runs, size, device)
    for run in runs:
        print(f"{run.folder.name}: {iterations:,} iterations")
        _train(options, run, size, iterations, device)
    results = [score(options, run, device) for run in runs]
    rows = [row(run, result, iterations) for run, result in zip(runs, results, strict=True)]
    text = report(options, rows, iterations)
    write_json(options.out / "table.json", {"settings": settings(options), "iterations": iterations, "rows": rows})
    write_bytes(options.out / "table.md", text.encode())
    write_png(options.out / "figure.png", figure(options, runs, prepared, device))
    return text


def check(options: AblationOptions, device: str) -> None:
    """Check, before any data are read, that nothing that is asked for fails after hours of training.

    Raises:
        HidaError: naming what would.
    """
    for name in options.presets:
        make_run(options, name, options.seeds[0], 1)
    if options.precision == "fp16" and torch.device(device).type != "cuda":
        raise HidaError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    for path in options.photos:
        read_image(path)
    load_networks(options.metrics, device)


def make_run(options: AblationOptions, name: str, seed: int, styles: int) -> Run:
    """Return the run of the preset ``name``: its generator in the common recipe."""
    recipe, preset = load_preset(options.recipe), load_preset(name)
    try:
        require_name(preset.name)
    except DocumentError as error:
        raise HidaError(f"the preset '{name}' cannot name a folder: {error}; give it another name.") from None
    generator = dataclasses.replace(preset.generator, base_width=options.base_width, styles=styles)
    loss = recipe.loss
    if not generator.depth:
        loss = dataclasses.replace(loss, weight_geometry=0.0, geometry="rmse", fake_depth="given")
    training = dataclasses.replace(
        recipe.train,
        batch=options.batch,
        minutes=0.0,  # all run the same number of iterations, however long they take
        precision=options.precision,
        seed=seed,
        log_every=_EVERY,
        sample_epochs=0.0,
        evaluate_epochs=0.0,
        keep=1,
    )
    discriminator = dataclasses.replace(recipe.discriminator, base_width=options.base_width)
    optimizer = dataclasses.replace(recipe.optimizer, schedule="epochs")
    config = Config(preset.name, generator, discriminator, loss, optimizer, recipe.augment, training)
    return Run(config, seed, options.out / "runs" / f"{preset.name}-seed{seed}")


def plan(options: AblationOptions, runs: Sequence[Run], size: int, device: str) -> int:
    """Return the number of iterations of every network, from plan.json or else measured and written there.

    Raises:
        HidaError: if plan.json is damaged or of another ablation, or the budget is too small.
    """
    path = options.out / "plan.json"
    if path.is_file():
        try:
            kept = read_json(path)
            same, iterations = kept.field("settings").raw == settings(options), kept.field("iterations").whole(1, 10**9)
        except DocumentError as error:
            raise HidaError(f"'{path}' is damaged ({error}); choose another --out, or remove it.") from None
        if not same:
            raise HidaError(f"'{options.out}' holds an ablation with other settings ({path}); choose another --out.")
        return iterations
    seconds: dict[str, float] = {}
    if options.iterations is not None:
        iterations = options.iterations
    elif options.budget is not None:
        first = [run for run in runs if run.seed == options.seeds[0]]
        for run in first:
            print(f"{run.folder.name}: measuring its speed")
            _train(options, run, size, None, device)
            seconds[run.config.name] = options.batch / _speeds(run)[-1]
        iterations = int(60 * options.budget * len(first) / sum(seconds.values()))
        if iterations < 2 * TRIAL:
            raise HidaError(
                f"--budget {options.budget:g} allows {iterations} iterations here; "
                f"give {2 * TRIAL * sum(seconds.values()) / len(first) / 60:.1f} minutes or more."
            )
    else:
        raise HidaError(LENGTH_UNKNOWN)
    settled = {"settings": settings(options), "iterations": iterations, "seconds_per_iteration": seconds}
    write_json(path, settled)
    return iterations


def settings(options: AblationOptions) -> dict[str, Any]:
    """Return the options that decide the training, as plan.json holds them."""
    names = ("presets", "recipe", "budget", "iterations", "seeds", "base_width", "batch", "precision")
    kept = {name: getattr(options, name) for name in names}
    # A preset may have become another recipe since.
    kept["recipe_values"] = load_preset(options.recipe).to_dict()
    return {"data": str(options.data)} | {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def _train(options: AblationOptions, run: Run, size: int, iterations: int | None, device: str) -> None:
    """Train up to ``iterations``, or to measure the speed; what is there already is not done again."""
    if run.weights.is_file():
        return
    # Half an iteration less, so that rounding the quotient does not add one.
    length = 1e6 if iterations is None else (iterations - 0.5) * options.batch / size
    config = dataclasses.replace(
        run.config,
        optimizer=dataclasses.replace(run.config.optimizer, constant_epochs=length / 2),
        train=dataclasses.replace(run.config.train, epochs=length),
    )
    if iterations is None and len(_speeds(run)) * _EVERY >= TRIAL:
        return
    arguments = RunOptions(
        options.data, run.folder, run.config.name, stop_after=TRIAL if iterations is None else 0, config=config
    )
    with _logged(run.folder):
        train(arguments, World(0, 1, torch.device(device)))
    if not run.weights.is_file() if iterations is not None else len(_speeds(run)) * _EVERY < TRIAL:
        raise Interrupted(f"stopped in {run.folder}; the same command continues from there.")


def _speeds(run: Run) -> list[float]:
    """Return the images per second of every log line."""
    path = run.folder / "log.jsonl"
    speeds = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        # The last line of a killed run may be torn.
        with contextlib.suppress(DocumentError):
            speed = parse_json(line, finite=False).optional("images_per_second")
            speeds += [] if speed is None else [speed.number()]
    return speeds


def score(options: AblationOptions, run: Run, device: str) -> dict[str, Any]:
    """Draw and score the test pairs; what was measured before is cached by content."""
    with _logged(run.folder):
        return evaluate(
            options.data,
            run.evaluation,
            weights=str(run.weights),
            metrics=options.metrics,
            label=run.folder.name,
            limit=options.limit,
            device=device,
        )


def row(run: Run, result: dict[str, Any], iterations: int) -> dict[str, Any]:
    """Return one line of the table as JSON holds it."""
    parameters, macs = cost(run.config.generator)
    group = result["groups"]["overall"]
    return {
        "preset": run.config.name,
        "seed": run.seed,
        "generator": run.config.to_dict()["generator"],
        "parameters": parameters,
        "macs": macs,
        "iterations": iterations,
        "minutes": sum(_EVERY * run.config.train.batch / speed for speed in _speeds(run)) / 60,
        "n": group["n"],
        "metrics": {key: group[key] for key in result["metrics"]},
        "deviations": result["protocol"]["deviations"],
        "trained_on": result["trained_on"],
    }


def report(options: AblationOptions, rows: Sequence[dict[str, Any]], iterations: int) -> str:
    """Return the table as Markdown, with notes on the budget and n below it."""
    keys = [key for key in BY_KEY if key in rows[0]["metrics"]]
    head = ["", "seed", "M parameters", "GFLOP", "minutes", "n", *[heading(BY_KEY[key], rows[0]) for key in keys]]
    lines = [
        [
            entry["preset"],
            str(entry["seed"]),
            f"{entry['parameters'] / 1e6:.3f}",
            f"{2 * entry['macs'] / 1e9:.2f}",
            f"{entry['minutes']:.1f}",
            f"{entry['n']:,}",
            *[cell(BY_KEY[key], entry["metrics"][key]) for key in keys],
        ]
        for entry in rows
    ]
    budget = "" if options.budget is None else f" (a budget of {options.budget:g} minutes per network)"
    notes = [
        f"{iterations:,} iterations of {options.batch} pairs each{budget}, base width {options.base_width}, "
        f"{options.precision}, {options.device}; everything but the generator is the recipe of `{options.recipe}`.",
        *dict.fromkeys(f"Deviates from the protocol: {text}." for entry in rows for text in entry["deviations"]),
    ]
    notes += [f"{text}." for text in notes_of({"remarks": [], **rows[0]})]
    if any(entry["n"] != PAIRS for entry in rows):
        notes.append("FID depends on n: these values compare with each other only.")
    if len(options.seeds) == 1:
        notes.append("One seed: a difference between two rows may be that of two seeds.")
    return markdown_table(head, lines) + "\n\n" + "\n".join(f"* {note}" for note in notes) + "\n"


def figure(options: AblationOptions, runs: Sequence[Run], prepared: PreparedSet, device: str) -> Image.Image:
    """Return photos in rows and the networks' sketches of the first seed in columns."""
    shown = [run for run in runs if run.seed == options.seeds[0]]
    names = [run.config.name for run in shown]
    if options.photos:
        photos = [read_image(path) for path in options.photos]
        sketchers = [Sketcher.from_pretrained(run.weights, device) for run in shown]
        drawn = [[photo, *(sketcher.draw(photo, [1])[0][0] for sketcher in sketchers)] for photo in photos]
        return sheet(drawn, ["photo", *names])
    pairs = spread(prepared.split("test"), options.limit)
    firsts = {pair.style: pair for pair in reversed(pairs)}
    rows = []
    for _, pair in sorted(firsts.items()):
        photo, target, _ = (Image.fromarray(np.asarray(values)) for values in prepared.read(pair))
        sketches = [read_image(sketch_of(run.evaluation, pair)) for run in shown]
        rows.append([photo, target, *sketches])
    return sheet(rows, ["photo", "target", *names])


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Send what is printed to ``output.txt`` in the folder, so that the table remains on the screen."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "output.txt").open("a", encoding="utf-8", errors="backslashreplace") as file,
        contextlib.redirect_stdout(file),
    ):
        yield
