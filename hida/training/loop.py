"""The loop around the iterations: how far, and what is logged, watched and saved on the way."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from hida.config import Config
from hida.data.dataset import PairTensors
from hida.data.framing import Batch, centred_batch
from hida.errors import HidaError
from hida.training import restart
from hida.training.clock import Clock, StopFlag
from hida.training.engine import Engine
from hida.training.journal import Journal
from hida.training.schedule import learning_rate
from hida.training.state import TrainingState
from hida.weights import checkpoint

HELD_OUT_BATCH = 8


def run(engine: Engine, watched: PairTensors, out: Path, stop: StopFlag, stop_after: int) -> None:
    """Train to the end of the epochs or of the time, for ``stop_after`` iterations (0: any), or until ``stop``.

    A checkpoint of the last iteration is in ``out`` then.

    Raises:
        CaptureFailed: if there is no going on in this process; a checkpoint of the last iteration is there as well.
        HidaError: if the losses are no longer finite.
    """
    state, world = engine.state, engine.state.world
    loop = _Loop(engine, watched, out, stop_after)
    # A run for a given time is over then, also where it had to begin again and to load everything once more.
    away = restart.seconds_between()
    clock = Clock(world, state.elapsed + away) if loop.timed else None
    try:
        while not loop.over:
            if engine.captures_next:
                loop.step_with_a_way_back()
            else:
                engine.step()
            if clock:
                state.elapsed = clock.read()
            loop.after_step(stop)
    finally:
        loop.close()


class _Loop:
    """What the loop keeps between iterations."""

    def __init__(self, engine: Engine, watched: PairTensors, out: Path, stop_after: int) -> None:
        self.engine, self.watched, self.out = engine, watched, out
        state, size = engine.state, len(engine.pairs)
        config, options = state.config, state.config.train
        self.timed = math.isfinite(config.seconds)
        # Counted from the images, since an earlier part of the run may have had another batch.
        epochs_left = max(0, math.ceil((options.epochs * size - state.images) / options.batch))
        self.last = state.iteration + min(math.inf if self.timed else epochs_left, stop_after or math.inf)
        self.stopping = False
        # At the last iterations of an epoch's fraction the counters cross a multiple of the interval.
        self.sample, self.evaluate, self.save = (
            _Every(epochs * size, state.images)
            for epochs in (options.sample_epochs, options.evaluate_epochs, options.checkpoint_epochs)
        )
        self.saved = self.marked = time.monotonic()
        self.saved_iteration = -1
        leads = state.world.leads
        self.journal = Journal(out, state.iteration, options.tensorboard) if leads else None
        length = {"total": self.last, "initial": state.iteration, "unit": "it"}
        if self.timed:
            length = {"total": round(config.seconds), "initial": int(state.elapsed), "miniters": 0}
            length["bar_format"] = "{l_bar}{bar}| {n_fmt}/{total_fmt} s{postfix}"
        # None: only on a terminal, since a log needs no thousand lines of it.
        self.bar = tqdm(**length, desc="train", disable=None if leads else True, dynamic_ncols=True)

    @property
    def over(self) -> bool:
        return self.stopping or self.ended

    @property
    def ended(self) -> bool:
        state = self.engine.state
        return state.iteration >= self.last or state.elapsed >= state.config.seconds

    def step_with_a_way_back(self) -> None:
        """Run the iteration that captures, with a checkpoint before it; where it succeeds that goes again."""
        state = self.engine.state
        extra = None
        if state.world.leads and self.saved_iteration != state.iteration:
            _require_finite(self.engine.losses_here(), state.iteration)
            extra = _write_checkpoint(self.out, state)
        state.world.wait()
        self.engine.step()
        if extra:
            extra.unlink(missing_ok=True)

    def after_step(self, stop: StopFlag) -> None:
        """Log, watch, draw and save what is due."""
        engine, state, journal = self.engine, self.engine.state, self.journal
        options, epoch = state.config.train, state.images / len(engine.pairs)
        self.bar.update(int(state.elapsed) - self.bar.n if self.timed else 1)
        logging = state.iteration % options.log_every == 0
        # Processes agree on a stop where they wait for each other anyway.
        self.stopping = state.world.any(stop.raised) if logging or state.world.size == 1 else False
        due = self.save.due(state.images) or time.monotonic() - self.saved > 60 * options.checkpoint_minutes
        saving = state.world.leads and (due or self.over)
        if logging:
            self._log(epoch)
        if (self._evaluates() or self.evaluate.due(state.images)) and len(self.watched) and journal:
            journal.write(state.iteration, epoch, {"held_out_l1": held_out_error(state, self.watched)})
        if self.sample.due(state.images) and journal:
            journal.draw_samples(
                state, _sample_batch(self.watched if len(self.watched) else engine.pairs, state.config)
            )
        if saving:
            _require_finite(engine.losses_here(), state.iteration)
            save_checkpoint(self.out, state)
            self.saved, self.saved_iteration = time.monotonic(), state.iteration

    def _log(self, epoch: float) -> None:
        engine, state = self.engine, self.engine.state
        summed, values, now = engine.summed, engine.losses(), time.monotonic()
        speed = summed * state.config.train.batch / (now - self.marked)
        self.marked = now
        _require_finite(values, state.iteration)
        if self.journal:
            more = {"images_per_second": speed}
            if self.timed:
                more |= {"elapsed": state.elapsed, "rate": learning_rate(state.config, epoch, state.elapsed)}
            self.journal.write(state.iteration, epoch, {**values, **more})
        shown = {**{k: f"{v:.3f}" for k, v in values.items()}, "img/s": f"{speed:.1f}"}
        self.bar.set_postfix(shown, refresh=False)

    def _evaluates(self) -> bool:
        """Return whether this is the last iteration of the time, which falls on no epoch's end."""
        state = self.engine.state
        return self.timed and state.elapsed >= state.config.seconds and bool(state.config.train.evaluate_epochs)

    def close(self) -> None:
        self.bar.close()
        if self.journal:
            self.journal.close()


def held_out_error(state: TrainingState, watched: PairTensors) -> float:
    """Return the mean absolute error of the averaged generator's sketches, in grey levels of [0, 1]."""
    total = 0.0
    for start in range(0, len(watched), HELD_OUT_BATCH):
        index = torch.arange(start, min(start + HELD_OUT_BATCH, len(watched)))
        batch = centred_batch(watched.take(index), state.config.augment)
        total += float((state.draw(batch)[0] - batch.sketch).abs().mean((1, 2, 3)).sum()) / 2
    return total / len(watched)


def save_checkpoint(out: Path, state: TrainingState) -> None:
    """Write a checkpoint and drop the oldest ones beyond ``train.keep``."""
    path = _write_checkpoint(out, state)
    # A later one can only be torn, since the run began before it: it must not push out whole ones.
    written = [p for p in checkpoint.checkpoint_paths(out) if p.stem <= path.stem]
    for old in written[state.config.train.keep :]:
        old.unlink(missing_ok=True)


def _write_checkpoint(out: Path, state: TrainingState) -> Path:
    path = checkpoint.checkpoint_path(out, state.iteration)
    checkpoint.save(path, checkpoint.CHECKPOINT, state.config, state.counters(), state.tensors())
    return path


def _sample_batch(pairs: PairTensors, config: Config) -> Batch:
    """Return two pairs of each style, as far as there are any."""
    picked = [torch.nonzero(pairs.style == style)[:2, 0] for style in range(config.generator.styles)]
    return centred_batch(pairs.take(torch.cat(picked).cpu()), config.augment)


def _require_finite(values: dict[str, float], iteration: int) -> None:
    if not all(map(math.isfinite, values.values())):
        raise HidaError(
            f"the losses are no longer finite at iteration {iteration} ({values}); lower "
            "--optimizer.learning-rate and run the command again: it continues from the last checkpoint."
        )


class _Every:
    """Tells when a count of images has crossed another multiple of an interval (0: never)."""

    def __init__(self, interval: float, start: int) -> None:
        self.interval, self.last = interval, start

    def due(self, images: int) -> bool:
        before, self.last = self.last, images
        return bool(self.interval) and int(images / self.interval) > int(before / self.interval)
