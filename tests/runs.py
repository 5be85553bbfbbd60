"""Training runs at a tiny size, as several tests start them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch

import hida
from hida.cli import train
from hida.cli.run import run_command
from hida.config import (
    AugmentConfig,
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)
from hida.training.distributed import World
from hida.weights.checkpoint import load

TINY = ["--generator.base-width", "2", "--discriminator.base-width", "1", "--train.batch", "2", "--train.holdout", "1"]
TINY += ["--train.epochs", "4", "--optimizer.constant-epochs", "2", "--train.log-every", "1", "--device", "cpu"]
TINY += ["--train.precision", "fp32", "--train.threads", "1"]
TINY += ["--loss.weight-perceptual", "0"]  # whose network need not be on this machine
_PATHS = [str(Path(hida.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]  # packages may lie there
PROCESS = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(_PATHS)}


RELEASED = Config(
    generator=GeneratorConfig(base_width=2),
    discriminator=DiscriminatorConfig(base_width=1),
    optimizer=OptimizerConfig(constant_epochs=1),
    augment=AugmentConfig(rotate=5, scale=0.1, jitter=0.3, fill_photo="replicate", fill_sketch="white"),
    train=TrainConfig(batch=2, epochs=4, ema=0.5),
)
ALONE = World(0, 1, torch.device("cpu"))


def varied(config=RELEASED, **sections):
    """Return a configuration with other values in some sections: ``varied(train={"seed": 1})``."""
    changed = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **changed)


PAPER_LIKE = varied(
    generator={"residual": "input", "depth_per_level": "gaussian"},
    loss=dataclasses.asdict(LossConfig("cross_entropy", 0.0, "reconstructed", "sobel_sketch", "mse")),
    optimizer={"name": "adam", "weight_decay": 0.0},
)


def hida_train(data, out, *options):
    return run_command(train.main, ["--data", str(data), "--out", str(out), *TINY, *options])


def assert_same_checkpoints(a, b):
    a, b = load(a), load(b)
    assert a.state == b.state
    assert a.tensors.keys() == b.tensors.keys()
    assert [name for name in a.tensors if not torch.equal(a.tensors[name], b.tensors[name])] == []


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
