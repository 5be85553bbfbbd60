"""Train HIDA on a prepared data set.

    hida prepare fs2k FS2K data/fs2k
    hida train --data data/fs2k --preset small --out runs/small
    hida train --data data/fs2k --preset small --out runs/small --train.batch 8 --optimizer.learning-rate 1e-4
    hida train --data data/fs2k --preset small --out runs/quick --optimizer.schedule elapsed --train.minutes 30
    torchrun --nproc_per_node=2 -m hida.train --data data/fs2k --preset released --out runs/released

The folder of the run receives config.json, log.jsonl, samples/, checkpoints/ and at the end weights.safetensors.
Calling the same command again continues from the newest whole checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from hida import checkpoint, weights
from hida.config import Config, load_preset, presets
from hida.data.dataset import PairTensors, load_pairs, split_holdout
from hida.data.packed import prepared_folder
from hida.data.prepared import PreparedSet
from hida.device import choose_device
from hida.drawing.sketcher import Sketcher
from hida.errors import HidaError, run_command
from hida.files import write_json
from hida.training import loop, restart
from hida.training.clock import StopFlag
from hida.training.distributed import World
from hida.training.engine import FAIL_CAPTURE, WARM_UP, CaptureFailed, Engine
from hida.training.journal import require_tensorboard
from hida.training.state import TrainingState, require_generator
from hida.tuning import tune

TEACHER_BATCH = 8


@dataclass(frozen=True)
class Arguments:
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida train``."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments, began = parse(words), time.monotonic()
    world = World.join(choose_device(arguments.device))
    try:
        train(arguments, world)
    except CaptureFailed as failure:
        # Processes that have met cannot meet again one by one: there torchrun's user has to do it.
        if world.size > 1 or not restart.is_own_command(words):
            raise
        print(
            f"warning: the iteration could not be captured as a CUDA graph ({failure.reason}); the run starts again "
            "without graphs, from the same state.",
            file=sys.stderr,
        )
        restart.begin_again(_rest_of(arguments, time.monotonic() - began))
    finally:
        world.leave()


def parse(argv: list[str]) -> Arguments:
    """Read the command line over the preset that it names."""
    preset = "small"
    for position, word in enumerate(argv):
        if word == "--preset" and position + 1 < len(argv):
            preset = argv[position + 1]
        elif word.startswith("--preset="):
            preset = word.split("=", 1)[1]
    default = Arguments(data=tyro.MISSING, out=tyro.MISSING, preset=preset, config=load_preset(preset))
    description = f"{Arguments.__doc__} Presets: {', '.join(presets())}."
    return tyro.cli(Arguments, args=argv, default=default, prog="hida train", description=description)


def _rest_of(arguments: Arguments, seconds: float) -> list[str]:
    """Return the words that have the command do without graphs what it has not done up to the capture."""
    words = ["--train.no-cuda-graph", "--resume", "auto"]
    if arguments.time_limit:
        words += ["--time-limit", f"{max(arguments.time_limit - seconds / 60, 1e-9):.9f}"]
    if arguments.stop_after:
        words += ["--stop-after", str(arguments.stop_after - WARM_UP)]
    return words


def train(arguments: Arguments, world: World) -> None:
    """Train until the last epoch or minute, ``stop_after`` iterations, or a signal; always leave a checkpoint.

    Raises:
        CaptureFailed: if the run has to go on in another process, without graphs; a checkpoint is there.
    """
    config, out = arguments.config, arguments.out
    deadline = time.monotonic() + 60 * arguments.time_limit if arguments.time_limit else math.inf
    _require_runnable(arguments, world)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    tune(world.device, config.train.cudnn_benchmark)

    # Phase 1: the data, in memory
    prepared = PreparedSet.load(prepared_folder(arguments.data))
    if len(prepared.styles) != config.generator.styles:
        raise HidaError(
            f"'{arguments.data}' has {len(prepared.styles)} styles but the generator {config.generator.styles}; "
            f"add --generator.styles {len(prepared.styles)}."
        )
    newest = checkpoint.newest(out) if arguments.resume == "auto" else None
    if arguments.resume == "never" and checkpoint.checkpoint_paths(out):
        raise HidaError(f"'{out}' already holds checkpoints; choose another --out, or --resume auto to continue.")
    start = checkpoint.load_weights(weights.generator_path(arguments.start)) if arguments.start and not newest else None
    if start:
        require_generator(start, config)
    listed = prepared.split("train")
    kept, held_out = split_holdout(len(listed), config.train.holdout, config.train.seed)
    if len(kept) < 1:
        raise HidaError(
            f"'{arguments.data}' has {len(listed)} training pairs and {config.train.holdout} are held out; "
            "lower --train.holdout."
        )
    teacher = Sketcher.from_pretrained(arguments.distil, str(world.device)) if arguments.distil else None
    if teacher and teacher.styles != len(prepared.styles):
        raise HidaError(f"the teacher '{arguments.distil}' has {teacher.styles} styles; choose one with the data's.")
    pairs = load_pairs(prepared, listed, progress=world.leads)
    training, watched = pairs.take(kept).to(world.device), pairs.take(held_out).to(world.device)
    del pairs
    if teacher:
        training = taught(training, teacher, progress=world.leads)

    # Phase 2: the state, fresh or resumed
    state = TrainingState(config, world)
    origin = "begun from random weights"
    if newest is not None:
        state.restore(newest)
        origin = f"resumed from {newest.path}"
    elif start is not None:
        judge = "its discriminator" if state.adopt(start) else "a fresh discriminator"
        origin = f"begun from {arguments.start} with {judge}"
    if world.leads:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", config.to_dict())
        print(json.dumps(config.to_dict(), indent=2))
        print(f"{origin}, {len(training)} pairs, {world.device}")
    del newest, start

    # Phase 3: the loop
    # The scaler of fp16 skips iterations whose gradients overflow, which a graph cannot.
    able = world.device.type == "cuda" and config.train.precision != "fp16"
    engine = Engine(state, training, config.train.cuda_graph and (able or FAIL_CAPTURE in os.environ))
    first = state.iteration
    with StopFlag(deadline) as stop:
        try:
            loop.run(engine, watched, out, stop, arguments.stop_after)
        except CaptureFailed:
            if not stop.raised:  # asked to stop meanwhile, the run has nothing to go on with
                raise

    # Phase 4: what remains
    if world.leads:
        _finish(out, state, len(training), idle=state.iteration == first)
    world.wait()


def _finish(out: Path, state: TrainingState, size: int, idle: bool) -> None:
    """Write the weights at the end, and where a timed run stops; say how to go on, and whether nothing was done."""
    options, timed = state.config.train, bool(state.config.train.minutes)
    ended = state.elapsed >= state.config.seconds if timed else state.images >= options.epochs * size
    path = out / "weights.safetensors"
    if ended or timed:
        checkpoint.write_snapshot(out, path)
    if ended and timed and idle:
        print(
            f"finished: {path}; its time of {options.minutes:g} min was over already and nothing was trained; "
            "a larger --train.minutes continues it."
        )
    elif ended:
        print(f"finished: {path}")
    elif timed:
        print(
            f"stopped at iteration {state.iteration}, after {state.elapsed / 60:.1f} of {options.minutes:g} minutes: "
            f"{path}; the same command continues from there."
        )
    else:
        print(f"stopped at iteration {state.iteration}; the same command continues from there.")


def taught(pairs: PairTensors, teacher: Sketcher, progress: bool) -> PairTensors:
    """Return the pairs with what ``teacher`` draws of each, once and unframed.

    Framed like the target afterwards, it costs an iteration no forward of the teacher.
    """
    starts = range(0, len(pairs), TEACHER_BATCH)
    drawn = [
        teacher.draw_aligned(*(t[k : k + TEACHER_BATCH] for t in (pairs.photo, pairs.depth, pairs.style)))
        for k in tqdm(starts, desc="teacher", unit="batch", disable=None if progress else True)
    ]
    return replace(pairs, teacher=torch.cat(drawn).clone())


def _require_runnable(arguments: Arguments, world: World) -> None:
    config = arguments.config
    if config.train.batch % world.size:
        raise HidaError(
            f"--train.batch {config.train.batch} cannot be shared by {world.size} processes; use a multiple."
        )
    if config.train.precision == "fp16" and world.device.type != "cuda":
        raise HidaError("--train.precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    if config.train.tensorboard:
        require_tensorboard()
    if (arguments.distil is None) != (config.loss.weight_distillation == 0):
        raise HidaError("--distil and a --loss.weight-distillation above 0 have an effect only together; give both.")
    if not 0 <= arguments.time_limit < math.inf:
        raise HidaError(f"--time-limit is {arguments.time_limit:g}; give minutes > 0, or 0 for no limit.")
    if arguments.stop_after < 0:
        raise HidaError(f"--stop-after is {arguments.stop_after}; give iterations > 0, or 0 to go on to the end.")


if __name__ == "__main__":
    sys.exit(run_command(main))
