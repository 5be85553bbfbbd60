"""The loop around the iterations: how far it goes, and what is logged, evaluated, drawn and saved on the way."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hida.data.dataset import PairTensors
from hida.errors import HidaError
from hida.training import restart
from hida.training.clock import Abandoned, Guard, Meeting, StopFlag, Told
from hida.training.engine import Engine
from hida.training.held_out import Stopped, draw_samples, held_out_error
from hida.training.journal import Journal
from hida.training.schedule import learning_rate
from hida.training.state import TrainingState
from hida.weights import checkpoint

LONG = 1.0
"""seconds of an iteration from which on a signal abandons it: its work is done again, instead of waited for"""


def run(engine: Engine, watched: PairTensors, out: Path, stop: StopFlag, stop_after: int) -> None:
    """Train to the last epoch or minute, for ``stop_after`` iterations (0: any number), or until ``stop``.

    A checkpoint of the last iteration is in ``out`` afterwards. Before the first iteration is done, signals end the
    command as they do elsewhere; ``stop`` is armed then.

    Args:
        watched: the held-out pairs.
        out: the folder of the run.

    Raises:
        CaptureFailed: if the run cannot continue in this process; the checkpoint is there as well.
        HidaError: if the losses are no longer finite, or another process of the run has ended.
        OSError: if a file cannot be written; what was trained until then is in a checkpoint, if that could be.
    """
    loop = _Loop(engine, watched, out, stop, stop_after)
    try:
        loop.make_up()
        while not loop.over:
            if loop.step():
                stop.arm()
                loop.after_step()
    finally:
        loop.close()
    if loop.refused:
        raise loop.refused


class _Loop:
    """What the loop keeps between iterations."""

    def __init__(self, engine: Engine, watched: PairTensors, out: Path, stop: StopFlag, stop_after: int) -> None:
        self.engine, self.state, self.watched, self.out = engine, engine.state, watched, out
        state, size = engine.state, len(engine.pairs)
        config, options = state.config, state.config.train

        # How far
        self.timed = math.isfinite(config.seconds)
        # Counted from the images, since an earlier part of the run may have had another batch.
        epochs_left = max(0, math.ceil((options.epochs * size - state.images) / options.batch))
        self.last = state.iteration + min(math.inf if self.timed else epochs_left, stop_after or math.inf)
        self.stop, self.stopping = stop, False
        # The time of a run includes what it took to begin again in another process and to load everything once more.
        self.meeting = Meeting(state.world, state.elapsed + restart.seconds_between())
        self.refused: OSError | None = None
        self.lasted = 0.0
        # A GPU is quick, and what it has been given cannot be called back.
        state.guard = Guard(stop, self.meeting) if state.world.device.type == "cpu" else None

        # What is due when: the counter of images crosses a multiple of the interval at the end of a share of an epoch.
        before = max(0, state.images - options.batch)
        self.samples = _Every(options.sample_epochs * size, before)
        self.evaluations = _Every(options.evaluate_epochs * size, before)
        self.checkpoints = _Every(options.checkpoint_epochs * size, state.images)
        self.saved = self.logged = time.monotonic()
        self.saved_iteration, self.logged_iteration = -1, state.iteration

        # Where it is told
        leads = state.world.leads
        self.journal = Journal(out, state.iteration, options.tensorboard) if leads else None
        self.bar = _bar(state, self.last, self.timed)

    @property
    def over(self) -> bool:
        """Whether no further iteration is to run."""
        ended = self.state.iteration >= self.last or self.state.elapsed >= self.state.config.seconds
        return self.stopping or ended

    def step(self) -> bool:
        """Run one iteration; before one that captures a checkpoint is written, which is removed if it succeeds.

        Returns:
            False if a signal came in the middle of a long one, which was abandoned; what was before is saved.
        """
        way_back, began = self._way_back() if self.engine.captures_next else None, time.monotonic()
        try:
            self.engine.step()
        except Abandoned:
            self.stopping = True
            self._save_once()
            return False
        self.lasted = time.monotonic() - began
        if way_back:
            way_back.unlink(missing_ok=True)
        return True

    def make_up(self) -> None:
        """Do what was due when the run was stopped, but was put off so that it could end at once."""
        evaluates, draws = self._evaluates(), self.samples.due(self.state.images)
        if self.journal and self.state.iteration:
            no_error, no_samples = self.journal.lacks(self.state.iteration)
            if evaluates and no_error:
                self._evaluate(self.journal, lambda: False)
            if draws and no_samples:
                self._draw_samples(self.journal, lambda: False)

    def after_step(self) -> None:
        """Log, save, evaluate and draw samples, each if it is due; where the run is asked to stop, only save."""
        state = self.state
        saves_now = time.monotonic() - self.saved > 60 * state.config.train.checkpoint_minutes
        told = self._meet(saves_now, self.lasted > LONG)
        if state.guard:
            state.guard.active = told.wishes[1]
        if self.timed:
            state.elapsed = told.seconds
        self.bar.update(int(state.elapsed) - self.bar.n if self.timed else 1)
        evaluates, draws = self._evaluates(), self.samples.due(state.images)
        saves = self.checkpoints.due(state.images) or told.wishes[0] or self.over
        if state.iteration % state.config.train.log_every == 0:
            self._log()
        # Saved first: a process that is killed while it evaluates has lost nothing, and the next one makes up for it.
        if saves:
            self._save()
        if evaluates:
            self._evaluate(self.journal, self._asked_to_stop)
        if draws:
            self._draw_samples(self.journal, self._asked_to_stop)
        if self.stopping:
            self._save_once()

    def close(self) -> None:
        """Close the progress bar and the journal."""
        self.bar.close()
        if self.journal:
            self.journal.close()

    @property
    def _epoch(self) -> float:
        return self.state.images / len(self.engine.pairs)

    def _meet(self, *wishes: bool) -> Told:
        """Decide with all other processes whether to stop; they hear the leader's wishes."""
        told = self.meeting.hold(self.stop.raised or self.refused is not None, wishes)
        self.stopping = self.stopping or told.stop
        return told

    def _asked_to_stop(self) -> bool:
        if not self.stopping:
            self._meet()
        return self.stopping

    def _way_back(self) -> Path | None:
        """Write a checkpoint to continue from in another process; None if there is one of this iteration already."""
        state = self.state
        if self.saved_iteration == state.iteration:
            return None
        path = _write_checkpoint(self.out, self.engine)
        state.world.wait()
        return path if state.world.leads else None

    def _write(self, act: Callable[[], None]) -> None:
        """Write something to read; where the disk is full the run stops, and saves what it has."""
        try:
            act()
        except OSError as error:
            self.refused = self.refused or error

    def _log(self) -> None:
        engine, state, epoch = self.engine, self.state, self._epoch
        values, now, iterations = engine.losses(), time.monotonic(), state.iteration - self.logged_iteration
        speed = iterations * state.config.train.batch / (now - self.logged)
        self.logged, self.logged_iteration = now, state.iteration
        _require_finite(values, state.iteration)
        if self.journal:
            more = {"images_per_second": speed}
            if self.timed:
                more |= {"elapsed": state.elapsed, "rate": learning_rate(state.config, epoch, state.elapsed)}
            self._write(partial(self.journal.write, state.iteration, epoch, {**values, **more}))
        shown = {**{k: f"{v:.3f}" for k, v in values.items()}, "img/s": f"{speed:.1f}"}
        self.bar.set_postfix(shown, refresh=False)

    def _evaluates(self) -> bool:
        """Return whether the held-out error is due: by the epochs, or at the end of the time, which ends no epoch."""
        state = self.state
        at_the_end = self.timed and state.elapsed >= state.config.seconds and bool(state.config.train.evaluate_epochs)
        return (self.evaluations.due(state.images) or at_the_end) and len(self.watched) > 0

    def _evaluate(self, journal: Journal | None, stopped: Stopped) -> None:
        error = held_out_error(self.state, self.watched, stopped)
        if journal and error is not None:
            self._write(partial(journal.write, self.state.iteration, self._epoch, {"held_out_l1": error}))

    def _draw_samples(self, journal: Journal | None, stopped: Stopped) -> None:
        drawn = draw_samples(self.state, self.watched if len(self.watched) else self.engine.pairs, stopped)
        if journal and drawn is not None:
            self._write(partial(journal.write_samples, self.state.iteration, drawn))

    def _save_once(self) -> None:
        if self.saved_iteration != self.state.iteration:
            self._save()

    def _save(self) -> None:
        save_checkpoint(self.out, self.engine)
        if self.journal:
            self.journal.flush()
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


def save_checkpoint(out: Path, engine: Engine) -> None:
    """Write a checkpoint and drop the oldest ones beyond ``train.keep``; every process has to call it.

    Raises:
        HidaError: in all processes, if the losses are no longer finite.
        OSError: if it cannot be written; on a full disk the older checkpoints make room, but the newest stays.
    """
    path = _write_checkpoint(out, engine)
    # Only damaged checkpoints can be of later iterations, since the run began before them: they must not count.
    written = [p for p in checkpoint.checkpoint_paths(out) if p.stem <= path.stem]
    for old in written[engine.state.config.train.keep :] if engine.state.world.leads else ():
        old.unlink(missing_ok=True)


def _write_checkpoint(out: Path, engine: Engine) -> Path:
    state, sums = engine.state, engine.sums_of_all()
    means = {name.split(".")[1]: float(value.float().mean()) / max(engine.summed, 1) for name, value in sums.items()}
    del means["iterations"]
    _require_finite(means, state.iteration)
    path = checkpoint.checkpoint_path(out, state.iteration)
    if state.world.leads:
        write = partial(checkpoint.save, path, checkpoint.CHECKPOINT, state.config, state.counters())
        try:
            write({**state.tensors(), **sums})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _make_room(out):
                raise
            write({**state.tensors(), **sums})
    return path


def _make_room(out: Path) -> bool:
    """Remove the checkpoints before the newest whole one; return whether there were any."""
    found = checkpoint.newest(out, ())
    older = [path for path in checkpoint.checkpoint_paths(out) if found and path.stem < found.path.stem]
    for path in older:
        path.unlink(missing_ok=True)
    return bool(older)


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
