"""What a training run, and an ablation, are asked for beside a configuration; loads without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from hida.config import Config

MetricName = Literal["fid", "kid", "lpips", "scoot", "fsim"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
"""the keys of :data:`hida.metrics.protocol.METRICS`, repeated here, since importing hida.metrics loads torch"""


@dataclass(frozen=True)
class RunOptions:
    """Train HIDA on a prepared data set."""

    data: Path
    """folder that hida prepare wrote, or file that hida pack made of it"""
    out: Path
    """folder of the run"""
    preset: str = "small"
    """named configuration, or a TOML file of your own; every value of it can be overridden below"""
    resume: Literal["auto", "never"] = "auto"
    """auto continues from the newest whole checkpoint in --out; never refuses a folder that has one"""
    stop_after: int = 0
    """stop, with a checkpoint, after this many more iterations (0: at the end)"""
    time_limit: float = 0.0
    """stop, with a checkpoint, after about this many minutes (0: at the end)"""
    device: str = "auto"
    """cpu, cuda, or auto"""
    distil: Path | None = None
    """weights of a teacher (a file or a run's folder) whose sketches are a further target; how much they count says
    --loss.weight-distillation"""
    start: str | None = None
    """weights that a fresh run begins from, not random ones: a built-in name, a file or a run's folder; the
    discriminator's too, where they hold them"""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


LENGTH_UNKNOWN = "give either --budget MINUTES or --iterations N."


@dataclass(frozen=True)
class AblationOptions:
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
    metrics: tuple[MetricName, ...] = METRICS
    photos: tuple[Path, ...] = ()
    """photos for the figure; if left out, a test pair of each style"""
    device: str = "auto"
    """cpu, cuda, or auto"""
