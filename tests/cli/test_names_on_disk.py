"""Names of files and folders that are not UTF-8, through the commands."""

from __future__ import annotations

import json
import os
import sys
from functools import partial

import numpy as np
import pytest
from faces import Model
from PIL import Image
from runs import TINY

from hida import depth
from hida.cli import prepare
from hida.cli.main import main
from hida.cli.run import run_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only some systems take any bytes for a name")
NAMES = [os.fsdecode(name) for name in (b"caf\xe9", b"\xff", "schön".encode(), b"a\xe9b", b"a\xe8b")]
ODD = os.fsdecode(b"fold\xe9r")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Pairs of such names in a folder of such a name; the last two differ in what no index can hold."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(depth, "face_model", lambda method="auto", device="cpu": Model())
    monkeypatch.setattr(prepare, "load_model", lambda name: Model())
    for kind in ("photo", "sketch"):
        (tmp_path / ODD / kind).mkdir(parents=True)
        for k, name in enumerate(NAMES):
            values = np.random.default_rng(k + 10 * (kind == "photo")).integers(1, 256, (250, 250, 3), np.uint8)
            Image.fromarray(values).save(tmp_path / ODD / kind / f"{name}.png")
    return tmp_path


def prepared(*options):
    words = [ODD, f"out-{ODD}", "--workers", "1", "--depth", "builtin", "--test-fraction", "0.25", *options]
    return run_command(main, ["prepare", "pairs", *words])


def test_pairs_are_prepared_and_those_of_one_name_are_faults(source, capsys):
    assert prepared() == 2
    error = capsys.readouterr().err
    assert "fold\\udce9r/photo/a\\udce8b.png" in error
    assert "would share one file name" in error
    assert prepared("--allow-faults") == 0
    folder = source / f"out-{ODD}"
    faults = json.loads((folder / "faults.json").read_text(encoding="utf-8"))
    assert [fault["kind"] for fault in faults] == ["ambiguous"]
    pairs = json.loads((folder / "index.json").read_text(encoding="utf-8"))["pairs"]
    assert len(pairs) == len(NAMES) - 1
    assert "schön" in {pair["name"] for pair in pairs}
    assert all((folder / pair["photo"]).is_file() for pair in pairs)


def test_a_style_folder_is_refused_before_anything_is_written(source, capsys):
    for kind in ("photo", "sketch"):
        below = source / ODD / kind
        pictures = list(below.iterdir())
        (below / ODD).mkdir()
        for path in pictures:
            path.rename(below / ODD / path.name)
    assert prepared() == 2
    assert "'fold\\udce9r'" in capsys.readouterr().err
    assert not (source / f"out-{ODD}").exists()


@pytest.mark.slow
def test_a_set_is_packed_trained_on_drawn_with_and_scored(source):
    hida = partial(run_command, main)
    folder, run, out = f"out-{ODD}", f"run-{ODD}", f"drawn-{ODD}"
    assert prepared("--allow-faults") == 0
    assert hida(["pack", folder, f"{ODD}.zip"]) == 0
    options = [*TINY, "--generator.styles", "1", "--train.holdout", "0", "--stop-after", "1"]
    assert hida(["train", "--data", f"{ODD}.zip", "--out", run, *options]) == 0
    assert hida(["train", "--data", f"{ODD}.zip", "--out", run, *options]) == 0  # reads its own checkpoint
    assert hida(["weights", "snapshot", run, f"{ODD}.safetensors"]) == 0
    weights = ["--weights", f"{ODD}.safetensors", "--device", "cpu"]
    assert hida(["sketch", f"{ODD}/photo", *weights, "--out", out, "--sheet"]) == 0
    assert len(os.listdir(out)) == 2 * len(NAMES)
    scoring = ["--metrics", "scoot", "--cache", f"{ODD}.sqlite", "--out", f"scores-{ODD}"]
    assert hida(["evaluate", *weights, "--target", folder, *scoring]) == 0
    assert hida(["compare", f"scores-{ODD}", f"scores-{ODD}", "--out", f"{ODD}.md"]) == 0
