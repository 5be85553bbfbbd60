"""hida train from end to end on a small prepared set: exact resume, signals, what it leaves, what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_same_checkpoints, hida_train, log

from hida.cli import train as cli_train
from hida.cli.run import run_command
from hida.config import Config
from hida.data.framing import centred_batch
from hida.data.prepared import PreparedSet
from hida.drawing.sketcher import Sketcher
from hida.errors import HidaError
from hida.metrics.lpips import LPIPS, load_lpips
from hida.training import run as train
from hida.training.state import TrainingState
from hida.weights.checkpoint import checkpoint_path, checkpoint_paths, load, load_generator

OPTIONS = ("--train.sample-epochs", "2", "--train.keep", "2", "--train.checkpoint-epochs", "1")


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A whole run in one go: 4 epochs of 4 pairs, batch 2."""
    out = tmp_path_factory.mktemp("straight")
    assert hida_train(data, out, *OPTIONS) == 0
    return out


def test_a_run_leaves_what_it_promises(straight):
    config = json.loads((straight / "config.json").read_text(encoding="utf-8"))
    assert config["generator"]["base_width"] == 2
    assert [path.stem for path in checkpoint_paths(straight)] == ["iteration-00000008", "iteration-00000006"]
    entries = log(straight)
    losses = [entry for entry in entries if "pixel" in entry]
    assert [entry["iteration"] for entry in losses] == list(range(1, 9))
    assert [entry["epoch"] for entry in losses] == [k / 2 for k in range(1, 9)]
    for entry in losses:
        assert {"d", "adversarial", "pixel", "texture", "geometry", "images_per_second"} <= entry.keys()
        assert all(np.isfinite(value) for value in entry.values())
    held_out = [entry for entry in entries if "held_out_l1" in entry]
    assert [entry["iteration"] for entry in held_out] == [2, 4, 6, 8]
    assert all(0 < entry["held_out_l1"] < 1 for entry in held_out)
    samples = sorted(path.name for path in (straight / "samples").iterdir())
    assert samples == ["iteration-00000004.png", "iteration-00000008.png"]
    assert not [path for path in straight.rglob("*") if ".part" in path.name]


def test_a_sample_grid_has_five_columns(straight):
    grid = np.asarray(Image.open(straight / "samples" / "iteration-00000008.png").convert("L"))
    assert grid.shape[1] == 5 * 256 + 6 * 8  # one held-out pair: a row of five 256-pixel pictures
    row = grid[-8 - 256 : -8]
    columns = [row[:, 8 + k * 264 : 264 + k * 264] for k in range(5)]
    assert all(column.std() > 0 for column in columns)
    assert all((row[:, 264 * k : 264 * k + 8] == 255).all() for k in range(6))


def test_the_weights_are_the_averaged_generator(straight):
    generator, config = load_generator(straight / "weights.safetensors")
    assert config.generator.base_width == 2
    stored = load(checkpoint_paths(straight)[0]).part("ema")
    for name, value in generator.state_dict().items():
        assert torch.equal(value, stored[name].half().float())


@pytest.mark.slow
def test_the_whole_recipe_of_the_default_preset_resumes_bit_for_bit(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = LPIPS("alex")
    monkeypatch.setattr("hida.training.objective.load_lpips", lambda net, device: network)
    recipe = ("--loss.weight-perceptual", "6", "--train.precision", "bf16")
    more = ("--discriminator.projected", "--discriminator.augment", "--discriminator.styles", "3")
    for name, options in (("preset", recipe), ("more", (*recipe, *more))):
        assert hida_train(data, tmp_path / name, *options, "--stop-after", "3") == 0
        assert hida_train(data, tmp_path / f"{name} in two", *options, "--stop-after", "1") == 0
        assert hida_train(data, tmp_path / f"{name} in two", *options, "--stop-after", "2") == 0
        assert_same_checkpoints(*(checkpoint_path(tmp_path / run, 3) for run in (name, f"{name} in two")))
        assert "perceptual" in log(tmp_path / name)[-1]


def test_the_digest_that_is_said_is_that_of_the_ema_generator_and_tells_runs_apart(data, tmp_path, capsys):
    said = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert hida_train(data, tmp_path / name, "--stop-after", "2", "--train.seed", seed) == 0
        said.append(re.search("EMA generator of iteration 2: sha256 ([0-9a-f]{64})\n", capsys.readouterr().out)[1])
    assert said[0] == said[1] != said[2]
    found = hashlib.sha256()
    for name, value in sorted(load(checkpoint_paths(tmp_path / "a")[0]).part("ema").items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + value.numpy().tobytes())
    assert said[0] == found.hexdigest()


@pytest.mark.parametrize(("limit", "iteration"), [(("--stop-after", "3"), 3), (("--time-limit", "1e-9"), 1)], ids=str)
def test_stopping_and_resuming_is_one_run_bit_for_bit(data, straight, tmp_path, limit, iteration):
    assert hida_train(data, tmp_path, *OPTIONS, *limit) == 0
    assert load(checkpoint_paths(tmp_path)[0]).state["iteration"] == iteration
    assert not (tmp_path / "weights.safetensors").exists()
    assert hida_train(data, tmp_path, *OPTIONS) == 0
    assert_same_checkpoints(checkpoint_path(tmp_path, 8), checkpoint_path(straight, 8))
    assert_same_checkpoints(tmp_path / "weights.safetensors", straight / "weights.safetensors")
    without_speed = [
        [{k: v for k, v in e.items() if k != "images_per_second"} for e in log(o)] for o in (tmp_path, straight)
    ]
    assert without_speed[0] == without_speed[1]


def test_a_torn_newest_checkpoint_is_passed_over(data, straight, tmp_path, capsys):
    for path in checkpoint_paths(straight):
        target = checkpoint_path(tmp_path, int(path.stem[-8:]))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes()[: None if path.stem.endswith("6") else 5000])
    with pytest.warns(UserWarning, match="passing over a checkpoint"):
        assert hida_train(data, tmp_path) == 0
    assert "resumed from" in capsys.readouterr().out
    assert_same_checkpoints(checkpoint_path(tmp_path, 8), checkpoint_path(straight, 8))


def test_torn_checkpoints_ahead_do_not_push_out_whole_ones(data, tmp_path):
    ahead = checkpoint_path(tmp_path, 7)
    ahead.parent.mkdir()
    ahead.write_bytes(b"torn")
    with pytest.warns(UserWarning, match="passing over"):
        assert hida_train(data, tmp_path, "--stop-after", "1", "--train.keep", "1") == 0
    assert load(checkpoint_path(tmp_path, 1)).state["iteration"] == 1


def test_a_finished_run_called_again_changes_nothing(data, straight):
    names = ("iteration-00000006", "iteration-00000008", "weights")
    paths = [next(straight.rglob(f"{name}.safetensors")) for name in names]
    before, lines = [(load(path).state, load(path).tensors) for path in paths], log(straight)
    assert hida_train(data, straight) == 0
    for path, (state, tensors) in zip(paths, before, strict=True):
        now = load(path)
        assert now.state == state
        assert all(torch.equal(now.tensors[name], tensor) for name, tensor in tensors.items())
    assert log(straight) == lines


def test_a_fraction_of_an_epoch_is_rounded_up_and_finished(data, tmp_path):
    # 0.1 epochs of 4 pairs are less than one image: one iteration, and the weights.
    assert hida_train(data, tmp_path, "--train.epochs", "0.1", "--optimizer.constant-epochs", "0") == 0
    assert [path.stem for path in checkpoint_paths(tmp_path)] == ["iteration-00000001"]
    assert (tmp_path / "weights.safetensors").exists()


def test_a_larger_batch_after_a_resume_ends_at_the_same_epoch(data, straight, tmp_path):
    checkpoint_path(tmp_path, 6).parent.mkdir()
    checkpoint_path(tmp_path, 6).write_bytes(checkpoint_path(straight, 6).read_bytes())
    assert hida_train(data, tmp_path, "--train.batch", "4") == 0
    state = load(checkpoint_paths(tmp_path)[0]).state
    assert (state["iteration"], state["images"]) == (7, 16)
    assert (tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize("at", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 4, 5, 6, 7))])
def test_a_run_stopped_between_log_lines_logs_what_the_straight_one_does(data, straight, tmp_path, at):
    """The means are over all iterations since the last line, those before the stop included."""
    options = (*OPTIONS, "--train.log-every", "4")
    assert hida_train(data, tmp_path, *options, "--stop-after", str(at)) == 0
    assert hida_train(data, tmp_path, *options) == 0
    every = {entry["iteration"]: entry for entry in log(straight) if "pixel" in entry}
    ours = {entry["iteration"]: entry for entry in log(tmp_path) if "pixel" in entry}
    assert ours.keys() == {4, 8}
    for last in ours:
        for name in ("d", "pixel", "texture", "geometry", "adversarial"):
            single = np.float32([every[k][name] for k in range(last - 3, last + 1)])
            # Summed in this order, in float32, whatever lies between: the straight run's value to the bit.
            assert ours[last][name] == (((single[0] + single[1]) + single[2]) + single[3]) / np.float32(4), name


def test_a_teachers_sketches_are_a_further_target(data, straight, tmp_path):
    weights = straight / "weights.safetensors"
    options = ("--distil", str(weights), "--augment.pad", "3", "--augment.no-flip", "--train.log-every", "1")
    assert hida_train(data, tmp_path / "whole", *options, "--loss.weight-distillation", "2") == 0
    entries = [entry for entry in log(tmp_path / "whole") if "pixel" in entry]
    assert all(entry["distillation"] > 0 for entry in entries)
    # The first iteration's, by hand: the teacher's drawing of the pair against the untrained generator's.
    pairs = train.load_pairs(PreparedSet.load(data), PreparedSet.load(data).split("train"), progress=False)
    taught = train.taught(pairs, Sketcher.from_pretrained(weights), progress=False)
    teacher, config = load_generator(weights)
    batch = centred_batch(pairs, config.augment)
    with torch.no_grad():
        drawn = teacher(batch.photo, batch.depth, batch.style)[0][:, :, 3:253, 3:253]
    assert ((taught.teacher.float() / 127.5 - 1) - drawn).abs().max() < 1.01 / 127.5
    assert hida_train(data, tmp_path / "parts", *options, "--loss.weight-distillation", "2", "--stop-after", "3") == 0
    assert hida_train(data, tmp_path / "parts", *options, "--loss.weight-distillation", "2") == 0
    assert_same_checkpoints(*(tmp_path / name / "weights.safetensors" for name in ("whole", "parts")))


def test_a_run_begins_from_given_weights(data, straight, tmp_path, capsys):
    """The averaged generator becomes both generators; a checkpoint's discriminator comes along, and no optimiser."""
    given = checkpoint_paths(straight)[0]
    still = ("--optimizer.learning-rate", "1e-20", "--train.ema", "0", "--discriminator.noise", "0.3")
    still += ("--discriminator.augment",)
    assert hida_train(data, tmp_path, "--start", str(straight), *still, "--stop-after", "1") == 0
    assert f"begun from {straight} with its discriminator" in capsys.readouterr().out
    first, given = load(checkpoint_path(tmp_path, 1)), load(given)
    for ours, theirs in (("generator", "ema"), ("ema", "ema"), ("discriminator", "discriminator")):
        a, b = first.part(ours), given.part(theirs)
        assert a.keys() == b.keys() != set()
        assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-15) for name in a)
    assert first.state["images"] == 2
    # Going on, they are the checkpoint's that count.
    assert hida_train(data, tmp_path, "--start", "small", *still, "--stop-after", "1") == 0
    assert load(checkpoint_path(tmp_path, 2)).state["images"] == 4
    scales = ("--start", str(straight), "--discriminator.scales", "1", "--stop-after", "1")
    assert hida_train(data, tmp_path / "other", *scales) == 0
    assert f"begun from {straight} with a fresh discriminator" in capsys.readouterr().out


REFUSALS = {
    "weights of another generator": (
        ["--start", "small"],
        "base_width is 24, not 2); give --preset and the",
    ),
    "weights that are not there": (["--start", "{tmp}/a.safetensors"], "there is no weights file"),
    "a teacher without weight": (["--distil", "small"], "have an effect only together"),
    "a weight without teacher": (["--loss.weight-distillation", "1"], "have an effect only together"),
    "no teacher": (["--distil", "{tmp}/a.safetensors", "--loss.weight-distillation", "1"], "there is no weights file"),
    "time": (["--time-limit", "-1"], "--time-limit is -1; give minutes"),
    "iterations": (["--stop-after", "-3"], "--stop-after is -3; give iterations > 0, or 0 for no limit"),
    "wrong folder": (["--data", "{tmp}"], "is not a prepared data set"),
    "styles": (["--generator.styles", "2"], "has 3 styles but the generator 2; add --generator.styles 3"),
    "fp16 on a CPU": (["--train.precision", "fp16"], "fp16 needs a GPU"),
    "no pair left": (["--train.holdout", "5"], "has 5 training pairs and 5 are held out"),
    "no network": (["--loss.weight-perceptual", "1"], "hida weights fetch alexnet-features"),
    "preset": (["--preset", "large"], "there is no preset 'large'"),
    "a value": (
        ["--generator.base-width", "3"],
        "hida: --generator.base-width must be an even number in",
    ),
    "two values": (
        ["--train.epochs", "1"],
        "hida: --optimizer.constant-epochs must not exceed train.epochs (1)",
    ),
    "device": (["--device", "abacus"], "there is no device 'abacus'"),
    "preset file": (["--preset", "{tmp}/absent.toml"], "absent.toml' cannot be read"),
}


@pytest.mark.parametrize(("options", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_sentence_and_nothing_is_written(data, tmp_path, capsys, monkeypatch, options, words):
    if words.startswith("hida weights"):
        for name in ("HIDA_CACHE", "HIDA_WEIGHTS", "TORCH_HOME"):
            monkeypatch.setenv(name, str(tmp_path / "nothing"))
        load_lpips.cache_clear()
    out = tmp_path / "out"
    assert hida_train(data, out, *(option.format(tmp=tmp_path) for option in options)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--resume", "never"), "already holds checkpoints"),
        (("--generator.base-width", "4"), "holds another generator"),
    ],
    ids=str,
)
def test_a_folder_with_checkpoints_of_another_run_is_refused(data, straight, capsys, option, words):
    before = (straight / "config.json").read_bytes()
    assert hida_train(data, straight, *option) == 2
    assert words in capsys.readouterr().err
    assert (straight / "config.json").read_bytes() == before


def test_a_file_in_the_place_of_the_folder_is_refused(data, tmp_path, capsys):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    assert hida_train(data, tmp_path / "out") == 2
    assert "there is a file where a folder was expected" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("log_every", ["1", "100"])
def test_losses_that_are_no_longer_finite_stop_the_run_before_they_are_saved(
    data, tmp_path, capsys, monkeypatch, log_every
):
    update = TrainingState.update
    monkeypatch.setattr(
        TrainingState, "update", lambda state, batch: update(state, batch) * (math.nan if state.iteration == 5 else 1)
    )
    options = ("--train.log-every", log_every, "--train.checkpoint-epochs", "2")
    assert hida_train(data, tmp_path, *options) == 2
    assert f"no longer finite at iteration {6 if log_every == '1' else 8}" in capsys.readouterr().err
    assert [load(path).state["iteration"] for path in checkpoint_paths(tmp_path)] == [4]
    assert all(math.isfinite(entry["pixel"]) for entry in log(tmp_path) if "pixel" in entry)


def test_several_processes_without_torchrun_are_refused_in_a_sentence(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert hida_train(data, tmp_path) == 2
    assert "torchrun" in capsys.readouterr().err


def test_a_missing_option_is_status_2_and_named(tmp_path, capsys):
    assert run_command(cli_train.main, ["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "hida: --data is missing (see hida train --help).\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["generator", "discriminator", "loss", "optimizer", "augment", "train"])
def test_every_option_with_a_value_that_cannot_be_is_named(part):
    """No number of the configuration may be −1."""
    fields = dataclasses.fields(getattr(Config(), part))
    names = [item.name for item in fields if type(item.default) in (int, float)]
    assert names
    for name in names:
        option = f"--{part}.{name.replace('_', '-')}"
        with pytest.raises(HidaError) as caught:
            cli_train.parse(["--data", "d", "--out", "o", option, "-1"])
        assert str(caught.value).startswith(f"{option} must be "), caught.value
        assert str(caught.value).endswith(("; it is -1.", "; it is -1.0."))


def test_a_value_of_a_file_is_told_with_the_file(tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nbatch = 0\n", encoding="utf-8")
    with pytest.raises(HidaError, match=r"mine\.toml' cannot be used: train\.batch must be ≥ 1; it is 0\.$"):
        cli_train.parse(["--data", "d", "--out", "o", "--preset", str(tmp_path / "mine.toml")])


def test_the_presets_name_is_no_option(capsys):
    with pytest.raises(SystemExit):
        cli_train.parse(["--help"])
    said = capsys.readouterr().out
    assert "--train.batch" in said
    assert " --name" not in said
    options = cli_train.parse(["--data", "d", "--out", "o", "--preset", "full"])
    assert type(options.config) is Config
    assert options.config.name == "full"


def test_a_preset_is_the_default_under_the_command_line(tmp_path):
    (tmp_path / "mine.toml").write_text("[generator]\nbase_width = 8\nstyles = 5\n", encoding="utf-8")
    for word in (["--preset", str(tmp_path / "mine.toml")], [f"--preset={tmp_path / 'mine.toml'}"]):
        arguments = cli_train.parse(["--data", "d", "--out", "o", *word, "--generator.styles", "4"])
        assert (arguments.config.generator.base_width, arguments.config.generator.styles) == (8, 4)
    assert cli_train.parse(["--data", "d", "--out", "o"]).config.name == "small"
