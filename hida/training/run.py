"""Run a training from its data to its weights (what ``hida train`` does with its options)."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from hida import weights
from hida.data.dataset import PairTensors, load_pairs, split_holdout
from hida.data.prepared import PreparedSet
from hida.data.unpacking import prepared_folder
from hida.device import tune
from hida.drawing.sketcher import Sketcher
from hida.errors import HidaError, counted
from hida.files import folder_lock, require_folder_place, write_json
from hida.training import loop
from hida.training.clock import StopFlag
from hida.training.distributed import World
from hida.training.engine import FAIL_CAPTURE, CaptureFailed, Engine
from hida.training.journal import require_tensorboard
from hida.training.objective import Objective
from hida.training.options import RunOptions
from hida.training.state import TrainingState, require_generator
from hida.weights import checkpoint

TEACHER_BATCH = 8


def train(options: RunOptions, world: World) -> None:
    """Train until the last epoch or minute, for ``stop_after`` iterations, or until a signal; leave a checkpoint.

    Raises:
        CaptureFailed: if the run has to continue in another process, without graphs; a checkpoint is there.
        HidaError: if options, data and weights do not fit together, another process trains in the folder, or the losses
            are no longer finite.
    """
    deadline = time.monotonic() + 60 * options.time_limit if options.time_limit else math.inf
    _require_runnable(options, world)
    require_folder_place(options.out)
    with world.in_words(), contextlib.ExitStack() as held:
        # Before the checkpoints are read, which another process may be about to add to.
        world.lead(lambda: held.enter_context(folder_lock(options.out, "hida train")))
        _train(options, world, deadline)


def _train(options: RunOptions, world: World, deadline: float) -> None:
    config, out = options.config, options.out
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    tune(world.device, config.train.cudnn_benchmark)

    # Phase 1: the data, in memory
    prepared = PreparedSet.load(prepared_folder(options.data))
    if len(prepared.styles) != config.generator.styles:
        raise HidaError(
            f"'{options.data}' has {_styles(len(prepared.styles))} but the generator {config.generator.styles}; "
            f"add --generator.styles {len(prepared.styles)}."
        )
    newest = checkpoint.newest(out) if options.resume == "auto" else None
    if options.resume == "never" and checkpoint.checkpoint_paths(out):
        raise HidaError(f"'{out}' already holds checkpoints; choose another --out, or --resume auto to continue.")
    start = checkpoint.load_weights(weights.generator_path(options.start)) if options.start and not newest else None
    if start:
        require_generator(start, config)
    listed = prepared.split("train")
    kept, held_out = split_holdout(len(listed), config.train.holdout, config.train.seed)
    if len(kept) < 1:
        raise HidaError(
            f"'{options.data}' has {len(listed)} training pairs and {config.train.holdout} are held out; "
            "lower --train.holdout."
        )
    teacher = Sketcher.from_pretrained(options.distil, str(world.device)) if options.distil else None
    if teacher and teacher.styles != len(prepared.styles):
        raise HidaError(
            f"the teacher '{options.distil}' has {_styles(teacher.styles)}; "
            f"choose one with {len(prepared.styles)}, as the data has."
        )
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
        discriminator = "its discriminator" if state.adopt(start) else "a fresh discriminator"
        origin = f"begun from {options.start} with {discriminator}"
    world.lead(lambda: _require_room(out, state))
    if world.leads:
        write_json(out / "config.json", config.to_dict())
        print(json.dumps(config.to_dict(), indent=2))
        print(f"{origin}, {counted(len(training), 'pair')}, {world.device}")
    del start

    # Phase 3: the loop
    # The loss scaler of fp16 skips iterations whose gradients overflow; a graph cannot skip any.
    able = world.device.type == "cuda" and config.train.precision != "fp16"
    engine = Engine(state, training, config.train.cuda_graph and (able or FAIL_CAPTURE in os.environ))
    if newest is not None:
        engine.resume(newest)
    del newest
    first = state.iteration
    with StopFlag(deadline) as stop:
        try:
            loop.run(engine, watched, out, stop, options.stop_after)
        except CaptureFailed:
            if not stop.raised:  # else the run was asked to stop meanwhile, and is not to begin again
                raise

        # Phase 4: what remains
        if world.leads:
            _finish(out, state, len(training), idle=state.iteration == first)
        world.wait()


def _finish(out: Path, state: TrainingState, size: int, idle: bool) -> None:
    """Write the weights at the end, or where a timed run stops; print how to continue, and whether nothing was done.

    The digest tells whether two runs are bit by bit the same.
    """
    options, timed = state.config.train, bool(state.config.train.minutes)
    ended = state.elapsed >= state.config.seconds if timed else state.images >= options.epochs * size
    path = out / "weights.safetensors"
    _say(f"EMA generator of iteration {state.iteration}: sha256 {checkpoint.digest(state.ema.state_dict())}")
    if ended or timed:
        checkpoint.write_snapshot(out, path)
    if ended and timed and idle:
        _say(
            f"finished: {path}; its time of {options.minutes:g} min was over already and nothing was trained; "
            "a larger --train.minutes continues it."
        )
    elif ended:
        _say(f"finished: {path}")
    elif timed:
        _say(
            f"stopped at iteration {state.iteration}, after {state.elapsed / 60:.1f} of {options.minutes:g} minutes: "
            f"{path}; the same command continues from there."
        )
    else:
        _say(f"stopped at iteration {state.iteration}; the same command continues from there.")


def _say(line: str) -> None:
    """Print a line, to whom it may concern: the terminal may have been closed."""
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails at its exit


def taught(pairs: PairTensors, teacher: Sketcher, progress: bool) -> PairTensors:
    """Return the pairs with the sketch that ``teacher`` draws of each, once and unframed.

    It is framed later like the target, so that an iteration needs no forward of the teacher.
    """
    starts = range(0, len(pairs), TEACHER_BATCH)
    drawn = [
        teacher.draw_aligned(*(t[k : k + TEACHER_BATCH] for t in (pairs.photo, pairs.depth, pairs.style)))
        for k in tqdm(starts, desc="teacher", unit="batch", disable=None if progress else True)
    ]
    return replace(pairs, teacher=torch.cat(drawn).clone())


def _styles(count: int) -> str:
    return f"{count} style{'s' if count != 1 else ''}"


def _require_room(out: Path, state: TrainingState) -> None:
    """Require that a checkpoint fits on the disk: better now than after hours of training."""
    networks = ((state.generator, 4), (state.discriminator, 3))  # with EMA and the optimisers' means
    need = sum(copies * p.numel() * p.element_size() for network, copies in networks for p in network.parameters())
    # On a full disk the older ones make room.
    older = sum(path.stat().st_size for path in checkpoint.checkpoint_paths(out)[1:])
    disk = shutil.disk_usage(out)
    if disk.total and disk.free + older < need:  # some file systems do not say
        raise HidaError(
            f"a checkpoint of this run takes {need / 1e6:,.0f} MB and {disk.free / 1e6:,.0f} MB are free in '{out}'; "
            "free some or choose another output folder."
        )


def _require_runnable(options: RunOptions, world: World) -> None:
    config = options.config
    if config.train.batch % world.size:
        raise HidaError(
            f"--train.batch {config.train.batch} cannot be shared by {world.size} processes; use a multiple."
        )
    if config.train.precision == "fp16" and world.device.type != "cuda":
        raise HidaError("--train.precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    if config.train.tensorboard:
        require_tensorboard()
    Objective(config, world.device)  # whose network may be missing: better said before the data is read
    if (options.distil is None) != (config.loss.weight_distillation == 0):
        raise HidaError("--distil and a --loss.weight-distillation above 0 have an effect only together; give both.")
    if not 0 <= options.time_limit < math.inf:
        raise HidaError(f"--time-limit is {options.time_limit:g}; give minutes > 0, or 0 for no limit.")
    if options.stop_after < 0:
        raise HidaError(f"--stop-after is {options.stop_after}; give iterations > 0, or 0 for no limit.")
