"""A packed set holds the same pairs, smaller, and nothing in it can reach outside its folder."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from hida.cli import pack as command
from hida.cli.run import run_command
from hida.data.packed import RECORD, pack, prepared_folder
from hida.data.prepared import INDEX, PreparedPair, PreparedSet
from hida.errors import HidaError
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


def test_a_folder_stays_itself_and_a_second_look_unpacks_nothing(prepared, tmp_path):
    assert prepared_folder(prepared.folder) == prepared.folder
    out = tmp_path / "set.zip"
    pack(prepared, out)
    folder = prepared_folder(out)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert prepared_folder(out) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    pack(prepared, out, quality={"photo": 20, "sketch": 20, "depth": 20})
    prepared_folder(out)
    assert (folder / "photo/p0.webp").stat().st_mtime_ns != before[folder / "photo/p0.webp"]


@pytest.mark.parametrize("damage", ["cut", "text", "other zip"])
def test_another_file_is_refused_in_a_sentence(prepared, tmp_path, damage):
    out = tmp_path / "set.zip"
    pack(prepared, out)
    if damage == "cut":
        out.write_bytes(out.read_bytes()[:-200])
    elif damage == "text":
        out.write_text("hello")
    else:
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a.txt", "a")
    with pytest.raises(HidaError, match="no packed data set, or damaged"):
        prepared_folder(out)


def test_no_name_leads_out_of_the_folder(prepared, tmp_path):
    out = tmp_path / "set.zip"
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("photo/../../evil.webp", "photo/a/b.webp", "/evil.webp", "photo/..\\evil.webp", "evil.webp"):
            archive.writestr(name, b"x")
        archive.writestr(RECORD, "{}")
        archive.writestr(INDEX, json.dumps({"version": 1}))
    folder = prepared_folder(out)
    assert {path.name for path in tmp_path.rglob("*evil*")} == set()
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [INDEX, RECORD]


def test_faults_of_the_command_are_sentences(prepared, tmp_path, capsys):
    assert run_command(command.main, [str(prepared.folder), str(tmp_path / "a.zip"), "--quality-photo", "300"]) == 2
    assert "--quality-photo is 300" in capsys.readouterr().err
    assert run_command(command.main, [str(tmp_path), str(tmp_path / "a.zip")]) == 2
    assert "is not a prepared data set" in capsys.readouterr().err
    assert not (tmp_path / "a.zip").exists()
