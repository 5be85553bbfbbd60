"""hida train as processes: signals, kills at random moments, torchrun."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from runs import PROCESS, TINY, assert_same_checkpoints, hida_train, log

from hida.files import folder_lock
from hida.weights.checkpoint import checkpoint_path, checkpoint_paths, load


def ended(process):
    """Wait for a process to end well; return what it said."""
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def start(data, out, *options):
    command = [sys.executable, "-m", "hida.train", "--data", str(data), "--out", str(out), *TINY, *options]
    return subprocess.Popen(command, env=PROCESS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_later(data, tmp_path, number):
    long = ("--train.epochs", "2000", "--train.checkpoint-epochs", "0")
    process = start(data, tmp_path, *long)
    deadline = time.monotonic() + 120
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").read_text(encoding="utf-8"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert checkpoint_paths(tmp_path) == []
    process.send_signal(number)
    assert "the same command continues from there" in ended(process)
    saved = load(checkpoint_paths(tmp_path)[0]).state["iteration"]
    assert log(tmp_path)[-1]["iteration"] == saved
    assert hida_train(data, tmp_path, *long, "--stop-after", "1") == 0
    assert load(checkpoint_paths(tmp_path)[0]).state["iteration"] == saved + 1


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(data, tmp_path):
    """SIGKILL while starting, training or writing a checkpoint: the last of the runs ends with the same weights."""
    options = ("--train.epochs", "30", "--train.checkpoint-epochs", "0.5", "--train.evaluate-epochs", "0")
    options += ("--train.sample-epochs", "0")
    random = np.random.default_rng()
    began = time.monotonic()
    ended(start(data, tmp_path / "undisturbed", *options))
    whole, moments, kills = time.monotonic() - began, [], 0
    while kills < 10:
        process = start(data, tmp_path / "killed", *options)
        moments.append(random.uniform(0.2, 0.7) * whole)
        try:
            said = process.communicate(timeout=moments[-1])[0]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:  # it came to its end: the rest of the kills fall on a fresh run
            assert process.returncode == 0, said
            assert_same_checkpoints(
                tmp_path / "killed/weights.safetensors", tmp_path / "undisturbed/weights.safetensors"
            )
            (tmp_path / "killed").rename(tmp_path / f"ended-{kills}")
    ended(start(data, tmp_path / "killed", *options))
    for name in ("weights.safetensors", "checkpoints/iteration-00000060.safetensors"):
        assert_same_checkpoints(tmp_path / "killed" / name, tmp_path / "undisturbed" / name)
    print(f"killed after {', '.join(f'{moment:.2f}' for moment in moments)} s of {whole:.2f} s")


def start_torchrun(data, out, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hida.train"]
    command += ["--data", str(data), "--out", str(out), *TINY, *options]
    return subprocess.Popen(command, env=PROCESS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


def torchrun(data, out, *options):
    process = start_torchrun(data, out, *options)
    said = process.communicate(timeout=300)[0]
    return subprocess.CompletedProcess(process.args, process.returncode, said)


# Losses that are means over pictures, and nothing random beside the order: then the mean of two halves'
# gradients is the whole batch's.
MEANS = [
    "--discriminator.noise",
    "0",
    "--loss.geometry",
    "mse",
    "--loss.mean-difference",
    "0",
    "--generator.dropout",
    "0",
    "--augment.pad",
    "3",
]
MEANS += ["--augment.no-flip", "--augment.jitter", "0"]


@pytest.mark.slow
def test_two_processes_see_the_gradients_of_one(data, tmp_path):
    both = torchrun(data, tmp_path / "two", *MEANS, "--stop-after", "1")
    assert both.returncode == 0, both.stdout
    assert hida_train(data, tmp_path / "one", *MEANS, "--stop-after", "1") == 0
    two, one = (load(checkpoint_path(tmp_path / name, 1)) for name in ("two", "one"))
    assert two.state["processes"] == 2
    # After one step Adam's first moment is (1 − β₁)·gradient.
    for part, tolerance in (("optimizer_discriminator", 1e-4), ("optimizer_generator", 1e-2)):
        moments = [c.part(f"{part}.exp_avg") for c in (two, one)]
        assert moments[0].keys() == moments[1].keys() != set()
        a, b = (torch.cat([moment[name].flatten() for name in sorted(moment)]) for moment in moments)
        assert b.norm() > 0
        assert (a - b).norm() < tolerance * b.norm()
    lines = [[entry for entry in log(tmp_path / name) if "pixel" in entry] for name in ("two", "one")]
    for name in ("d", "pixel", "texture", "geometry"):
        assert lines[0][0][name] == pytest.approx(lines[1][0][name], rel=1e-3), name


@pytest.mark.slow
def test_two_processes_resume_exactly_and_refuse_an_odd_batch(data, tmp_path):
    assert torchrun(data, tmp_path / "whole", "--train.epochs", "2").returncode == 0
    assert torchrun(data, tmp_path / "parts", "--train.epochs", "2", "--stop-after", "1").returncode == 0
    assert torchrun(data, tmp_path / "parts", "--train.epochs", "2").returncode == 0
    assert_same_checkpoints(*(checkpoint_path(tmp_path / name, 4) for name in ("whole", "parts")))
    refused = torchrun(data, tmp_path / "odd", "--train.batch", "3")
    assert refused.returncode != 0
    assert "--train.batch 3 cannot be shared by 2 processes; use a multiple" in refused.stdout
    assert not (tmp_path / "odd").exists()


@pytest.mark.slow
def test_torchrun_stopped_at_random_moments_ends_like_an_undisturbed_run(data, tmp_path):
    """Its processes are told SIGTERM while they start, train, evaluate or save; none has to be killed."""
    options = ("--train.epochs", "40", "--train.log-every", "7", "--train.checkpoint-epochs", "0")
    began = time.monotonic()
    done = torchrun(data, tmp_path / "straight", *options)
    assert done.returncode == 0, done.stdout
    whole, random, out = time.monotonic() - began, np.random.default_rng(), tmp_path / "stopped"
    for _ in range(4):
        before = len(checkpoint_paths(out)) and checkpoint_paths(out)[0].name
        process = start_torchrun(data, out, *options)
        try:
            process.communicate(timeout=random.uniform(0.3, 1) * whole)
            continue
        except subprocess.TimeoutExpired:
            trained = (out / "log.jsonl").exists() and "pixel" in (out / "log.jsonl").read_text(encoding="utf-8")
            process.terminate()
        told = time.monotonic()
        said = process.communicate(timeout=60)[0]
        assert "forcefully" not in said
        assert time.monotonic() - told < 25
        assert not [path for path in out.rglob("*") if path.name.startswith(".")], said
        if trained and not before:
            assert checkpoint_paths(out), said
    done = torchrun(data, out, *options)
    assert done.returncode == 0, done.stdout
    for name in ("weights.safetensors", "checkpoints/iteration-00000080.safetensors"):
        assert_same_checkpoints(out / name, tmp_path / "straight" / name)
    lines = [[{**e, "images_per_second": 0} for e in log(tmp_path / name)] for name in ("stopped", "straight")]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_all_processes_end_where_the_folder_is_in_use(data, tmp_path):
    with folder_lock(tmp_path, "hida train"):
        done = torchrun(data, tmp_path)
        assert done.returncode != 0
        assert "is in use by hida train, process" in done.stdout
        assert 'Traceback (most recent call last):\n  File "hida' not in done.stdout
        assert [path.name for path in tmp_path.iterdir()] == [".hida-lock"]


@pytest.mark.slow
@pytest.mark.parametrize("nohup", [False, True], ids=["a closed terminal", "a closed terminal after nohup"])
def test_a_closed_terminal_leaves_a_checkpoint(data, tmp_path, nohup):
    options = ("--train.epochs", "2000" if not nohup else "30", "--train.checkpoint-epochs", "0")
    command = [sys.executable, "-m", "hida.train", "--data", str(data), "--out", str(tmp_path), *TINY, *options]
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)  # where nohup writes what is printed
        os.execvpe("nohup" if nohup else command[0], ["nohup", *command] if nohup else command, PROCESS)
    deadline = time.monotonic() + 120
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").read_text(encoding="utf-8"):
        if select.select([terminal], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):  # nohup leaves nobody at it
                os.read(terminal, 1 << 16)
        assert time.monotonic() < deadline
    assert checkpoint_paths(tmp_path) == []
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    saved = load(checkpoint_paths(tmp_path)[0]).iteration
    assert log(tmp_path)[-1]["iteration"] == saved
    assert (saved == 60) == nohup
