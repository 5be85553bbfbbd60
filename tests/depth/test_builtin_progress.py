"""The training of the built-in predictor: what is wrong is said before any work, and a stopped one continues."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hida.cli import train_depth
from hida.cli.run import run_command
from hida.depth.builtin import progress, train
from hida.depth.builtin.network import DepthNet
from hida.depth.builtin.options import Options
from hida.depth.builtin.training_set import Faces
from hida.errors import HidaError

STEPS = 4


class Small(nn.Module):
    """A double of the network, with parameters, statistics and weights in NHWC as it has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    def raw(self, x):
        return self.stem(x)


def small_crops(faces, generator):
    return torch.rand(len(faces), 3, 8, 8, generator=generator), faces.depth, faces.points


def small_loss(network, photo, depth, points):
    return {"one": network.raw(photo).square().mean(), "two": (network.raw(photo).mean() - points.mean()).abs()}


@pytest.fixture(scope="module")
def faces():
    random = torch.Generator().manual_seed(0)
    whole = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    return Faces(whole, whole, whole, torch.rand(3, 3, 2, generator=random))


@pytest.fixture(scope="module", autouse=True)
def short():
    """With a small network, and one step between two checkpoints."""
    doubles = {"DepthNet": Small, "augment": small_crops, "loss": small_loss, "SAVE_EVERY": 1}
    doubles["recalibrate"] = lambda network, *_: network.eval()
    with pytest.MonkeyPatch.context() as patch:
        for name, double in doubles.items():
            patch.setattr(train, name, double)
        yield


def options(folder: Path, **more) -> Options:
    usual = {"steps": STEPS, "batch": 2, "checkpoint": folder / "c.safetensors", "amp": False}
    return Options((folder,), folder / "out.safetensors", **{**usual, **more})


@pytest.fixture(scope="module")
def straight(faces, tmp_path_factory):
    """The weights that a training gives in one go."""
    return train.train(options(tmp_path_factory.mktemp("straight")), faces)[0].state_dict()


def stopped(faces, chosen: Options, number: int) -> Path:
    """Send a signal in the second step of a training."""
    seen, loss = [], train.loss

    def watched(*arguments):
        seen.append(None)
        if len(seen) == 2:
            os.kill(os.getpid(), number)
        return loss(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "loss", watched)
        train.train(chosen, faces)
    return chosen.checkpoint


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_after_the_step_and_the_continued_one_equals_the_straight(
    faces, straight, tmp_path, capsys, number
):
    def handler(number, frame):
        raise Stopped(number)

    before = signal.signal(number, handler)
    chosen = options(tmp_path)
    try:
        with pytest.raises(Stopped) as caught:
            stopped(faces, chosen, number)
    finally:
        assert signal.signal(number, before) is handler
    assert caught.value.args == (number,)
    assert f"stopped after 2 steps: the same command continues from '{chosen.checkpoint}'" in capsys.readouterr().out
    found = progress.read(chosen.checkpoint)
    assert found.step == 2
    continued = train.train(chosen, faces, found)[0].state_dict()
    assert continued.keys() == straight.keys()
    assert all(torch.equal(value, straight[name]) for name, value in continued.items())
    afresh = train.train(replace(chosen, checkpoint=None), faces)[0].state_dict()
    assert all(torch.equal(value, straight[name]) for name, value in afresh.items())
    shorter = train.train(replace(chosen, checkpoint=None, steps=2), faces)[0].state_dict()
    assert not all(torch.equal(value, straight[name]) for name, value in shorter.items())


def test_an_ignored_signal_and_a_thread_stop_nothing(faces, straight, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stopped(faces, options(tmp_path), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    found = []
    thread = threading.Thread(target=lambda: found.append(train.train(options(tmp_path, steps=1), faces)))
    thread.start()
    thread.join()
    assert found


def test_the_file_of_a_version_before_is_continued(faces, straight, tmp_path):
    chosen = options(tmp_path, checkpoint=tmp_path / "old.pt")
    with pytest.MonkeyPatch.context() as patch:

        def as_before(path, reached):
            if reached.step != 2:
                return
            network = Small()
            averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(chosen.ema))
            optimiser = torch.optim.AdamW(network.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, chosen.lr, total_steps=chosen.steps + 1)
            progress.restore(reached, progress.Networks(network, averaged), optimiser, path)
            parts = {"network": network, "averaged": averaged, "optimiser": optimiser, "schedule": schedule}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "step": 2, "seconds": 1.5}, path)

        patch.setattr(progress, "save", as_before)
        train.train(chosen, faces)
    found = progress.read(chosen.checkpoint)
    assert (found.step, found.seconds) == (2, 1.5)
    assert found.options == {"steps": STEPS, "lr": chosen.lr, "weight_decay": chosen.weight_decay}
    continued = train.train(replace(chosen, checkpoint=tmp_path / "old.pt"), faces, found)[0].state_dict()
    assert all(torch.equal(value, straight[name]) for name, value in continued.items())


@pytest.fixture(scope="module")
def saved(faces, tmp_path_factory):
    chosen = options(tmp_path_factory.mktemp("saved"), steps=1)
    train.train(chosen, faces)
    return chosen.checkpoint


def refusal(capsys, folder, *words) -> str:
    """Return the one sentence about options; the folder of photos is empty, which would be said next."""
    (folder / "photos").mkdir(exist_ok=True)
    usual = ["--photos", str(folder / "photos"), "--out", str(folder / "w.safetensors")]
    assert run_command(train_depth.main, [*usual, *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not (folder / "w.safetensors").exists()
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps is 0; give a whole number from 1"),
        (["--batch", "-1"], "--batch is -1;"),
        (["--held-out", "0"], "--held-out is 0;"),
        (["--test", "-1"], "--test is -1;"),
        (["--seed", "-1"], "--seed is -1;"),
        (["--seed", str(10**30)], f"--seed is {10**30};"),
        (["--lr", "0"], "--lr is 0; give a learning rate above 0."),
        (["--lr", "nan"], "--lr is nan;"),
        (["--weight-decay", "-1"], "--weight-decay is -1;"),
        (["--ema", "1"], "--ema is 1; give a decay from 0 to below 1."),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--photos"], "--photos names no folder; give folders of face photos."),
        (["--out", "{tmp}/w.pt"], "--out '{tmp}/w.pt' is to be a safetensors file;"),
        (["--out", "{tmp}"], "--out '{tmp}' is to be a safetensors file;"),
        (["--out", "/dev/null/w.safetensors"], "there is a file where a folder was expected"),
        (["--checkpoint", "{tmp}/w.safetensors"], "--checkpoint and --out are both '{tmp}/w.safetensors'; give two"),
        (["--checkpoint", "{tmp}/c.pt"], "--checkpoint '{tmp}/c.pt' is to be a safetensors file;"),
        (["--checkpoint", "{tmp}/text.pt"], "text.pt' is not a checkpoint of train-depth (its header is too large"),
        (["--checkpoint", "{tmp}/other.safetensors"], "(it is a safetensors file of another kind); give its own"),
        (["--checkpoint", "{tmp}/other.pt"], "other.pt' is not a checkpoint of train-depth (it lacks a part)"),
        (["--checkpoint", "{saved}"], "was saved when --steps was 1, now it is 1150; continue with the same"),
        (["--checkpoint", "{saved}", "--steps", "1"], "was saved when --batch was 2, now it is 32;"),
        ([], "no photo was found in {tmp}/photos"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_said_before_the_photos_are_read(tmp_path, saved, capsys, words, said):
    (tmp_path / "text.pt").write_text("no checkpoint, but a text\n", encoding="utf-8")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    names = {"tmp": tmp_path, "saved": saved}
    assert said.format(**names) in refusal(capsys, tmp_path, *(word.format(**names) for word in words))


@pytest.mark.parametrize("name", ["network.stem.0.weight", "averaged.n_averaged", "optimiser.exp_avg."])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(faces, saved, tmp_path, name):
    found = progress.read(saved)
    less = {key: value for key, value in found.tensors.items() if not key.startswith(name)}
    assert len(less) < len(found.tensors)
    with pytest.raises(HidaError, match="is not a checkpoint of train-depth"):
        train.train(options(tmp_path, steps=1), faces, replace(found, tensors=less))


def test_another_number_of_faces_is_another_training(faces, saved, tmp_path):
    with pytest.raises(HidaError, match="number of training photos with a face was 3, now it is 2"):
        train.train(options(tmp_path, steps=1), faces.take(torch.arange(2)), progress.read(saved))


def test_a_torn_checkpoint_is_one_sentence(saved, tmp_path):
    data = saved.read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "c.safetensors").write_bytes(data[:size])
        with pytest.raises(HidaError, match="is not a checkpoint of train-depth"):
            progress.read(tmp_path / "c.safetensors")


def test_the_weights_are_a_plain_safetensors_file(straight, tmp_path):
    network = DepthNet()
    train.save_weights(network, tmp_path / "w.safetensors")
    found, own = load_file(tmp_path / "w.safetensors"), network.state_dict()
    assert found.keys() == {name for name in own if not name.endswith("num_batches_tracked")}
    assert all(value.dtype == (torch.float16 if value.ndim > 1 else torch.float32) for value in found.values())
    assert all(torch.equal(value, own[name].to(value.dtype)) for name, value in found.items())
