"""A packed set holds the same pairs, smaller."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from hida.cli import pack as command
from hida.cli.run import run_command
from hida.data.packed import pack
from hida.data.prepared import PreparedPair, PreparedSet
from hida.data.unpacking import prepared_folder
from hida.images.alignment import IDENTITY, TEMPLATE
from hida.images.io import write_png


@pytest.fixture
def prepared(tmp_path):
    folder, random, pairs = tmp_path / "set", np.random.default_rng(0), []
    for k, split in enumerate(("train", "test", "train")):
        names = {kind: f"{kind}/p{k}.png" for kind in ("photo", "sketch", "depth")}
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
        photo = np.asarray(coarse.resize((250, 250), Image.Resampling.BICUBIC))
        for kind, picture in zip(names, (photo, photo[:, :, 0], photo[:, :, 1]), strict=True):
            write_png(folder / names[kind], picture)
        matrix, points = tuple(map(tuple, IDENTITY.tolist())), tuple(map(tuple, TEMPLATE.tolist()))
        pairs.append(PreparedPair(f"p{k}", split, k % 2, **names, matrix=matrix, points=points, faces=1))
    template = tuple(map(tuple, TEMPLATE.tolist()))
    fill = {"photo": "replicate", "sketch": "paper"}
    made = PreparedSet(folder, "fs2k", 250, template, fill, "tddfa", ("ink", "chalk"), tuple(pairs))
    made.save()
    return made


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_what_is_packed_is_what_was_prepared_but_for_the_loss_it_tells(prepared, tmp_path):
    told = pack(prepared, tmp_path / "set.zip")
    folder = prepared_folder(tmp_path / "set.zip")
    again = PreparedSet.load(folder)
    assert again.fill == prepared.fill
    assert again.styles == prepared.styles
    found = {kind: [] for kind in told}
    for before in prepared.pairs:
        after = next(pair for pair in again.pairs if pair.name == before.name)
        assert dataclasses.replace(after, photo="", sketch="", depth="") == dataclasses.replace(
            before, photo="", sketch="", depth=""
        )
        for kind, a, b in zip(told, prepared.read(before), again.read(after), strict=True):
            found[kind].append(psnr(a, b))
    for kind, values in found.items():
        assert told[kind] == pytest.approx({"mean": np.mean(values), "least": min(values)}, abs=1e-6)
        assert min(values) > 30
    assert (tmp_path / "set.zip").stat().st_size < sum(p.stat().st_size for p in prepared.folder.rglob("*.png"))


def test_quality_101_loses_nothing_and_a_split_stands_alone(prepared, tmp_path):
    out = tmp_path / "test.zip"
    lossless = ["--quality-photo", "101", "--quality-sketch", "101", "--quality-depth", "101"]
    assert run_command(command.main, [str(prepared.folder), str(out), "--split", "test", *lossless]) == 0
    again = PreparedSet.load(prepared_folder(out))
    assert [pair.name for pair in again.pairs] == ["p1"]
    for a, b in zip(prepared.read(prepared.pairs[1]), again.read(again.pairs[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_loses_nothing_counts_as_a_tenth_of_a_level_squared(prepared, tmp_path):
    told = pack(prepared, tmp_path / "set.zip", ["test"], dict.fromkeys(("photo", "sketch", "depth"), 101))
    best = 10 * np.log10(255**2 / 0.1)
    assert told == {kind: pytest.approx({"mean": best, "least": best}) for kind in ("photo", "sketch", "depth")}


def test_faults_of_the_command_are_sentences(prepared, tmp_path, capsys):
    assert run_command(command.main, [str(prepared.folder), str(tmp_path / "a.zip"), "--quality-photo", "300"]) == 2
    assert "--quality-photo is 300" in capsys.readouterr().err
    assert run_command(command.main, [str(tmp_path), str(tmp_path / "a.zip")]) == 2
    assert "is not a prepared data set" in capsys.readouterr().err
    (tmp_path / "b.zip").mkdir()
    for out, says in (
        ("b.zip", "is a folder"),
        ("a.txt", "does not end in .zip"),
        ("set/index.json/a.zip", "where a folder was expected"),
    ):
        assert run_command(command.main, [str(prepared.folder), str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert str(tmp_path / out) in error
    assert not list(tmp_path.glob("a.*"))
