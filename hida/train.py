"""Train HIDA on a prepared data set.

    hida prepare fs2k FS2K data/fs2k
    hida train --data data/fs2k --preset small --out runs/small
    hida train --data data/fs2k --preset small --out runs/small --train.batch 8 --optimizer.learning-rate 1e-4
    torchrun --nproc_per_node=2 -m hida.train --data data/fs2k --preset released --out runs/released

The folder of the run receives config.json, log.jsonl, samples/, checkpoints/ and at the end weights.safetensors.
Calling the same command again continues from the newest whole checkpoint.
"""

from __future__ import annotations

import json
import math
import signal
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
from hida.data.augment import Batch, centred_batch
from hida.data.dataset import PairTensors, load_pairs, split_holdout
from hida.data.packed import prepared_folder
from hida.data.prepared import PreparedSet
from hida.device import choose_device
from hida.drawing.sketcher import Sketcher
from hida.errors import HidaError, run_command
from hida.files import write_json
from hida.training.distributed import World
from hida.training.engine import Engine
from hida.training.journal import Journal, require_tensorboard
from hida.training.state import TrainingState, require_generator
from hida.tuning import tune

HELD_OUT_BATCH = 8


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
    """stop, with a checkpoint, after this many more iterations (0: at the last epoch)"""
    time_limit: float = 0.0
    """stop, with a checkpoint, after about this many minutes (0: at the last epoch)"""
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
    arguments = parse(sys.argv[1:] if argv is None else list(argv))
    world = World.join(choose_device(arguments.device))
    try:
        train(arguments, world)
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


def train(arguments: Arguments, world: World) -> None:
    """Train until the last epoch, ``stop_after`` iterations, or a signal; always leave a checkpoint."""
    config, out = arguments.config, arguments.out
    deadline = time.monotonic() + 60 * arguments.time_limit if arguments.time_limit else math.inf
    _require_runnable(arguments, world)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    tune(world.device)

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
    graphs = config.train.cuda_graph and world.device.type == "cuda" and config.train.precision != "fp16"
    engine = Engine(state, training, graphs)
    with _StopFlag(deadline) as stop:
        _loop(arguments, engine, watched, stop)

    # Phase 4: what remains
    if world.leads and state.images >= config.train.epochs * len(training):
        save_weights(out / "weights.safetensors", state)
        print(f"finished: {out / 'weights.safetensors'}")
    elif world.leads:
        print(f"stopped at iteration {state.iteration}; the same command continues from there.")
    world.wait()


def _loop(arguments: Arguments, engine: Engine, watched: PairTensors, stop: _StopFlag) -> None:
    state, training, config = engine.state, engine.pairs, arguments.config
    world, size, options = state.world, len(engine.pairs), arguments.config.train
    # Counted from the images, since an earlier part of the run may have had another batch.
    last = state.iteration + max(0, math.ceil((options.epochs * size - state.images) / options.batch))
    if arguments.stop_after:
        last = min(last, state.iteration + arguments.stop_after)
    # At the last iterations of an epoch's fraction the counters cross a multiple of the interval.
    sample, evaluate, save = (
        _Every(epochs * size, state.images)
        for epochs in (options.sample_epochs, options.evaluate_epochs, options.checkpoint_epochs)
    )
    saved = marked = time.monotonic()
    journal = Journal(arguments.out, state.iteration, options.tensorboard) if world.leads else None
    # None: only on a terminal, since a log needs no thousand lines of it.
    shown = {"disable": None if world.leads else True, "dynamic_ncols": True}
    bar = tqdm(total=last, initial=state.iteration, desc="train", unit="it", **shown)
    stopping = False
    while state.iteration < last and not stopping:
        engine.step()
        bar.update()
        epoch = state.images / size
        logging = state.iteration % options.log_every == 0
        # Processes agree on a stop where they wait for each other anyway.
        stopping = world.any(stop.raised) if logging or world.size == 1 else False
        due = save.due(state.images) or time.monotonic() - saved > 60 * options.checkpoint_minutes
        saving = world.leads and (due or stopping or state.iteration >= last)
        if logging:
            summed, values, now = engine.summed, engine.losses(), time.monotonic()
            speed = summed * options.batch / (now - marked)
            marked = now
            _require_finite(values, state.iteration)
            if journal:
                journal.write(state.iteration, epoch, {**values, "images_per_second": speed})
            bar.set_postfix({**{k: f"{v:.3f}" for k, v in values.items()}, "img/s": f"{speed:.1f}"}, refresh=False)
        if evaluate.due(state.images) and len(watched) and journal:
            journal.write(state.iteration, epoch, {"held_out_l1": held_out_error(state, watched)})
        if sample.due(state.images) and journal:
            journal.draw_samples(state, _sample_batch(watched if len(watched) else training, config))
        if saving:
            _require_finite(engine.losses_here(), state.iteration)
            save_checkpoint(arguments.out, state)
            saved = time.monotonic()
    bar.close()
    if journal:
        journal.close()


def _require_finite(values: dict[str, float], iteration: int) -> None:
    if not all(map(math.isfinite, values.values())):
        raise HidaError(
            f"the losses are no longer finite at iteration {iteration} ({values}); lower "
            "--optimizer.learning-rate and run the command again: it continues from the last checkpoint."
        )


def held_out_error(state: TrainingState, watched: PairTensors) -> float:
    """Return the mean absolute error of the averaged generator's sketches, in grey levels of [0, 1]."""
    total = 0.0
    for start in range(0, len(watched), HELD_OUT_BATCH):
        index = torch.arange(start, min(start + HELD_OUT_BATCH, len(watched)))
        batch = centred_batch(watched.take(index), state.config.augment)
        total += float((state.draw(batch)[0] - batch.sketch).abs().mean((1, 2, 3)).sum()) / 2
    return total / len(watched)


def taught(pairs: PairTensors, teacher: Sketcher, progress: bool) -> PairTensors:
    """Return the pairs with what ``teacher`` draws of each, once and unframed.

    Framed like the target afterwards, it costs an iteration no forward of the teacher.
    """
    starts = range(0, len(pairs), HELD_OUT_BATCH)
    drawn = [
        teacher.draw_aligned(*(t[k : k + HELD_OUT_BATCH] for t in (pairs.photo, pairs.depth, pairs.style)))
        for k in tqdm(starts, desc="teacher", unit="batch", disable=None if progress else True)
    ]
    return replace(pairs, teacher=torch.cat(drawn).clone())


def save_checkpoint(out: Path, state: TrainingState) -> None:
    """Write a checkpoint and drop the oldest ones beyond ``train.keep``."""
    path = checkpoint.checkpoint_path(out, state.iteration)
    checkpoint.save(path, checkpoint.CHECKPOINT, state.config, state.counters(), state.tensors())
    # A later one can only be torn, since the run began before it: it must not push out whole ones.
    written = [p for p in checkpoint.checkpoint_paths(out) if p.stem <= path.stem]
    for old in written[state.config.train.keep :]:
        old.unlink(missing_ok=True)


def save_weights(path: Path, state: TrainingState, dtype: torch.dtype = torch.float16) -> None:
    """Write the averaged generator alone, as ``hida sketch --weights`` takes it."""
    tensors = {f"ema.{name}": tensor.to(dtype) for name, tensor in state.average.state_dict().items()}
    checkpoint.save(path, checkpoint.WEIGHTS, state.config, state.counters(), tensors)


def _sample_batch(pairs: PairTensors, config: Config) -> Batch:
    """Return two pairs of each style, as far as there are any."""
    picked = [torch.nonzero(pairs.style == style)[:2, 0] for style in range(config.generator.styles)]
    return centred_batch(pairs.take(torch.cat(picked).cpu()), config.augment)


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


class _Every:
    """Tells when a count of images has crossed another multiple of an interval (0: never)."""

    def __init__(self, interval: float, start: int) -> None:
        self.interval, self.last = interval, start

    def due(self, images: int) -> bool:
        before, self.last = self.last, images
        return bool(self.interval) and int(images / self.interval) > int(before / self.interval)


class _StopFlag:
    """Raised by the deadline (of time.monotonic), and by SIGINT and SIGTERM, of which nothing dies then.

    A second SIGINT does interrupt.

    Not within two seconds, however: torchrun passes on the Ctrl-C that the terminal has sent to every process.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline

    @property
    def raised(self) -> bool:
        return self.signalled or time.monotonic() >= self.deadline

    def __enter__(self) -> _StopFlag:
        self.signalled, self.since = False, 0.0
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.signalled and number == signal.SIGINT and now - self.since > 2:
            raise KeyboardInterrupt
        self.signalled, self.since = True, self.since or now

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run_command(main))
