"""The options of a training run and of an ablation, without the configuration; importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hida.config import Config

MetricName = Literal["fid", "kid", "lpips", "lpips_vgg", "scoot", "fsim"]
METRICS: tuple[MetricName, ...] = ("fid", "kid", "lpips", "scoot", "fsim")
"""The metrics that are measured unless others are asked for.

The names repeat those of :data:`hida.metrics.protocol.METRICS`, and the annotations below those of
:data:`hida.metrics.groups.LABELS`, since importing hida.metrics loads torch.
"""
Annotation = Literal["skin", "frontal", "gender", "hair", "smile"]


@dataclass(frozen=True)
class _Options(Config):
    """A configuration whose name, that of its preset, is no option."""

    name: Annotated[str, tyro.conf.Suppress] = "released"


@dataclass(frozen=True)
class RunOptions:
    """Train HIDA on a prepared data set."""

    data: Path
    """folder that hida prepare wrote, or the file that hida pack made of it"""
    out: Path
    """folder of the run, to write to"""
    preset: str = "small"
    """preset by name, or a TOML file of your own; the options below override its values"""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the newest whole checkpoint in --out; never: refuse a folder that has one"""
    stop_after: int = 0
    """stop, with a checkpoint, after so many more iterations (0: no limit)"""
    time_limit: float = 0.0
    """stop, with a checkpoint, after about so many minutes (0: no limit)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    distil: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """weights of a teacher whose sketches are a further target, weighted by --loss.weight-distillation"""
    start: Annotated[str | None, tyro.conf.arg(metavar="WEIGHTS", help_behavior_hint="")] = None
    """weights to begin a fresh run from, and its discriminator if any: a built-in name, a file or a run's folder"""
    config: Annotated[Config, tyro.conf.arg(name="", constructor=_Options)] = field(default_factory=Config)


LENGTH_UNKNOWN = "give either --budget MINUTES or --iterations N."


@dataclass(frozen=True)
class AblationOptions:
    """Train the paper's ablations under one budget, score them, and put the results into one table."""

    data: Path
    """folder that hida prepare wrote"""
    out: Path = Path("runs/ablation")
    """folder for the runs, the table and the figure"""
    presets: tuple[str, ...] = ("model_a", "model_b", "model_c", "model_d", "full")
    """presets whose generators to train"""
    recipe: str = "released"
    """preset or TOML file whose losses, optimiser and augmentation are used for all of them"""
    budget: Annotated[float | None, tyro.conf.arg(metavar="MINUTES", help_behavior_hint="")] = None
    """minutes of training per network, on average; all run equally many iterations, so slow ones take longer"""
    iterations: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """iterations per network, instead of a budget"""
    seeds: tuple[int, ...] = (0,)
    """seeds; each network is trained once with each"""
    base_width: int = 64
    """base width of the generators and of the discriminator"""
    batch: int = 4
    """pairs per iteration"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast precision; fp16 needs a GPU"""
    limit: int = 0
    """test pairs to score, evenly spread over the split (0: all)"""
    metrics: tuple[MetricName, ...] = METRICS
    """what to measure; scoot and fsim need no weights"""
    photos: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PHOTO...", help_behavior_hint="")] = ()
    """photos for the figure; if left out, one test pair of each style"""
    device: str = "auto"
    """cpu, cuda, or auto"""
