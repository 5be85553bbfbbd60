"""The loop around the iterations: how far it goes, and what is logged, evaluated, drawn and saved on the way."""

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
    """Train to the last epoch or minute, for ``stop_after`` iterations (0: any number), or until ``stop``.

    A checkpoint of the last iteration is in ``out`` afterwards.

    Args:
        watched: the held-out pairs.
        out: the folder of the run.

    Raises:
        CaptureFailed: if the run cannot continue in this process; the checkpoint is there as well.
        HidaError: if the losses are no longer finite.
    """
    state = engine.state
    loop = _Loop(engine, watched, out, stop_after)
    # The time of a run includes what it took to begin again in another process and to load everything once more.
    away = restart.seconds_between()
    clock = Clock(state.world, state.elapsed + away) if loop.timed else None
    try:
        while not loop.over:
            loop.step()
            if clock:
                state.elapsed = clock.read()
            loop.after_step(stop)
    finally:
        loop.close()


class _Loop:
    """What the loop keeps between iterations."""

    def __init__(self, engine: Engine, watched: PairTensors, out: Path, stop_after: int) -> None:
        self.engine, self.state, self.watched, self.out = engine, engine.state, watched, out
        state, size = engine.state, len(engine.pairs)
        config, options = state.config, state.config.train

        # How far
        self.timed = math.isfinite(config.seconds)
        # Counted from the images, since an earlier part of the run may have had another batch.
        epochs_left = max(0, math.ceil((options.epochs * size - state.images) / options.batch))
        self.last = state.iteration + min(math.inf if self.timed else epochs_left, stop_after or math.inf)
        self.stopping = False

        # What is due when: the counter of images crosses a multiple of the interval at the end of a share of an epoch.
        self.samples = _Every(options.sample_epochs * size, state.images)
        self.evaluations = _Every(options.evaluate_epochs * size, state.images)
        self.checkpoints = _Every(options.checkpoint_epochs * size, state.images)
        self.saved = self.logged = time.monotonic()
        self.saved_iteration = -1

        # Where it is told
        leads = state.world.leads
        self.journal = Journal(out, state.iteration, options.tensorboard) if leads else None
        self.bar = _bar(state, self.last, self.timed)

    @property
    def over(self) -> bool:
        """Whether no further iteration is to run."""
        ended = self.state.iteration >= self.last or self.state.elapsed >= self.state.config.seconds
        return self.stopping or ended

    def step(self) -> None:
        """Run one iteration; before one that captures a checkpoint is written, which is removed if it succeeds."""
        way_back = self._way_back() if self.engine.captures_next else None
        self.engine.step()
        if way_back:
            way_back.unlink(missing_ok=True)

    def after_step(self, stop: StopFlag) -> None:
        """Log, evaluate, draw samples and save, each if it is due."""
        state, options = self.state, self.state.config.train
        self.bar.update(int(state.elapsed) - self.bar.n if self.timed else 1)
        logging = state.iteration % options.log_every == 0
        # Processes agree on a stop where they wait for each other anyway.
        self.stopping = state.world.any(stop.raised) if logging or state.world.size == 1 else False
        saving = self._saves()
        if logging:
            self._log()
        if self._evaluates():
            self._evaluate()
        if self.samples.due(state.images):
            self._draw_samples()
        if saving:
            self._save()

    def close(self) -> None:
        """Close the progress bar and the journal."""
        self.bar.close()
        if self.journal:
            self.journal.close()

    @property
    def _epoch(self) -> float:
        return self.state.images / len(self.engine.pairs)

    def _way_back(self) -> Path | None:
        """Write a checkpoint to continue from in another process; None if there is one of this iteration already."""
        state, extra = self.state, None
        if state.world.leads and self.saved_iteration != state.iteration:
            _require_finite(self.engine.losses_here(), state.iteration)
            extra = _write_checkpoint(self.out, state)
        state.world.wait()
        return extra

    def _log(self) -> None:
        engine, state, epoch = self.engine, self.state, self._epoch
        summed, values, now = engine.summed, engine.losses(), time.monotonic()
        speed = summed * state.config.train.batch / (now - self.logged)
        self.logged = now
        _require_finite(values, state.iteration)
        if self.journal:
            more = {"images_per_second": speed}
            if self.timed:
                more |= {"elapsed": state.elapsed, "rate": learning_rate(state.config, epoch, state.elapsed)}
            self.journal.write(state.iteration, epoch, {**values, **more})
        shown = {**{k: f"{v:.3f}" for k, v in values.items()}, "img/s": f"{speed:.1f}"}
        self.bar.set_postfix(shown, refresh=False)

    def _evaluates(self) -> bool:
        """Return whether the held-out error is due: by the epochs, or at the end of the time, which ends no epoch."""
        state = self.state
        at_the_end = self.timed and state.elapsed >= state.config.seconds and bool(state.config.train.evaluate_epochs)
        return at_the_end or self.evaluations.due(state.images)

    def _evaluate(self) -> None:
        if self.journal and len(self.watched):
            error = held_out_error(self.state, self.watched)
            self.journal.write(self.state.iteration, self._epoch, {"held_out_l1": error})

    def _draw_samples(self) -> None:
        if self.journal:
            pairs = self.watched if len(self.watched) else self.engine.pairs
            self.journal.draw_samples(self.state, _sample_batch(pairs, self.state.config))

    def _saves(self) -> bool:
        """Return whether this process has to write a checkpoint: by the epochs, by the minutes, or at the end."""
        state = self.state
        minutes = state.config.train.checkpoint_minutes
        due = self.checkpoints.due(state.images) or time.monotonic() - self.saved > 60 * minutes
        return state.world.leads and (due or self.over)

    def _save(self) -> None:
        _require_finite(self.engine.losses_here(), self.state.iteration)
        save_checkpoint(self.out, self.state)
        self.saved, self.saved_iteration = time.monotonic(), self.state.iteration


def _bar(state: TrainingState, last: float, timed: bool) -> tqdm:
    """Return a progress bar over the iterations, or over the seconds of a timed run."""
    # None: only on a terminal, since a log needs no thousand lines of it.
    disable = None if state.world.leads else True
    if not timed:
        return tqdm(total=last, initial=state.iteration, unit="it", desc="train", disable=disable, dynamic_ncols=True)
    return tqdm(
        total=round(state.config.seconds),
        initial=int(state.elapsed),
        miniters=0,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} s{postfix}",
        desc="train",
        disable=disable,
        dynamic_ncols=True,
    )


def held_out_error(state: TrainingState, watched: PairTensors) -> float:
    """Return the mean absolute error of the EMA generator's sketches, in grey levels of [0, 1]."""
    total = 0.0
    for start in range(0, len(watched), HELD_OUT_BATCH):
        index = torch.arange(start, min(start + HELD_OUT_BATCH, len(watched)))
        batch = centred_batch(watched.take(index), state.config.augment)
        total += float((state.draw(batch)[0] - batch.sketch).abs().mean((1, 2, 3)).sum()) / 2
    return total / len(watched)


def save_checkpoint(out: Path, state: TrainingState) -> None:
    """Write a checkpoint and drop the oldest ones beyond ``train.keep``."""
    path = _write_checkpoint(out, state)
    # Only damaged checkpoints can be of later iterations, since the run began before them: they must not count.
    written = [p for p in checkpoint.checkpoint_paths(out) if p.stem <= path.stem]
    for old in written[state.config.train.keep :]:
        old.unlink(missing_ok=True)


def _write_checkpoint(out: Path, state: TrainingState) -> Path:
    path = checkpoint.checkpoint_path(out, state.iteration)
    checkpoint.save(path, checkpoint.CHECKPOINT, state.config, state.counters(), state.tensors())
    return path


def _sample_batch(pairs: PairTensors, config: Config) -> Batch:
    """Return up to two pairs of each style."""
    picked = [torch.nonzero(pairs.style == style)[:2, 0] for style in range(config.generator.styles)]
    return centred_batch(pairs.take(torch.cat(picked).cpu()), config.augment)


def _require_finite(values: dict[str, float], iteration: int) -> None:
    if not all(map(math.isfinite, values.values())):
        raise HidaError(
            f"the losses are no longer finite at iteration {iteration} ({values}); lower "
            "--optimizer.learning-rate and run the command again: it continues from the last checkpoint."
        )


class _Every:
    """Tell when a counter of images crosses a multiple of an interval (0: never)."""

    def __init__(self, interval: float, start: int) -> None:
        self.interval, self.last = interval, start

    def due(self, images: int) -> bool:
        before, self.last = self.last, images
        return bool(self.interval) and int(images / self.interval) > int(before / self.interval)
