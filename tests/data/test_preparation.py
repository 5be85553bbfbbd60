"""Preparation end to end on generated pictures, with a face model that finds three coloured dots."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hida.cli import prepare
from hida.cli.run import run_command
from hida.data import preparation
from hida.data.preparation import Settings, check_source
from hida.data.prepared import PreparedSet
from hida.data.source import Fault, SourcePair, SourceSet
from hida.errors import HidaError
from hida.images.alignment import TEMPLATE, apply, invert, is_identity

SETTINGS = Settings("pairs")
PAPER = 200  # the photos' background


class DotFace:
    """Points at the centres of the red, green and blue dots; depth 1 at the eyes' side of the frame."""

    def __init__(self, photo):
        photo = photo.astype(int)
        centres = []
        for channel in range(3):
            others = photo.sum(axis=2) - photo[:, :, channel]
            rows, columns = np.nonzero(photo[:, :, channel] * 2 - others > 300)
            centres.append((columns.mean(), rows.mean()))
        self.points = np.array(centres)

    def depth(self, size, matrix):
        rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
        x, y = apply(matrix, self.points)[0]
        return ((rows - y) ** 2 + (columns - x) ** 2 < 9).astype(np.float32)


class DotModel:
    calls = 0

    def faces(self, photo):
        DotModel.calls += 1
        assert photo.dtype == np.uint8
        red = (photo[:, :, 0].astype(int) * 2 - photo[:, :, 1] - photo[:, :, 2]) > 300
        return [DotFace(photo)] if red.any() else []


def draw(path, points, size, dots=True):
    """A photo with three dots of 13×13 pixels, or its sketch: the same dots in black on white."""
    photo = np.full((size[1], size[0], 3), PAPER, np.uint8)
    for channel, (x, y) in enumerate(points if dots else ()):
        x, y = round(x), round(y)
        photo[max(y - 6, 0) : y + 7, max(x - 6, 0) : x + 7] = np.eye(3, dtype=np.uint8)[channel] * 255
    sketch = np.where((photo == PAPER).all(axis=2), 255, 0).astype(np.uint8)
    for kind in ("photo", "sketch"):
        (path / kind).mkdir(parents=True, exist_ok=True)
    return photo, sketch


def place(scale, degrees, x, y):
    angle = np.deg2rad(degrees)
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[a, -b, x], [b, a, y]])


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    pairs = []
    for k, (matrix, size, dots) in enumerate(
        (
            (place(1, 0, 3, -2), (250, 250), True),  # aligned by its maker
            (place(1.5, 20, 60, 10), (500, 420), True),
            (place(0.8, -10, 20, 30), (260, 300), True),
            (place(1, 0, 0, 0), (250, 250), False),  # no face
        )
    ):
        photo, sketch = draw(folder, apply(matrix, TEMPLATE), size, dots)
        files = {"photo": folder / f"photo/p{k}.png", "sketch": folder / f"sketch/p{k}.png"}
        Image.fromarray(photo).save(files["photo"])
        Image.fromarray(sketch).save(files["sketch"])
        pairs.append(SourcePair(f"p{k}", "train" if k else "test", k % 2, **files, attributes={"hair": k}))
    return SourceSet("pairs", folder, ("ink", "chalk"), tuple(pairs[:3])), pairs[3]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_faces_land_on_the_template_in_photo_sketch_and_depth(source, tmp_path):
    made = preparation.prepare(source[0], tmp_path / "out", SETTINGS, DotModel)
    assert [(pair.name, pair.split, pair.style) for pair in made.pairs] == [
        ("p0", "test", 0),
        ("p1", "train", 1),
        ("p2", "train", 0),
    ]
    for pair in made.pairs[1:]:
        photo, sketch, depth = made.read(pair)
        found = DotFace(photo).points
        np.testing.assert_allclose(found, TEMPLATE, atol=0.6)
        # One similarity for both: the sketch is dark exactly where the photo has dots.
        dark = sketch < 128
        dots = np.ptp(photo.astype(int), axis=2) > 128
        assert (dark & dots).sum() > 0.9 * (dark | dots).sum()
        rows, columns = np.nonzero(depth == 255)
        np.testing.assert_allclose((columns.mean(), rows.mean()), TEMPLATE[0], atol=0.6)
        np.testing.assert_allclose(apply(pair.matrix, pair.points), TEMPLATE, atol=0.6)
        assert pair.attributes == {"hair": int(pair.name[1])}
        assert pair.faces == 1
    assert PreparedSet.load(tmp_path / "out") == made
    assert json.loads((tmp_path / "out/index.json").read_text(encoding="utf-8"))["version"] == 1


def test_a_pair_that_came_aligned_keeps_every_pixel(source, tmp_path):
    made = preparation.prepare(source[0], tmp_path / "out", SETTINGS, DotModel)
    pair, original = made.pairs[0], source[0].pairs[0]
    assert is_identity(pair.matrix)
    photo, sketch, _ = made.read(pair)
    np.testing.assert_array_equal(photo, np.asarray(Image.open(original.photo)))
    np.testing.assert_array_equal(sketch, np.asarray(Image.open(original.sketch)))
    assert not is_identity(made.pairs[2].matrix)


def test_fill_of_photo_and_sketch(source, tmp_path):
    for fill, value in (("replicate", PAPER), ("white", 255), ("black", 0)):
        settings = Settings("pairs", fill_photo=fill, fill_sketch="black")
        made = preparation.prepare(source[0], tmp_path / fill, settings, DotModel)
        pair = made.pairs[1]
        assert apply(invert(pair.matrix), (249, 249))[1] > 430  # a corner of the frame that lies below the source
        photo, sketch, _ = made.read(pair)
        assert (photo[249, 249] == value).all()
        assert sketch[249, 249] == 0
        assert made.fill == {"photo": fill, "sketch": "black"}


def test_a_sketch_ends_in_its_own_paper_unless_told_otherwise(source, tmp_path):
    original = source[0].pairs[1]
    toned = np.minimum(np.asarray(Image.open(original.sketch)), 219)
    Image.fromarray(toned).save(original.sketch)
    made = preparation.prepare(source[0], tmp_path / "out", SETTINGS, DotModel)
    assert made.read(made.pairs[1])[1][249, 249] == 219
    assert made.fill == PreparedSet.load(made.folder).fill == {"photo": "replicate", "sketch": "paper"}


def test_the_tone_of_the_skin_is_measured_where_an_annotation_says_and_once_more_if_it_is_missing(source, tmp_path):
    points = ([5, 9], [1, 1], [999, 1])
    pairs = [replace(p, attributes={"skin_color": at}) for p, at in zip(source[0].pairs, points, strict=True)]
    given = replace(source[0], pairs=tuple(pairs))
    grey = 90.0  # of the background, which is lighter than the middle and not yellow
    DotModel.calls = 0
    made = preparation.prepare(given, tmp_path / "out", SETTINGS, DotModel)
    assert [pair.attributes["skin_ita"] for pair in made.pairs] == [pytest.approx(grey, abs=0.5)] * 2 + [None]
    journal = tmp_path / "out/journal.jsonl"
    first, *lines = journal.read_text(encoding="utf-8").splitlines()
    older = [json.loads(line) for line in lines]
    del older[1]["pair"]["attributes"]["skin_ita"]
    del older[2]["pair"]["attributes"]
    journal.write_text("\n".join([first, *map(json.dumps, older)]), encoding="utf-8")
    assert DotModel.calls == 3
    assert preparation.prepare(given, tmp_path / "out", SETTINGS, DotModel) == made
    assert DotModel.calls == 5


def test_depth_none_is_zero(source, tmp_path):
    made = preparation.prepare(source[0], tmp_path / "out", Settings("pairs", depth="none"), DotModel)
    assert made.depth == "none"
    assert all(made.read(pair)[2].max() == 0 for pair in made.pairs)


def test_a_photo_without_a_face_is_a_named_fault(source, tmp_path, capsys):
    sound, faceless = source
    every = SourceSet("pairs", sound.folder, sound.styles, (*sound.pairs, faceless))
    out = tmp_path / "out"
    with pytest.raises(HidaError, match=r"1 fault in .*--allow-faults"):
        preparation.prepare(every, out, SETTINGS, DotModel)
    assert "no face: p3" in capsys.readouterr().err
    assert [fault["name"] for fault in json.loads((out / "faults.json").read_text(encoding="utf-8"))] == ["p3"]
    with pytest.raises(HidaError, match="did not finish"):
        PreparedSet.load(out)
    calls = DotModel.calls
    made = preparation.prepare(every, out, SETTINGS, DotModel, allow_faults=True)
    assert DotModel.calls == calls + 1  # only the faceless photo was looked at again
    assert [pair.name for pair in made.pairs] == ["p0", "p1", "p2"]
    only = SourceSet("pairs", sound.folder, sound.styles, (faceless,))
    with pytest.raises(HidaError, match="no pair of"):
        preparation.prepare(only, tmp_path / "none", SETTINGS, DotModel, allow_faults=True)


def test_faults_of_the_source_stop_before_anything_is_written(source, tmp_path, capsys):
    fault = Fault("size", "p9", "is odd.")
    faulty = SourceSet("pairs", source[0].folder, source[0].styles, source[0].pairs, (fault,), ("a remark",))
    with pytest.raises(HidaError, match="1 fault in"):
        check_source(faulty, tmp_path / "out", allow_faults=False)
    assert list(contents(tmp_path / "out")) == ["faults.json"]
    assert json.loads((tmp_path / "out/faults.json").read_text(encoding="utf-8")) == [
        {"kind": "size", "name": "p9", "message": "is odd."}
    ]
    assert "fault: size: p9: is odd.\nnote: a remark" in capsys.readouterr().err
    check_source(faulty, tmp_path / "out", allow_faults=True)
    check_source(source[0], tmp_path / "out", allow_faults=False)
    assert json.loads((tmp_path / "out/faults.json").read_text(encoding="utf-8")) == []


def test_only_what_is_missing_or_changed_is_done_again(source, tmp_path, capsys):
    sound, out = source[0], tmp_path / "out"
    preparation.prepare(sound, out, SETTINGS, DotModel)
    before = contents(out)

    def calls(**settings):
        start = DotModel.calls
        preparation.prepare(sound, out, Settings("pairs", **settings), DotModel)
        return DotModel.calls - start

    assert calls() == 0
    assert contents(out) == before
    (out / "depth/p1.png").unlink()
    (out / "photo/.p1.xyz.part.png").write_bytes(b"torn")
    (out / "photo/old.png").write_bytes(b"of a pair that is gone")
    assert calls() == 1
    assert contents(out).keys() == before.keys()
    assert contents(out)["depth/p1.png"] == before["depth/p1.png"]
    os.utime(sound.pairs[2].sketch, (1, 1))
    assert calls() == 1
    with (out / "journal.jsonl").open("r+b") as journal:
        journal.truncate(os.path.getsize(out / "journal.jsonl") - 40)
    assert calls() == 1
    for old, new in (
        ('"name": "p1"', '"name": "../p1"'),
        ('"hair": 1', '"hair": NaN'),
        ('"hair": 1', '"hair": ' + "[" * 9999),
    ):
        text = (out / "journal.jsonl").read_text(encoding="utf-8")
        assert old in text
        (out / "journal.jsonl").write_text(text.replace(old, new), encoding="utf-8")
        assert calls() == 1, new
    assert calls(fill_sketch="black") == 3
    assert "settings differ" in capsys.readouterr().err


def test_workers_give_the_same_files(source, tmp_path):
    preparation.prepare(source[0], tmp_path / "one", SETTINGS, DotModel, workers=1)
    preparation.prepare(source[0], tmp_path / "two", SETTINGS, DotModel, workers=2)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    one.pop("journal.jsonl"), two.pop("journal.jsonl")  # its order is that of finishing
    assert one == two
    assert len(one) == 10


class Single(DotModel):
    """Insists on one thread: with more, a face's numbers are rounded differently."""

    def faces(self, photo):
        assert torch.get_num_threads() == 1
        return super().faces(photo)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_computes_with_one_thread_and_the_caller_keeps_its_own(source, tmp_path, workers):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        preparation.prepare(source[0], tmp_path / "out", SETTINGS, Single, workers=workers)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_the_prepared_set_is_the_same_bytes_for_any_number_of_workers_and_threads(tmp_path):
    """Of the built-in networks, in fresh processes, whose threads the environment decides."""
    photo = Image.open(Path(__file__).parents[2] / "docs/images/astronaut.jpg")
    for folder in ("photo", "sketch"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
    for angle in (0, 4, 8, 12, 90):
        turned = photo.rotate(angle, Image.Resampling.BICUBIC)
        turned.save(tmp_path / f"pairs/photo/p{angle}.png")
        turned.convert("L").save(tmp_path / f"pairs/sketch/p{angle}.png")
    prepared = []
    for workers, threads in ((1, 1), (1, 2), (2, 2), (3, 1)):
        out = tmp_path / f"out{workers}{threads}"
        command = [sys.executable, "-m", "hida", "prepare", "pairs", tmp_path / "pairs", out, "--depth", "builtin"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        run = [*map(str, command), "--workers", str(workers)]
        subprocess.run(run, env=environment, check=True, capture_output=True)
        prepared.append(contents(out))
        prepared[-1].pop("journal.jsonl")
    assert len(prepared[0]) == 17
    assert all(one == prepared[0] for one in prepared)


class Deadly:
    def faces(self, photo):
        os._exit(9)


@pytest.mark.slow
def test_a_dead_worker_is_one_sentence(source, tmp_path):
    with pytest.raises(HidaError, match="a worker process died"):
        preparation.prepare(source[0], tmp_path / "out", SETTINGS, Deadly, workers=2)


class Slow(DotModel):
    def faces(self, photo):
        time.sleep(0.6)
        return super().faces(photo)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(source, tmp_path, number):
    out = tmp_path / "out"
    script = (
        "import sys; from functools import partial; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_preparation as t; from hida.data import preparation; from hida.data.pairs import read_pairs\n"
        "from hida.cli.run import run_command\n"
        f"source = read_pairs(Path({str(source[0].folder)!r}), test_fraction=0)\n"
        f"run = lambda argv: preparation.prepare(source, Path({str(out)!r}), t.SETTINGS, t.Slow, allow_faults=True)\n"
        "sys.exit(run_command(run))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, encoding="utf-8")
    deadline = time.monotonic() + 60
    journal = out / "journal.jsonl"
    while time.monotonic() < deadline and not (
        journal.is_file() and len(journal.read_text(encoding="utf-8").splitlines()) >= 2
    ):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "give the same command again" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    with pytest.raises(HidaError, match="did not finish"):
        PreparedSet.load(out)
    done = len(journal.read_text(encoding="utf-8").splitlines()) - 1
    assert 1 <= done <= 3
    again = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, encoding="utf-8", check=True)
    assert f"{done} of 4 pairs done already" in again.stderr
    assert len(PreparedSet.load(out).pairs) == 3


def use_dots(monkeypatch, missing=()):
    def load(name):
        if name in missing:
            raise HidaError(f"{name} is not here")
        return DotModel()

    monkeypatch.setattr(prepare, "load_model", load)


def test_a_finished_set_is_whole_at_every_moment_of_another_run(source, tmp_path, monkeypatch):
    """Also where pairs have gone from the source: the set names what is there, before, meanwhile and afterwards."""
    out = tmp_path / "out"
    preparation.prepare(source[0], out, SETTINGS, DotModel)
    fewer = replace(source[0], pairs=source[0].pairs[:2])
    seen, unlink, exchange = [], Path.unlink, os.replace

    def look(*_, **__):
        found = PreparedSet.load(out)
        seen.append([pair.name for pair in found.pairs for _ in found.read(pair)])

    def looking(done):
        return lambda *given, **named: (look(), done(*given, **named), look())

    monkeypatch.setattr(Path, "unlink", looking(unlink))
    monkeypatch.setattr(os, "replace", looking(exchange))
    preparation.prepare(fewer, out, SETTINGS, DotModel)
    assert seen[0] == ["p0"] * 3 + ["p1"] * 3 + ["p2"] * 3
    assert seen[-1] == ["p0"] * 3 + ["p1"] * 3
    assert not (out / "photo" / "p2.png").exists()


def test_the_command_for_own_pairs(source, tmp_path, monkeypatch, capsys):
    use_dots(monkeypatch)
    (source[0].folder / "photo/p3.png").unlink()
    (source[0].folder / "sketch/p3.png").unlink()
    out = tmp_path / "out"
    arguments = [
        "pairs",
        str(source[0].folder),
        str(out),
        "--workers",
        "1",
        "--test-fraction",
        "0.34",
        "--depth",
        "none",
    ]
    assert run_command(prepare.main, arguments) == 0
    said = capsys.readouterr()
    assert "train: 2 pairs (style 1 2)\ntest: 1 pair (style 1 1)\n1 came aligned" in said.out
    assert "every depth map is zero" in said.err
    assert len(PreparedSet.load(out).pairs) == 3


def test_the_command_stops_at_faults_with_status_2(source, tmp_path, monkeypatch, capsys):
    use_dots(monkeypatch, missing=("tddfa", "builtin"))
    (source[0].folder / "sketch/p1.png").unlink()
    assert run_command(prepare.main, ["pairs", str(source[0].folder), str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert "fault: missing sketch: p1" in errors
    assert "hida: 1 fault in" in errors.splitlines()[-1]
    assert list(contents(tmp_path / "out")) == ["faults.json"]


def test_a_missing_model_is_said_and_auto_takes_the_other(source, tmp_path, monkeypatch, capsys):
    use_dots(monkeypatch, missing=("tddfa",))
    assert prepare.choose_models("auto") == ("builtin", "builtin")
    assert "the built-in model is used instead" in capsys.readouterr().err
    assert prepare.choose_models("none") == ("none", "builtin")
    assert prepare.choose_models("builtin") == ("builtin", "builtin")
    arguments = ["pairs", str(source[0].folder), str(tmp_path / "out"), "--depth", "tddfa"]
    assert run_command(prepare.main, arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "hida: tddfa is not here"
    use_dots(monkeypatch)
    assert prepare.choose_models("auto") == ("tddfa", "tddfa")


def test_folders_of_others_are_left_alone(source, tmp_path, monkeypatch, capsys):
    use_dots(monkeypatch)
    folder = source[0].folder
    busy, file = tmp_path / "busy", tmp_path / "file"
    busy.mkdir()
    (busy / "thesis.txt").write_text("mine", encoding="utf-8")
    file.write_text("mine", encoding="utf-8")
    mixed, pictures = tmp_path / "mixed", tmp_path / "pictures"
    (pictures / "photo").mkdir(parents=True)  # named like one of ours, without our index or journal
    mixed.mkdir()
    for name in ("index.json", "thesis.txt"):
        (mixed / name).write_text("mine", encoding="utf-8")
    others = [(out, "holds other files") for out in (folder, busy, mixed, pictures)]
    for out, words in (*others, (file, "is a file")):
        before = contents(tmp_path)
        assert run_command(prepare.main, ["pairs", str(folder), str(out)]) == 2
        assert words in capsys.readouterr().err
        assert contents(tmp_path) == before
    for arguments in (["pairs", str(tmp_path / "gone"), "o"], ["fs2k", str(file), "o"]):
        assert run_command(prepare.main, arguments) == 2
        assert "is not a folder" in capsys.readouterr().err
    assert run_command(prepare.main, ["fs2k", str(folder), str(tmp_path / "new")]) == 2
    assert "is not FS2K" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run_command(prepare.main, ["pairs", str(folder), str(tmp_path / "new"), "--workers", "0"]) == 2


@pytest.mark.fs2k
@pytest.mark.slow
def test_real_pairs_of_fs2k(tmp_path):
    from hida.data.fs2k import read_fs2k

    if "HIDA_FS2K" not in os.environ:
        pytest.skip("HIDA_FS2K does not name the folder of FS2K")
    try:
        prepare.load_model("tddfa")
    except HidaError as error:
        pytest.skip(f"3DDFA_V2 is not available: {error}")
    whole = read_fs2k(os.environ["HIDA_FS2K"])
    wanted = ("photo1_image1508", "photo1_image1081", "photo3_image0161", "photo2_image0034")
    few = SourceSet("fs2k", whole.folder, whole.styles, tuple(p for p in whole.pairs if p.name in wanted))
    made = preparation.prepare(few, tmp_path, Settings("fs2k"), lambda: prepare.load_model("tddfa"))
    assert len(made.pairs) == len(wanted)
    for pair, original in zip(made.pairs, few.pairs, strict=True):
        photo, sketch, depth = made.read(pair)
        assert is_identity(pair.matrix) == pair.name.startswith("photo1")
        if is_identity(pair.matrix):
            np.testing.assert_array_equal(photo, np.asarray(Image.open(original.photo).convert("RGB")))
            np.testing.assert_array_equal(sketch, np.asarray(Image.open(original.sketch).convert("L")))
        assert depth.max() == 255
        assert (depth[:20] == 0).all()  # the sky above is background
        assert (depth[100:160, 95:150] > 60).mean() > 0.95  # the middle of the face is near
