"""hida weights snapshot: the weights that a run would write, at any time."""

from __future__ import annotations

import shutil

import pytest
import torch
from runs import assert_same_checkpoints, hida_train

from hida.cli import weights as command
from hida.cli.run import run_command
from hida.weights.checkpoint import checkpoint_path, checkpoint_paths, load


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run with checkpoints of iterations 4, 6 and 8."""
    out = tmp_path_factory.mktemp("run")
    assert hida_train(data, out, "--train.checkpoint-epochs", "1") == 0
    return out


def snapshot(*words):
    return run_command(command.main, ["snapshot", *map(str, words)])


def test_it_is_what_the_run_wrote(run, tmp_path, capsys):
    assert snapshot(run, tmp_path / "new" / "w.safetensors") == 0
    assert_same_checkpoints(tmp_path / "new" / "w.safetensors", run / "weights.safetensors")
    found, written = load(tmp_path / "new" / "w.safetensors"), load(run / "weights.safetensors")
    assert (found.kind, found.config) == (written.kind, written.config)
    assert {value.dtype for value in found.tensors.values()} == {torch.float16}
    assert f"the weights of {checkpoint_path(run, 8)}, iteration 8" in capsys.readouterr().out


def test_an_older_checkpoint_can_be_named(run, tmp_path):
    assert snapshot(checkpoint_path(run, 6), tmp_path / "w.safetensors") == 0
    found, average = load(tmp_path / "w.safetensors"), load(checkpoint_path(run, 6)).part("ema")
    assert found.state["iteration"] == 6
    assert found.part("ema").keys() == average.keys()
    assert all(torch.equal(value, average[name].half()) for name, value in found.part("ema").items())


def test_of_a_run_that_goes_on_it_is_the_newest_whole_one(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").unlink()
    checkpoint_path(tmp_path / "run", 9).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="passing over"):
        assert snapshot(tmp_path / "run", tmp_path / "w.safetensors") == 0
    assert load(tmp_path / "w.safetensors").state["iteration"] == 8


def test_a_damaged_checkpoint_of_another_run_is_not_replaced(run, tmp_path, capsys):
    path = checkpoint_path(tmp_path, 3)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    assert snapshot(run, path) == 2
    assert "is a checkpoint of a run, which the weights would replace" in capsys.readouterr().err
    assert path.read_bytes() == b"damaged"


REFUSALS = {
    "no run": (("{tmp}/nothing", "{tmp}/w.safetensors"), "there is no run '{tmp}/nothing'; give the folder"),
    "no run's folder": (("{tmp}", "{tmp}/w.safetensors"), "'{tmp}' is no run's folder, it holds no checkpoint; give"),
    "no name of a run": (("", "{tmp}/w.safetensors"), "the name of the run is empty; give the folder"),
    "no regular file": (("/dev/null", "{tmp}/w.safetensors"), "'/dev/null' is a pipe or a device, from which"),
    "no name of a file": (("{run}", ""), "the name of the file to write is empty; give it one"),
    "an unwritable place": (
        ("{run}", "/dev/null/w.safetensors"),
        "where a folder was expected ('/dev/null')",
    ),
    "nowhere to make a file": (
        ("{run}", "/proc/w.safetensors"),
        "no such file or folder (/proc/w.safetensors)",
    ),
    "weights": (("{run}/weights.safetensors", "{tmp}/w.safetensors"), "holds weights, not a checkpoint; give the"),
    "another kind of file": (("{run}/config.json", "{tmp}/w.safetensors"), "is not a readable weights file"),
    "a name of another kind": (("{run}", "{tmp}/w.pt"), "give it a name that ends in .safetensors"),
    "another run's next checkpoint": (
        ("{run}", "{tmp}/checkpoints/iteration-00000009.safetensors"),
        "iteration-00000009.safetensors' has the name of a run's checkpoint; choose another name.",
    ),
    "the checkpoint itself": (("{run}", "{newest}"), "is a checkpoint of a run, which the weights would replace"),
    "that checkpoint itself": (("{newest}", "{newest}"), "is a checkpoint of a run, which the weights would replace"),
}


@pytest.mark.parametrize(("words", "said"), REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_sentence_and_nothing_is_written(run, tmp_path, capsys, words, said):
    names = {"run": run, "tmp": tmp_path, "newest": checkpoint_paths(run)[0]}
    before = checkpoint_paths(run)[0].read_bytes()
    assert snapshot(*(word.format(**names) for word in words)) == 2
    error = capsys.readouterr().err
    assert said.format(**names) in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert checkpoint_paths(run)[0].read_bytes() == before


def test_another_runs_checkpoint_is_not_replaced(run, tmp_path, capsys):
    """Whatever it is called; weights of before are."""
    theirs, renamed = checkpoint_path(tmp_path, 5), tmp_path / "kept.safetensors"
    theirs.parent.mkdir()
    for path in (theirs, renamed):
        shutil.copy(checkpoint_path(run, 6), path)
        assert snapshot(run, path) == 2
        error = capsys.readouterr().err
        assert f"'{path}' is a checkpoint of a run, which the weights would replace; choose another." in error
        assert path.read_bytes() == checkpoint_path(run, 6).read_bytes()
    shutil.copy(run / "weights.safetensors", renamed)
    assert snapshot(checkpoint_path(run, 6), renamed) == 0
    assert load(renamed).state["iteration"] == 6


def test_a_checkpoint_is_not_replaced_through_a_link_or_under_another_name(run, tmp_path, capsys):
    kept, link, renamed = (tmp_path / name for name in ("kept.safetensors", "link.safetensors", "linked.safetensors"))
    shutil.copy(checkpoint_path(run, 6), kept)
    link.symlink_to(checkpoint_path(tmp_path, 7))  # of a run that has not got that far
    renamed.hardlink_to(kept)
    for out in (link, renamed):
        assert snapshot(kept, out) == 2
        assert "checkpoint" in capsys.readouterr().err
    weights = tmp_path / "w.safetensors"
    shutil.copy(run / "weights.safetensors", weights)
    assert snapshot(weights, weights) == 2
    assert f"'{weights}' is itself what is read; choose another name to write." in capsys.readouterr().err
    assert not checkpoint_path(tmp_path, 7).exists()


def test_a_folder_is_not_replaced(run, tmp_path, capsys):
    folder = tmp_path / "dir.safetensors"
    folder.mkdir()
    assert snapshot(run, folder) == 2
    assert capsys.readouterr().err == f"hida: '{folder}' is a folder; give the name of a file to write.\n"
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_run_without_checkpoints_is_told_from_one_whose_are_damaged(tmp_path, capsys, recwarn):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert snapshot(tmp_path, tmp_path / "w.safetensors") == 2
    assert f"the run '{tmp_path}' holds no checkpoint; wait for its first" in capsys.readouterr().err
    checkpoint_path(tmp_path, 1).parent.mkdir()
    for iteration in (1, 2):
        checkpoint_path(tmp_path, iteration).write_bytes(b"torn")
    assert snapshot(tmp_path, tmp_path / "w.safetensors") == 2
    error = capsys.readouterr().err
    assert f"hida: all checkpoints of '{tmp_path}' are damaged or unreadable, the newest: " in error
    assert str(checkpoint_path(tmp_path, 2)) in error
    assert error.count("\n") == 1
    assert not recwarn.list
