"""A CUDA graph that cannot be captured: the run starts itself again without, from the state before."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
from runs import PROCESS, TINY, assert_same_checkpoints, hida_train, log
from test_run_processes import torchrun

from hida.cli import train as cli_train
from hida.training import restart
from hida.training import run as train
from hida.training.engine import FAIL_CAPTURE
from hida.weights.checkpoint import checkpoint_path, checkpoint_paths, load

WARNING = "warning: the iteration could not be captured as a CUDA graph (HIDA_FAIL_CAPTURE is set)"
COMMANDS = {
    "python -m hida.train": ["-m", "hida.train"],
    "python -m hida train": ["-m", "hida", "train"],
    "hida train": ["-c", "import sys; from hida.cli.main import entry; sys.exit(entry())", "train"],
}


class Replaced(BaseException):
    """In place of the process's end."""


@pytest.fixture
def failing(monkeypatch):
    """Let the capture fail; return the words that the command would begin again with."""
    words = []

    def begin_again(further):
        words[:] = further
        raise Replaced

    monkeypatch.setenv(FAIL_CAPTURE, "1")
    monkeypatch.setattr(restart, "begin_again", begin_again)
    monkeypatch.setattr(restart, "is_own_command", lambda words: True)
    return words


def test_a_failed_capture_leaves_the_state_before_it_and_begins_again(data, tmp_path, failing, capsys):
    with pytest.raises(Replaced):
        hida_train(data, tmp_path / "failed", "--resume", "never", "--train.keep", "1")
    assert WARNING in capsys.readouterr().err
    assert [path.stem for path in checkpoint_paths(tmp_path / "failed")] == ["iteration-00000003"]
    assert failing == ["--train.no-cuda-graph", "--resume", "auto"]
    assert hida_train(data, tmp_path / "failed", "--resume", "never", "--train.keep", "1", *failing) == 0
    assert hida_train(data, tmp_path / "plain", "--train.no-cuda-graph", "--train.keep", "1") == 0
    for path in (checkpoint_path(tmp_path, 8).relative_to(tmp_path), "weights.safetensors"):
        assert_same_checkpoints(tmp_path / "failed" / path, tmp_path / "plain" / path)
    assert [path.stem for path in checkpoint_paths(tmp_path / "failed")] == ["iteration-00000008"]
    losses = [[entry.get("pixel") for entry in log(tmp_path / name)] for name in ("failed", "plain")]
    assert losses[0] == losses[1]


def test_limits_are_what_is_left_of_them(data, tmp_path, failing):
    with pytest.raises(Replaced):
        hida_train(data, tmp_path, "--stop-after", "5", "--time-limit", "9")
    assert failing[:5] == ["--train.no-cuda-graph", "--resume", "auto", "--time-limit", failing[4]]
    assert 8 < float(failing[4]) < 9
    assert failing[5:] == ["--stop-after", "2"]


def test_what_it_takes_to_load_once_more_counts(data, tmp_path, failing, monkeypatch):
    timed = ["--optimizer.schedule", "elapsed", "--train.minutes", "9"]
    with pytest.raises(Replaced):
        hida_train(data, tmp_path, *timed)
    assert 0 < load(checkpoint_path(tmp_path, 3)).state["elapsed"] < 60
    monkeypatch.setenv("HIDA_BEGUN_AGAIN", f"{time.monotonic() - 500}")
    assert hida_train(data, tmp_path, *timed, *failing, "--stop-after", "1") == 0
    assert 500 < load(checkpoint_path(tmp_path, 4)).state["elapsed"] < 540
    assert "HIDA_BEGUN_AGAIN" not in os.environ


def test_another_program_is_not_replaced_but_told(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FAIL_CAPTURE, "1")
    assert hida_train(data, tmp_path) == 2
    assert "run the command again with --train.no-cuda-graph" in capsys.readouterr().err.splitlines()[-1]
    assert load(checkpoint_path(tmp_path, 3)).state["iteration"] == 3


def test_a_run_that_was_stopped_meanwhile_does_not_begin_again(data, tmp_path, failing, monkeypatch, capsys):
    monkeypatch.setattr(train.loop._Loop, "after_step", lambda loop: setattr(loop.stop, "signalled", True))
    assert hida_train(data, tmp_path, "--optimizer.schedule", "elapsed", "--train.minutes", "9") == 0
    assert "the same command continues from there" in capsys.readouterr().out
    assert load(tmp_path / "weights.safetensors").state["iteration"] == 3


def test_without_graphs_nothing_fails(data, tmp_path, failing):
    assert hida_train(data, tmp_path, "--train.no-cuda-graph", "--stop-after", "4") == 0
    assert failing == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_process_knows_its_own_command(name, monkeypatch):
    words = ["--data", "d", "--out", "o"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", *COMMANDS[name], *words])
    assert restart.is_own_command(words)
    assert not restart.is_own_command(["--data", "d"])
    assert not restart.is_own_command([])


def whole_command(data, out, command, *options):
    """Run a training whose capture fails; return the process, which ended well."""
    command = [sys.executable, *command, "--data", str(data), "--out", str(out), *TINY, *options]
    environment = PROCESS | {FAIL_CAPTURE: "1"}
    process = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=240)
    assert process.returncode == 0, process.stderr
    return process


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_whole_command_begins_again(data, tmp_path, name):
    process = whole_command(data, tmp_path / "failed", COMMANDS[name], "--resume", "never", "--train.cuda-graph")
    assert WARNING in process.stderr
    assert process.stdout.count("begun from random weights") == process.stdout.count("resumed from") == 1
    assert hida_train(data, tmp_path / "plain", "--train.no-cuda-graph") == 0
    assert_same_checkpoints(*(tmp_path / name / "weights.safetensors" for name in ("failed", "plain")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_capture_that_fails_on_a_gpu_is_survived_by_the_run(data, tmp_path):
    """Here a real capture is broken, by waiting for the device in it."""
    process = whole_command(data, tmp_path, ["-m", "hida.train"], "--device", "cuda")
    assert process.stderr.count("warning: the iteration could not be captured as a CUDA graph") == 1
    assert process.stdout.count("resumed from") == 1
    assert [entry["iteration"] for entry in log(tmp_path) if "pixel" in entry] == list(range(1, 9))
    assert load(tmp_path / "weights.safetensors").state["iteration"] == 8


@pytest.mark.slow
def test_torchrun_ends_with_what_to_do(data, tmp_path, monkeypatch):
    monkeypatch.setitem(PROCESS, FAIL_CAPTURE, "1")
    done = torchrun(data, tmp_path)
    assert done.returncode != 0
    assert "hida: the iteration could not be captured as a CUDA graph" in done.stdout
    assert "run the command again with --train.no-cuda-graph" in done.stdout
    assert torchrun(data, tmp_path, "--train.no-cuda-graph").returncode == 0
    assert (tmp_path / "weights.safetensors").exists()


def test_words_are_read_in_order():
    """Later ones count: the words of the second start stand behind the user's own."""
    words = ["--data", "d", "--out", "o", "--train.cuda-graph", "--resume", "never", "--stop-after", "9"]
    arguments = cli_train.parse([*words, "--train.no-cuda-graph", "--resume", "auto", "--stop-after", "6"])
    assert (arguments.config.train.cuda_graph, arguments.resume, arguments.stop_after) == (False, "auto", 6)
