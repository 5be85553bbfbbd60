"""Train the paper's ablations under one budget, score them, and lay the results side by side.

    hida ablate --data data/fs2k --budget 600
    hida ablate --data data/fs2k --presets leaky metaacon infoacon --budget 600 --seeds 0 1 2
    hida ablate --data data/fs2k --budget 4 --base-width 12 --limit 100

Every network is trained for the same number of iterations, on the same pairs in the same order, by one recipe; only the
generator is the preset's. The number follows from the budget and from the speed of all
the networks in their first iterations. OUT receives plan.json, runs/, table.md, table.json and figure.png; the same
command continues a stopped one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from hida import compare, evaluate, train
from hida.config import Config, load_preset
from hida.data.images import read_image, write_png
from hida.data.prepared import PreparedSet
from hida.device import choose_device
from hida.errors import HidaError, Interrupted, run_command
from hida.evaluate import MetricName
from hida.files import write_bytes, write_json
from hida.metrics.protocol import BY_KEY, PAIRS
from hida.models.cost import cost
from hida.pictures import sheet
from hida.report import cell, markdown_table
from hida.training.distributed import World

TRIAL = 12
"""Iterations that tell a network's speed; they are the first of its run, not extra ones."""
_EVERY = 4  # iterations a log line during training
_ALL: tuple[MetricName, ...] = ("fid", "kid", "lpips", "scoot", "fsim")


@dataclass(frozen=True)
class Command:
    """Train the paper's ablations under one budget, score them, and lay the results side by side."""

    data: Path
    """folder that hida prepare wrote"""
    out: Path = Path("runs/ablation")
    """folder for the runs, the table and the figure"""
    presets: tuple[str, ...] = ("model_a", "model_b", "model_c", "model_d", "full")
    """whose generators to train"""
    recipe: str = "released"
    """preset or TOML file whose losses, optimiser and augmentation serve all of them"""
    budget: float | None = None
    """minutes of training a network; all train equally many iterations, so slow ones take more of the common time"""
    iterations: int | None = None
    """iterations instead of a budget"""
    seeds: tuple[int, ...] = (0,)
    """each network is trained once with each"""
    base_width: int = 64
    """base width of the generators and of the discriminator"""
    batch: int = 4
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    limit: int = 0
    """test pairs to score, evenly spread over the split (0: all)"""
    metrics: tuple[MetricName, ...] = _ALL
    photos: tuple[Path, ...] = ()
    """photos for the figure; if left out, a test pair of each style"""
    device: str = "auto"
    """cpu, cuda, or auto"""


@dataclass(frozen=True)
class Run:
    """One network and seed: its configuration but for the length, and its folder."""

    config: Config
    seed: int
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida ablate``."""
    command = tyro.cli(Command, args=argv, prog="hida ablate", description=__doc__)
    _require(command)
    device = choose_device(command.device)
    prepared = PreparedSet.load(command.data)
    runs = [make_run(command, name, seed, len(prepared.styles)) for name in command.presets for seed in command.seeds]
    size = len(prepared.split("train")) - runs[0].config.train.holdout
    if size < 1:
        raise HidaError(f"'{command.data}' has no training pairs beside {runs[0].config.train.holdout} held out ones.")
    iterations = plan(command, runs, size, device)
    for run in runs:
        print(f"{run.folder.name}: {iterations:,} iterations")
        _train(command, run, size, iterations, device)
    results = [score(command, run) for run in runs]
    rows = [row(run, result, iterations) for run, result in zip(runs, results, strict=True)]
    text = report(command, rows, iterations)
    write_json(command.out / "table.json", {"settings": settings(command), "iterations": iterations, "rows": rows})
    write_bytes(command.out / "table.md", text.encode())
    write_png(command.out / "figure.png", figure(command, runs, prepared, device))
    print(text)
    print(f"written: {', '.join(str(command.out / name) for name in ('table.md', 'table.json', 'figure.png'))}")


def make_run(command: Command, name: str, seed: int, styles: int) -> Run:
    """Return the run of the preset ``name``: its generator in the common recipe."""
    recipe, preset = load_preset(command.recipe), load_preset(name)
    generator = dataclasses.replace(preset.generator, base_width=command.base_width, styles=styles)
    loss = recipe.loss
    if not generator.depth:
        loss = dataclasses.replace(loss, weight_geometry=0.0, geometry="rmse", fake_depth="given")
    options = dataclasses.replace(
        recipe.train,
        batch=command.batch,
        minutes=0.0,  # everybody has the same iterations, however long they take
        precision=command.precision,
        seed=seed,
        log_every=_EVERY,
        sample_epochs=0.0,
        evaluate_epochs=0.0,
        keep=1,
    )
    discriminator = dataclasses.replace(recipe.discriminator, base_width=command.base_width)
    optimizer = dataclasses.replace(recipe.optimizer, schedule="epochs")
    config = Config(preset.name, generator, discriminator, loss, optimizer, recipe.augment, options)
    return Run(config, seed, command.out / "runs" / f"{preset.name}-seed{seed}")


def plan(command: Command, runs: Sequence[Run], size: int, device: str) -> int:
    """Return the number of iterations of every network; it is measured once and kept in plan.json."""
    path = command.out / "plan.json"
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            same, iterations = kept["settings"] == settings(command), int(kept["iterations"])
        except (ValueError, KeyError, TypeError) as error:
            raise HidaError(f"'{path}' is damaged ({error}); choose another --out, or remove it.") from None
        if not same:
            raise HidaError(f"'{command.out}' holds an ablation with other settings ({path}); choose another --out.")
        return iterations
    seconds = {}
    if command.iterations:
        iterations = command.iterations
    else:
        first = [run for run in runs if run.seed == command.seeds[0]]
        for run in first:
            print(f"{run.folder.name}: measuring its speed")
            _train(command, run, size, None, device)
            seconds[run.config.name] = command.batch / _speeds(run)[-1]
        iterations = int(60 * command.budget * len(first) / sum(seconds.values()))
        if iterations < 2 * TRIAL:
            raise HidaError(
                f"--budget {command.budget:g} allows {iterations} iterations here; "
                f"give {2 * TRIAL * sum(seconds.values()) / len(first) / 60:.1f} minutes or more."
            )
    settled = {"settings": settings(command), "iterations": iterations, "seconds_per_iteration": seconds}
    write_json(path, settled)
    return iterations


def settings(command: Command) -> dict[str, Any]:
    """Return what decides the training, as plan.json keeps it."""
    names = ("presets", "recipe", "budget", "iterations", "seeds", "base_width", "batch", "precision")
    kept = {name: getattr(command, name) for name in names}
    return {"data": str(command.data)} | {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}


def _train(command: Command, run: Run, size: int, iterations: int | None, device: str) -> None:
    """Train up to ``iterations``, or for a trial of the speed; what is there already is not done again."""
    if run.weights.is_file():
        return
    # Half an iteration less: the rounding of the quotient must not add one.
    length = 1e6 if iterations is None else (iterations - 0.5) * command.batch / size
    config = dataclasses.replace(
        run.config,
        optimizer=dataclasses.replace(run.config.optimizer, constant_epochs=length / 2),
        train=dataclasses.replace(run.config.train, epochs=length),
    )
    if iterations is None and len(_speeds(run)) * _EVERY >= TRIAL:
        return
    arguments = train.Arguments(
        command.data, run.folder, run.config.name, stop_after=TRIAL if iterations is None else 0, config=config
    )
    with _logged(run.folder):
        train.train(arguments, World(0, 1, torch.device(device)))
    if iterations is not None and not run.weights.is_file():
        raise Interrupted(f"stopped in {run.folder}; the same command continues from there.")


def _speeds(run: Run) -> list[float]:
    """Return the images a second of every log line."""
    path = run.folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    entries = [json.loads(line) for line in lines]
    return [entry["images_per_second"] for entry in entries if "images_per_second" in entry]


def score(command: Command, run: Run) -> dict[str, Any]:
    """Draw and score the test pairs; what was measured before is kept by content."""
    folder = run.folder / "evaluation"
    words = ["--weights", str(run.weights), "--target", str(command.data), "--out", str(folder)]
    words += ["--label", run.folder.name, "--limit", str(command.limit), "--device", command.device]
    with _logged(run.folder):
        evaluate.main([*words, "--metrics", *command.metrics])
    return compare.load(folder)


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
    }


def report(command: Command, rows: Sequence[dict[str, Any]], iterations: int) -> str:
    """Return the table as Markdown, with the budget and n below it."""
    keys = [key for key in BY_KEY if key in rows[0]["metrics"]]
    head = ["", "seed", "M parameters", "GFLOP", "minutes", "n", *[BY_KEY[key].heading for key in keys]]
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
    budget = "" if command.budget is None else f" (a budget of {command.budget:g} minutes a network)"
    notes = [
        f"{iterations:,} iterations of {command.batch} pairs each{budget}, base width {command.base_width}, "
        f"{command.precision}, {command.device}; everything but the generator is the recipe of `{command.recipe}`.",
        *dict.fromkeys(f"Deviates from the protocol: {text}." for entry in rows for text in entry["deviations"]),
    ]
    if any(entry["n"] != PAIRS for entry in rows):
        notes.append("FID depends on n: these values compare with each other only.")
    if len(command.seeds) == 1:
        notes.append("One seed: a difference between two rows may be that of two seeds.")
    return markdown_table(head, lines) + "\n\n" + "\n".join(f"* {note}" for note in notes) + "\n"


def figure(command: Command, runs: Sequence[Run], prepared: PreparedSet, device: str) -> Image.Image:
    """Return photos in rows and the networks' sketches of the first seed in columns."""
    from hida.drawing.sketcher import Sketcher

    shown = [run for run in runs if run.seed == command.seeds[0]]
    names = [run.config.name for run in shown]
    if command.photos:
        photos = [read_image(path) for path in command.photos]
        drawers = [Sketcher.from_pretrained(run.weights, device) for run in shown]
        return sheet([[photo, *(draw(photo) for draw in drawers)] for photo in photos], ["photo", *names])
    pairs = evaluate.spread(prepared.split("test"), command.limit)
    firsts = {pair.style: pair for pair in reversed(pairs)}
    rows = []
    for _, pair in sorted(firsts.items()):
        photo, target, _ = (Image.fromarray(np.asarray(values)) for values in prepared.read(pair))
        sketches = [read_image(run.folder / "evaluation" / "sketches" / f"{pair.name}.png") for run in shown]
        rows.append([photo, target, *sketches])
    return sheet(rows, ["photo", "target", *names])


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Send what a step prints to OUT's own file, so that the table is what remains on the screen."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def _require(command: Command) -> None:
    if (command.budget is None) == (command.iterations is None):
        raise HidaError("Give either --budget MINUTES or --iterations N.")
    if command.budget is not None and not 0 < command.budget < math.inf:
        raise HidaError(f"--budget must be a number of minutes above 0; it is {command.budget:g}.")
    if command.iterations is not None and command.iterations < 1:
        raise HidaError(f"--iterations must be 1 or more; it is {command.iterations}.")
    for name in ("presets", "seeds", "metrics"):
        values = getattr(command, name)
        if not values or len(set(values)) < len(values):
            raise HidaError(f"--{name} must name one or more, each once.")


if __name__ == "__main__":
    sys.exit(run_command(main))
