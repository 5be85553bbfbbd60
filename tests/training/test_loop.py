"""Around the iterations: a stop at any moment loses nothing, and neither does a full disk."""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from runs import assert_same_checkpoints, hida_train, log

from hida.files import folder_lock
from hida.models import Generator
from hida.training import loop
from hida.training import run as train
from hida.training.journal import Journal
from hida.training.state import TrainingState
from hida.weights import checkpoint
from hida.weights.checkpoint import checkpoint_path, checkpoint_paths, load

# Four iterations, an epoch each; three held-out pairs, drawn one by one.
OPTIONS = ("--train.holdout", "3", "--train.evaluate-epochs", "1", "--train.sample-epochs", "2")
LAST = "checkpoints/iteration-00000004.safetensors"


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    assert hida_train(data, out, *OPTIONS) == 0
    return out


def assert_same_runs(out, straight):
    """All files that a run leaves are the same, but for times."""
    for name in (LAST, "weights.safetensors"):
        assert_same_checkpoints(out / name, straight / name)
    lines = [[{k: v for k, v in e.items() if k != "images_per_second"} for e in log(o)] for o in (out, straight)]
    assert lines[0] == lines[1]
    samples = [{path.name: path.read_bytes() for path in (o / "samples").iterdir()} for o in (out, straight)]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("at", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 3, 4, 5))])
def test_a_stop_between_the_pairs_that_are_drawn_saves_at_once_and_they_are_drawn_later(
    data, straight, tmp_path, monkeypatch, at
):
    """By the second iteration there are 3 pairs of a held-out error, then 3 more, then the 2 or 3 of a sample grid."""
    draw, drawn = TrainingState.draw, []

    def draw_and_stop(state, batch):
        drawn.append(state.iteration)
        if state.iteration == 2 and drawn.count(2) == at:
            signal.raise_signal(signal.SIGTERM)
        return draw(state, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "draw", draw_and_stop)
        assert hida_train(data, tmp_path, *OPTIONS) == 0
    assert drawn.count(2) == at  # no other pair was drawn after the signal
    assert load(checkpoint_paths(tmp_path)[0]).iteration == 2
    assert hida_train(data, tmp_path, *OPTIONS) == 0
    assert_same_runs(tmp_path, straight)


def test_the_checkpoint_of_an_evaluation_is_there_before_it(data, tmp_path, monkeypatch):
    """Who kills the process while it draws finds the last iteration saved."""
    monkeypatch.setattr(TrainingState, "draw", lambda *_: os._exit(7))
    child = os.fork()
    if not child:
        hida_train(data, tmp_path, *OPTIONS, "--train.checkpoint-epochs", "1")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert load(checkpoint_path(tmp_path, 1)).iteration == 1


@pytest.mark.parametrize(
    ("part", "iteration"),
    [
        ("drawing", 2),
        pytest.param("the discriminator's gradients", 2, marks=pytest.mark.slow),
        pytest.param("the discriminator's step", 3, marks=pytest.mark.slow),
        ("the generator's gradients", 3),
        ("the generator's step", 2),
    ],
)
def test_a_signal_in_the_middle_of_a_long_iteration_gives_it_up_and_nothing_of_it_remains(
    data, straight, tmp_path, monkeypatch, part, iteration
):
    """Only the last step is worth finishing. Calls, in an iteration: a forward, two backwards, two steps."""
    monkeypatch.setattr(loop, "LONG", -1.0)
    owner, name, number = {
        "drawing": (Generator, "forward", 1),
        "the discriminator's gradients": (torch.Tensor, "backward", 1),
        "the discriminator's step": (torch.optim.AdamW, "step", 1),
        "the generator's gradients": (torch.Tensor, "backward", 2),
        "the generator's step": (torch.optim.AdamW, "step", 2),
    }[part]
    act, done, states = getattr(owner, name), [], []
    begin = TrainingState.begin
    monkeypatch.setattr(TrainingState, "begin", lambda state, epoch: (states.append(state), begin(state, epoch)))

    def act_and_stop(*values, **more):
        result = act(*values, **more)
        done.append(states[-1].iteration)
        if done.count(iteration - 1) == number and done[-1] == iteration - 1:
            signal.raise_signal(signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, act_and_stop)
        assert hida_train(data, tmp_path, *OPTIONS) == 0
    saved = load(checkpoint_paths(tmp_path)[0])
    assert saved.iteration == (iteration if part == "the generator's step" else iteration - 1)
    assert hida_train(data, tmp_path, *OPTIONS) == 0
    assert_same_runs(tmp_path, straight)


def test_a_signal_in_a_short_iteration_waits_for_its_end(data, tmp_path, monkeypatch):
    finish = TrainingState.finish

    def stop_in_the_second(state):
        if state.iteration == 1:
            signal.raise_signal(signal.SIGHUP)
        finish(state)

    monkeypatch.setattr(TrainingState, "finish", stop_in_the_second)
    assert hida_train(data, tmp_path, *OPTIONS) == 0
    assert load(checkpoint_paths(tmp_path)[0]).iteration == 2


@pytest.mark.parametrize("moment", ["reading the pairs", "building the networks", "the first iteration"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_before_the_first_iteration_is_done_ends_the_command(
    data, tmp_path, monkeypatch, capsys, moment, number
):
    owner, name = {
        "reading the pairs": (train, "load_pairs"),
        "building the networks": (train, "TrainingState"),
        "the first iteration": (TrainingState, "update"),
    }[moment]
    monkeypatch.setattr(owner, name, lambda *_, **__: signal.raise_signal(number))
    out = tmp_path / "out"
    assert hida_train(data, out) == 128 + number
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == ("hida: interrupted" if number == signal.SIGINT else f"hida: stopped by {number.name}.")
    assert sorted(path.name for path in out.rglob("*")) == (
        ["config.json", "log.jsonl"] if moment == "the first iteration" else []
    )


def test_speeds_are_those_of_the_process_that_logs_them(data, tmp_path, monkeypatch):
    """Iterations of ten seconds, two pairs each; the second process has one of the two before the line."""
    now, finish = [0.0], TrainingState.finish
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(TrainingState, "finish", lambda state: (now.__setitem__(0, now[0] + 10), finish(state)))
    for _ in range(2):
        assert hida_train(data, tmp_path, *OPTIONS, "--train.log-every", "2", "--stop-after", "3") == 0
    assert [e["images_per_second"] for e in log(tmp_path) if "pixel" in e] == pytest.approx([0.2, 0.2])


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_a_log_line_leaves_a_checkpoint_and_the_same_command_continues(
    data, straight, tmp_path, monkeypatch, capsys
):
    """The line was not written in any part: the next run writes it."""
    write = Journal.write

    def sometimes_full(journal, iteration, *values, **more):
        (full if iteration == 3 else write)(journal, iteration, *values, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", sometimes_full)
        assert hida_train(data, tmp_path, *OPTIONS) == 2
    assert "no space is left on the disk" in capsys.readouterr().err.splitlines()[-1]
    assert load(checkpoint_paths(tmp_path)[0]).iteration >= 3
    assert hida_train(data, tmp_path, *OPTIONS) == 0
    for name in (LAST, "weights.safetensors"):
        assert_same_checkpoints(tmp_path / name, straight / name)


def test_on_a_full_disk_old_checkpoints_make_room_and_the_newest_stays(data, straight, tmp_path, monkeypatch, capsys):
    save, fits = checkpoint.save, [9]

    def into_a_small_disk(path, kind, *content):
        if kind == checkpoint.CHECKPOINT and len(checkpoint_paths(tmp_path)) >= fits[0]:
            full()
        save(path, kind, *content)

    monkeypatch.setattr(checkpoint, "save", into_a_small_disk)
    options = (*OPTIONS, "--train.checkpoint-epochs", "1")
    assert hida_train(data, tmp_path, *options, "--stop-after", "3") == 0
    assert len(checkpoint_paths(tmp_path)) == 3
    fits[0] = 1
    assert hida_train(data, tmp_path, *options) == 2
    assert "no space is left on the disk" in capsys.readouterr().err.splitlines()[-1]
    assert [load(path).iteration for path in checkpoint_paths(tmp_path)] == [3]
    fits[0] = 2
    assert hida_train(data, tmp_path, *options) == 0
    assert_same_runs(tmp_path, straight)


def test_a_run_whose_checkpoint_does_not_fit_is_refused_before_it_trains(data, tmp_path, monkeypatch, capsys):
    assert hida_train(data, tmp_path / "out", "--stop-after", "1") == 0
    size = checkpoint_path(tmp_path / "out", 1).stat().st_size
    for free, status in ((0.9 * size, 2), (1.1 * size, 0)):
        monkeypatch.setattr(train.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(total=1e12, free=free))
        assert hida_train(data, tmp_path / f"{status}", "--stop-after", "1") == status
    assert "a checkpoint of this run takes 2 MB and" in capsys.readouterr().err
    assert not (tmp_path / "2").exists()


def test_a_folder_that_another_process_trains_in_is_refused_with_who_and_since_when(data, straight, tmp_path, capsys):
    names = sorted(path.name for path in straight.rglob("*"))
    with folder_lock(straight, "hida train"):
        assert hida_train(data, straight, "--train.epochs", "9") == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"'{straight}' is in use by hida train, process {os.getpid()} on" in said
        assert "since 20" in said
    assert sorted(path.name for path in straight.rglob("*")) == names
