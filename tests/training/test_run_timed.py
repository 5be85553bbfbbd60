"""hida train for a given time: the rate's course, every way to end, weights in all of them."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import torch
from runs import hida_train, log
from test_run_processes import ended, start, torchrun

from hida.training import clock
from hida.training import run as train
from hida.training.state import TrainingState
from hida.weights.checkpoint import checkpoint_paths, load, load_generator, newest

# A minute of iterations that take ten seconds each, by the clock of the fixture; no epoch ends the run.
TIMED = ("--optimizer.schedule", "elapsed", "--train.minutes", "1", "--optimizer.decay-share", "0.5")
TIMED += ("--train.epochs", "1", "--optimizer.constant-epochs", "1", "--train.evaluate-epochs", "0")
TIMED += ("--train.sample-epochs", "0", "--train.checkpoint-epochs", "0", "--optimizer.learning-rate", "3e-4")


@pytest.fixture
def rates(monkeypatch):
    """Let every iteration take ten seconds; return the list of both networks' rates in each."""
    now, seen, finish = [1000.0], [], TrainingState.finish

    def finish_later(state):
        seen.append(tuple(round(state.rates[name].item() / 3e-4, 4) for name in ("generator", "discriminator")))
        now[0] += 10
        finish(state)

    for module in (clock, train):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(TrainingState, "finish", finish_later)
    return seen


def assert_weights_are_the_newest_checkpoints(out):
    """They load, and are its averaged generator in half precision, with its counters."""
    generator, _ = load_generator(out / "weights.safetensors")
    written, saved = load(out / "weights.safetensors"), newest(out)
    assert written.state == saved.state
    for name, value in saved.part("ema").items():
        assert torch.equal(written.tensors[f"ema.{name}"], value.half())
        assert torch.equal(generator.state_dict()[name], value.half().float())
    return saved.state


def test_the_rate_is_constant_then_falls_to_zero_by_the_clock(data, tmp_path, rates, capsys):
    assert hida_train(data, tmp_path, *TIMED, "--optimizer.discriminator-rate", "2") == 0
    assert [generator for generator, _ in rates] == [1, 1, 1, 1, 0.6667, 0.3333]
    assert [d for _, d in rates] == pytest.approx([2 * g for g, _ in rates], abs=1e-3)
    state = assert_weights_are_the_newest_checkpoints(tmp_path)
    assert (state["iteration"], state["elapsed"]) == (6, 60)
    assert f"finished: {tmp_path / 'weights.safetensors'}" in capsys.readouterr().out
    assert [(entry["elapsed"], entry["rate"]) for entry in log(tmp_path)] == [
        (10, 3e-4), (20, 3e-4), (30, 3e-4), (40, pytest.approx(2e-4)), (50, pytest.approx(1e-4)), (60, 0),
    ]  # fmt: skip


def test_a_run_that_is_over_says_so_again_and_more_time_continues_it(data, tmp_path, rates, capsys):
    assert hida_train(data, tmp_path, *TIMED) == 0
    assert "over already" not in capsys.readouterr().out
    (tmp_path / "weights.safetensors").unlink()
    rates.clear()
    assert hida_train(data, tmp_path, *TIMED) == 0
    assert rates == []
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"finished: {tmp_path / 'weights.safetensors'}; its time of 1 min was over already and")
    assert said.endswith("nothing was trained; a larger --train.minutes continues it.")
    assert assert_weights_are_the_newest_checkpoints(tmp_path)["iteration"] == 6
    assert hida_train(data, tmp_path, *TIMED, "--train.minutes", "1.5") == 0
    assert [generator for generator, _ in rates] == pytest.approx([30 / 45, 20 / 45, 10 / 45], abs=1e-4)


def test_the_held_out_error_is_measured_at_the_end_of_the_time(data, tmp_path, rates):
    assert hida_train(data, tmp_path, *TIMED, "--train.evaluate-epochs", "1.25") == 0
    assert [entry["iteration"] for entry in log(tmp_path) if "held_out_l1" in entry] == [3, 5, 6]


@pytest.mark.parametrize("how", [("--stop-after", "4"), ("--time-limit", "0.65"), "signal"], ids=str)
def test_an_interrupted_run_has_weights_and_continues_its_course(data, tmp_path, rates, capsys, monkeypatch, how):
    with monkeypatch.context() as patch:
        if how == "signal":  # at two thirds of the time
            update = TrainingState.update

            def interrupted(state, batch):
                if state.iteration == 3:
                    signal.raise_signal(signal.SIGTERM)
                return update(state, batch)

            patch.setattr(TrainingState, "update", interrupted)
        assert hida_train(data, tmp_path, *TIMED, *(how if how != "signal" else ())) == 0
    state = assert_weights_are_the_newest_checkpoints(tmp_path)
    assert (state["iteration"], state["elapsed"]) == (4, 40)
    assert "after 0.7 of 1 minutes" in capsys.readouterr().out
    assert hida_train(data, tmp_path, *TIMED) == 0
    assert [generator for generator, _ in rates] == [1, 1, 1, 1, 0.6667, 0.3333]
    assert assert_weights_are_the_newest_checkpoints(tmp_path)["elapsed"] == 60


def test_a_timed_run_may_go_on_from_a_run_of_epochs(data, tmp_path, rates):
    assert hida_train(data, tmp_path, "--stop-after", "1") == 0
    assert load(checkpoint_paths(tmp_path)[0]).state["elapsed"] == 0
    rates.clear()
    assert hida_train(data, tmp_path, *TIMED) == 0
    assert len(rates) == 6


REAL = ("--optimizer.schedule", "elapsed", "--train.evaluate-epochs", "0", "--train.sample-epochs", "0")


@pytest.mark.slow
def test_a_real_run_ends_in_time(data, tmp_path):
    ended(start(data, tmp_path, *REAL, "--train.minutes", "0.1"))
    assert 6 <= assert_weights_are_the_newest_checkpoints(tmp_path)["elapsed"] < 8


@pytest.mark.slow
def test_two_processes_end_together(data, tmp_path):
    done = torchrun(data, tmp_path, *REAL, "--train.minutes", "0.1")
    assert done.returncode == 0, done.stdout
    assert 6 <= assert_weights_are_the_newest_checkpoints(tmp_path)["elapsed"] < 8
