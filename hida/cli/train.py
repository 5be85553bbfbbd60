"""Train HIDA on a prepared data set.

    hida prepare fs2k FS2K data/fs2k
    hida train --data data/fs2k --preset small --out runs/small
    hida train --data data/fs2k --preset small --out runs/small --train.batch 8 --optimizer.learning-rate 1e-4
    hida train --data data/fs2k --preset small --out runs/quick --optimizer.schedule elapsed --train.minutes 30
    torchrun --nproc_per_node=2 -m hida.train --data data/fs2k --preset released --out runs/released

The folder of the run receives config.json, log.jsonl, samples/, checkpoints/ and, at the end, weights.safetensors.
The same command again continues from the newest whole checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import tyro

from hida.cli.parsing import read_command
from hida.config import Config, ConfigError, load_preset, presets
from hida.errors import HidaError
from hida.training.options import RunOptions


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida train``."""
    words = sys.argv[1:] if argv is None else list(argv)
    command, began = parse(words), time.monotonic()
    from hida.device import choose_device
    from hida.training import restart
    from hida.training.distributed import World
    from hida.training.engine import WARM_UP, CaptureFailed
    from hida.training.run import train

    world = World.join(choose_device(command.device))
    try:
        train(command, world)
    except CaptureFailed as failure:
        # The processes of a group cannot begin again one by one: there the user of torchrun has to do it.
        if world.size > 1 or not restart.is_own_command(words):
            raise
        print(
            f"warning: the iteration could not be captured as a CUDA graph ({failure.reason}); the run starts again "
            "without graphs, from the same state.",
            file=sys.stderr,
        )
        restart.begin_again(_rest_of(command, time.monotonic() - began, WARM_UP))
    finally:
        world.leave()


def parse(argv: list[str]) -> RunOptions:
    """Read the command line; its defaults are those of the preset that it names."""
    preset = "small"
    for position, word in enumerate(argv):
        if word == "--preset" and position + 1 < len(argv):
            preset = argv[position + 1]
        elif word.startswith("--preset="):
            preset = word.split("=", 1)[1]
    default = RunOptions(data=tyro.MISSING, out=tyro.MISSING, preset=preset, config=load_preset(preset))
    description = f"{__doc__}\nPresets: {', '.join(presets())}."
    try:
        options: RunOptions = read_command(RunOptions, argv, "hida train", description, default)
    except ConfigError as error:
        if not error.field:
            raise
        raise HidaError(f"--{error.field.replace('_', '-')}{str(error).removeprefix(error.field)}") from None
    return replace(options, config=Config(**vars(options.config)))  # it comes as the class that says what is an option


def _rest_of(command: RunOptions, seconds: float, done: int) -> list[str]:
    """Return the options that make the command do the rest without graphs, ``seconds`` and ``done`` iterations on."""
    words = ["--train.no-cuda-graph", "--resume", "auto"]
    if command.time_limit:
        words += ["--time-limit", f"{max(command.time_limit - seconds / 60, 1e-9):.9f}"]
    if command.stop_after:
        words += ["--stop-after", str(command.stop_after - done)]
    return words
