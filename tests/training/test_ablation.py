"""hida ablate: the same number of iterations for all, one table, one figure, and a stopped one that goes on."""

from __future__ import annotations

import json
import signal

import pytest
import tyro
from PIL import Image

from hida.cli.ablate import main
from hida.cli.run import run_command
from hida.config import load_preset
from hida.files import folder_lock
from hida.metrics import evaluation as evaluate
from hida.training import ablation as ablate
from hida.training.options import AblationOptions
from hida.training.state import TrainingState
from hida.weights.checkpoint import load

OPTIONS = ["--presets", "model_a", "full", "--base-width", "2", "--batch", "2", "--metrics", "scoot", "fsim"]
OPTIONS += ["--device", "cpu"]


@pytest.fixture(autouse=True)
def few_held_out(tmp_path, monkeypatch):
    """The test set has five training pairs; the recipe would hold out 58."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nholdout = 1\n", encoding="utf-8")
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(data, out, *more):
    words = ["--data", str(data), "--out", str(out), "--recipe", "recipe.toml", *OPTIONS, *map(str, more)]
    return run_command(main, words)


def test_a_recipe_for_a_given_time_trains_for_iterations_here(data, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        '[train]\nholdout = 1\nminutes = 9\n[optimizer]\nschedule = "elapsed"\n', encoding="utf-8"
    )
    assert run(data, tmp_path / "a", "--iterations", 2) == 0
    weights = load(tmp_path / "a" / "runs" / "full-seed0" / "weights.safetensors")
    assert weights.state["iteration"] == 2


def test_a_torn_or_strange_log_line_is_no_speed(tmp_path):
    lines = ['{"images_per_second": 2.5, "scale": NaN}', "[" * 9999, '{"images_per_second": true}', '{"images_per_sec']
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert ablate._speeds(ablate.Run(load_preset("small"), 0, tmp_path)) == [2.5]


def test_the_name_of_a_preset_is_one_component_of_a_path(data, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('name = "../../ESC0"\n', encoding="utf-8")
    assert run(data, tmp_path / "a", "--iterations", 2, "--presets", tmp_path / "mine.toml") == 2
    assert "mine.toml' cannot name a folder" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_every_network_is_trained_and_scored_alike(data, tmp_path, capsys):
    assert run(data, tmp_path / "a", "--iterations", 3, "--seeds", 0, 7) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "a" / "table.json").read_text(encoding="utf-8"))
    assert [(row["preset"], row["seed"]) for row in table["rows"]] == [
        ("model_a", 0),
        ("model_a", 7),
        ("full", 0),
        ("full", 7),
    ]
    assert {row["iterations"] for row in table["rows"]} == {3}
    assert all(set(row["metrics"]) == {"scoot", "fsim"} and row["n"] == 1 for row in table["rows"])
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert text in printed
    assert "3 iterations of 2 pairs each" in text
    assert "1 pair instead of the 1,046" in text
    configs = {}
    for name in ("model_a", "full"):
        weights = load(tmp_path / "a" / "runs" / f"{name}-seed7" / "weights.safetensors")
        assert weights.state["iteration"] == 3
        configs[name] = weights.config
        assert weights.config.generator.dog_levels == load_preset(name).generator.dog_levels
    # Only the generator differs, and the loss of the depth that model_a does not have.
    assert configs["model_a"].discriminator == configs["full"].discriminator
    assert configs["model_a"].optimizer == configs["full"].optimizer
    assert configs["model_a"].loss.weight_geometry == 0
    figure = Image.open(tmp_path / "a" / "figure.png")
    assert figure.width > 4 * 256


def test_the_same_command_trains_nothing_again_and_another_is_refused(data, tmp_path, capsys, monkeypatch):
    assert run(data, tmp_path / "a", "--iterations", 2) == 0
    monkeypatch.setattr(ablate, "train", lambda *_: pytest.fail("trained again"))
    assert run(data, tmp_path / "a", "--iterations", 2) == 0
    capsys.readouterr()
    assert run(data, tmp_path / "a", "--iterations", 3) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_budget_becomes_one_number_of_iterations(data, tmp_path, monkeypatch, capsys):
    speeds = {"model_a": 8.0, "full": 2.0}
    monkeypatch.setattr(ablate, "_train", lambda *_: None)
    monkeypatch.setattr(ablate, "_speeds", lambda run: [99.0, speeds[run.config.name]])
    words = ["--data", str(data), "--recipe", "recipe.toml", *OPTIONS, "--out", str(tmp_path / "b")]
    command = tyro.cli(AblationOptions, args=[*words, "--budget", "1"])
    runs = [ablate.make_run(command, name, 0, 3) for name in command.presets]
    # Batches of 2 take 0.25 s and 1 s: two minutes for both networks.
    assert ablate.plan(command, runs, 4, "cpu") == int(120 / 1.25)
    assert json.loads((tmp_path / "b" / "plan.json").read_text(encoding="utf-8"))["seconds_per_iteration"] == {
        "model_a": 0.25,
        "full": 1.0,
    }
    words[-1] = str(tmp_path / "c")
    assert run_command(main, [*words, "--budget", "0.01"]) == 2
    assert "minutes or more" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "either --budget"),
        (["--budget", 1, "--iterations", 1], "either --budget"),
        (["--budget", 0], "--budget must"),
        (["--budget", "nan"], "--budget must"),
        (["--iterations", 0], "--iterations must"),
        (["--iterations", 1, "--seeds", 1, 1], "--seeds must"),
        (["--iterations", 1, "--presets", "model_z"], "no preset 'model_z'"),
        (["--iterations", 1, "--recipe", "none.toml"], "none.toml' cannot be read"),
        (["--iterations", 1, "--base-width", 3], "--base-width must be an even number"),
        (["--iterations", 1, "--batch", -1], "--batch must be 1 or more; it is -1"),
        (["--iterations", 1, "--limit", -1], "--limit must be 0 or more; it is -1"),
        (["--iterations", 1, "--seeds", 0, -1], "--seeds must be 0 or more; one of them is -1"),
        (["--iterations", 1, "--precision", "fp16"], "--precision fp16 needs a GPU"),
        (["--iterations", 1, "--photos", "none.png"], "none.png"),
        (["--iterations", 1, "--metrics", "fid"], "hida weights fetch"),
    ],
)
def test_mistakes_are_one_sentence_before_the_data_are_read_and_leave_nothing(
    data, tmp_path, capsys, monkeypatch, more, sentence
):
    monkeypatch.setattr(ablate.PreparedSet, "load", lambda _: pytest.fail("read"))
    assert run(data, tmp_path / "a", *more) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_stop_while_the_speed_is_measured_ends_the_command(data, tmp_path, monkeypatch, capsys):
    finish = TrainingState.finish

    def stop_in_the_fifth(state):
        if state.iteration == 4:
            signal.raise_signal(signal.SIGTERM)
        finish(state)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "finish", stop_in_the_fifth)
        assert run(data, tmp_path / "a", "--budget", 9) == 130
    assert "the same command continues from there" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "a" / "runs").iterdir()] == ["model_a-seed0"]
    assert not (tmp_path / "a" / "plan.json").exists()


def test_one_ablation_at_a_time_in_a_folder(data, tmp_path, capsys):
    with folder_lock(tmp_path / "a", "hida ablate"):
        assert run(data, tmp_path / "a", "--iterations", 2) == 2
        assert "is in use by hida ablate, process" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "a").iterdir()] == [".hida-lock"]


def test_pairs_are_spread_over_the_split():
    assert evaluate.spread(range(10), 0) == list(range(10))
    assert evaluate.spread(range(10), 10) == list(range(10))
    assert evaluate.spread(range(10), 5) == [1, 3, 5, 7, 9]
    assert evaluate.spread(range(3), 1) == [1]
    assert len(set(evaluate.spread(range(1046), 200))) == 200
