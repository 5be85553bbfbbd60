"""The command: what it writes, drawing with weights, and its refusals."""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from metrics.test_scoring import light_networks, prepared_set, write_images  # noqa: F401
from PIL import Image

from hida.cli import evaluate as cli_evaluate
from hida.cli.run import run_command
from hida.config import Config
from hida.data.packed import pack
from hida.data.prepared import PreparedSet
from hida.errors import HidaError
from hida.metrics.evaluation import spread
from hida.metrics.lpips import load_lpips
from hida.metrics.scores import load
from hida.metrics.store import Store

OFFLINE = ["--metrics", "scoot", "fsim"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path / "cache"))


def run(tmp_path, *arguments: str) -> dict:
    cli_evaluate.main(["--out", str(tmp_path / "out"), *arguments])
    return json.loads((tmp_path / "out/scores.json").read_text(encoding="utf-8"))


class Drawer:
    """A sketcher whose drawings tell by what they were drawn."""

    calls = 0
    config = Config()

    def __init__(self, value: float = 1.0) -> None:
        self.generator = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.generator.weight, value)

    @classmethod
    def from_pretrained(cls, name, device="cpu"):
        return cls(float(name))

    def draw_aligned(self, photos, depths, styles):
        assert photos.dtype == depths.dtype == torch.uint8
        assert photos.shape[1:] == (3, 40, 40)
        assert depths.shape[1:] == (1, 40, 40)
        Drawer.calls += len(photos)
        flat = styles.view(-1, 1, 1, 1) * 50 + 50 * int(self.generator.weight.item())
        return flat.expand(-1, 1, 40, 40).to(torch.uint8)


@pytest.fixture
def drawer(monkeypatch):
    monkeypatch.setattr("hida.metrics.evaluation.Sketcher", Drawer)
    Drawer.calls = 0
    return Drawer


def test_a_folder_against_a_prepared_set(tmp_path, capsys, light_networks):  # noqa: F811
    styles = {f"n{i}": ("test", i % 2) for i in range(8)} | {"t": ("train", 0)}
    target = prepared_set(tmp_path / "set", styles)
    write_images(tmp_path / "p", [f"n{i}.png" for i in range(8)], seed=5)
    result = run(tmp_path, "--pred", str(tmp_path / "p"), "--target", str(target), "--label", "mine <1>")
    assert list(result["groups"]) == ["overall", "style 1", "style 2"]
    assert [group["n"] for group in result["groups"].values()] == [8, 4, 4]
    by_style = [record["fsim"] for record in result["pairs"] if record["style"] == 2]
    assert result["groups"]["style 2"]["fsim"]["value"] == pytest.approx(np.mean(by_style))
    printed = capsys.readouterr().out
    assert "fs2k-v1" in printed
    assert "8 pairs instead of the 1,046" in printed
    assert (tmp_path / "out/scores.md").read_text(encoding="utf-8") in printed
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "mine &lt;1&gt;" in page
    # Self-contained: every picture is inside, nothing is fetched.
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 3 * 9 * 3
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in page


@pytest.mark.parametrize("name", ["set.zip", "set.ZIP", "set"])
def test_a_packed_set_is_known_by_what_it_holds(tmp_path, capsys, name):
    prepared = PreparedSet.load(prepared_set(tmp_path / "folder", {"n0": ("test", 0), "n1": ("test", 1)}))
    pack(prepared, tmp_path / "packed.zip")
    (tmp_path / "packed.zip").rename(tmp_path / name)
    write_images(tmp_path / "p", ["n0.png", "n1.png"], seed=5)
    arguments = ["--pred", str(tmp_path / "p"), "--target", str(tmp_path / name), "--metrics", "fsim"]
    assert run(tmp_path, *arguments)["groups"]["overall"]["n"] == 2
    assert run_command(cli_evaluate.main, [*arguments, "--photos", str(tmp_path / "p")]) == 2
    assert "--photos has no effect" in capsys.readouterr().err


def test_the_report_shows_best_median_and_worst_in_order(tmp_path):
    write_images(tmp_path / "t", [f"{i}.png" for i in range(9)], seed=1)
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for i in range(9):
        # Picture i is blended with noise by i/8.
        target = np.array(Image.open(tmp_path / f"t/{i}.png"), dtype=float)
        noise = rng.integers(0, 256, target.shape)
        blend = target * (1 - i / 8) + noise * i / 8
        Image.fromarray(blend.astype(np.uint8)).save(tmp_path / f"p/{i}.png")
    result = run(tmp_path, "--pred", str(tmp_path / "p"), "--target", str(tmp_path / "t"), "--metrics", "fsim")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    by_score = sorted(result["pairs"], key=lambda record: -record["fsim"])
    assert by_score[0]["name"] == "0"
    assert re.findall(r"<figcaption>FSIM [\d.]+ — (\d)", page) == [record["name"] for record in by_score]


def test_scoot_and_fsim_need_no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDA_WEIGHTS", "")
    write_images(tmp_path / "p", ["a.png", "b.png"], seed=1)
    write_images(tmp_path / "t", ["a.png", "b.png"], seed=2)
    arguments = ["--pred", str(tmp_path / "p"), "--target", str(tmp_path / "t")]
    result = run(tmp_path, *arguments, *OFFLINE)
    assert result["metrics"] == ["scoot", "fsim"]
    from hida.metrics.inception import load_inception

    load_inception.cache_clear()
    load_lpips.cache_clear()
    with pytest.raises(HidaError, match="hida weights fetch"):
        run(tmp_path, *arguments, "--metrics", "fid")


def test_few_pairs_are_spread_evenly_over_many():
    assert spread(range(9), 3) == [1, 4, 7]
    assert spread(range(10), 2) == [2, 7]
    assert spread(range(4), 3) == [0, 2, 3]
    assert spread(range(3), 0) == spread(range(3), 5) == [0, 1, 2]


def test_weights_draw_the_test_split_and_keep_what_is_drawn(tmp_path, drawer):
    target = prepared_set(tmp_path / "set", {f"n{i}": ("test", i % 3) for i in range(9)} | {"t": ("train", 0)})
    arguments = ["--target", str(target), *OFFLINE]
    result = run(tmp_path, "--weights", "1", *arguments)
    assert result["label"] == "1"
    assert drawer.calls == 9
    assert sorted(path.name for path in (tmp_path / "out/sketches").glob("*.png")) == [f"n{i}.png" for i in range(9)]
    assert np.asarray(Image.open(tmp_path / "out/sketches/n2.png"))[0, 0] == 150
    (tmp_path / "out/sketches/n4.png").unlink()
    run(tmp_path, "--weights", "1", *arguments)
    # With those that it was drawn with before, so that it is the same to the bit, but not with the ninth.
    assert drawer.calls == 17
    # Other weights: everything is drawn anew.
    run(tmp_path, "--weights", "2", *arguments)
    assert drawer.calls == 26
    assert np.asarray(Image.open(tmp_path / "out/sketches/n2.png"))[0, 0] == 200


def test_pictures_of_a_lossy_pack_are_said_targets_and_what_was_drawn_from(tmp_path, drawer):
    target = prepared_set(tmp_path / "set", {"a": ("test", 0), "b": ("test", 1)})
    for kind, lossless in (("photo", False), ("sketch", False), ("depth", True)):
        Image.open(target / kind / "a.png").save(target / kind / "a.png", format="WEBP", lossless=lossless)
    result = run(tmp_path, "--weights", "1", "--target", str(target), *OFFLINE)
    assert "1 targets are lossy WebP" in result["protocol"]["deviations"]
    assert result["remarks"] == ["drawn from lossy pictures: 1 photo in lossy WebP"]


@pytest.mark.parametrize("name", ["../../ESC0", "{}/ESC0", "a/b", ".."])
def test_no_name_of_an_index_leads_out_of_the_folder_of_sketches(tmp_path, drawer, capsys, name):
    target = prepared_set(tmp_path / "set", {"a": ("test", 0)})
    index = (
        (target / "index.json")
        .read_text(encoding="utf-8")
        .replace('"name": "a"', json.dumps({"name": name.format(tmp_path)})[1:-1])
    )
    (target / "index.json").write_text(index, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--weights", "1", "--target", str(target), "--out", str(tmp_path / "out/deep"), *OFFLINE]
    assert run_command(cli_evaluate.main, arguments) == 2
    assert "pairs[0].name" in capsys.readouterr().err
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "cache") == before


def test_names_that_are_no_utf_8_are_scored_and_can_be_compared(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for folder, seed in ((tmp_path / name, 1), (tmp_path / "t", 2)):
        write_images(folder, [f"{name}.png", "b.png"], seed=seed)
    result = run(tmp_path, "--pred", str(tmp_path / name), "--target", str(tmp_path / "t"), "--metrics", "scoot")
    assert {record["name"] for record in result["pairs"]} == {name, "b"}
    assert load(tmp_path / "out") == result


def test_a_missing_network_is_said_before_anything_is_drawn(tmp_path, drawer, monkeypatch):
    monkeypatch.setenv("HIDA_WEIGHTS", "")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    load_lpips.cache_clear()
    target = prepared_set(tmp_path / "set", {"n": ("test", 0)})
    with pytest.raises(HidaError, match="hida weights fetch"):
        run(tmp_path, "--weights", "1", "--target", str(target), "--metrics", "lpips")
    assert drawer.calls == 0
    assert not (tmp_path / "out").exists()


def test_a_weights_file_is_drawn_with_and_scored(tmp_path):
    from hida.config import GeneratorConfig
    from hida.models import build_generator
    from hida.weights import checkpoint

    target = prepared_set(tmp_path / "set", {"a": ("test", 0), "b": ("test", 2)}, size=240)
    config = Config(generator=GeneratorConfig(base_width=2))
    torch.manual_seed(0)
    tensors = {f"generator.{name}": value for name, value in build_generator(config).state_dict().items()}
    checkpoint.save(tmp_path / "tiny.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    result = run(tmp_path, "--weights", str(tmp_path / "tiny.safetensors"), "--target", str(target), *OFFLINE)
    assert [record["name"] for record in result["pairs"]] == ["a", "b"]
    drawn = Image.open(tmp_path / "out/sketches/a.png")
    assert (drawn.size, drawn.mode) == ((240, 240), "L")
    assert np.asarray(drawn).std() > 0


def test_what_a_run_held_out_is_drawn_and_scored(tmp_path, drawer, monkeypatch):
    from hida.config import TrainConfig
    from hida.data.dataset import split_holdout

    names = {f"n{i}": ("train", i % 3) for i in range(9)} | {"t": ("test", 0)}
    arguments = ["--weights", "1", "--target", str(prepared_set(tmp_path / "set", names)), *OFFLINE, "--split"]
    monkeypatch.setattr(drawer, "config", Config(train=TrainConfig(holdout=4, seed=7)), raising=False)
    result = run(tmp_path, *arguments, "held_out")
    expected = {f"n{i}" for i in split_holdout(9, 4, 7)[1].tolist()}
    assert {record["name"] for record in result["pairs"]} == expected
    assert len(expected) == drawer.calls == 4
    assert "held out from these weights' training" in result["remarks"][0]
    # The test split, then two of them: what the folder has beside them is left aside.
    assert [record["name"] for record in run(tmp_path / "b", *arguments, "test")["pairs"]] == ["t"]
    assert len(run(tmp_path, *arguments, "held_out", "--limit", "2")["pairs"]) == 2
    monkeypatch.setattr(drawer, "config", Config(train=TrainConfig(holdout=0)))
    with pytest.raises(HidaError, match="none was held out"):
        run(tmp_path / "c", *arguments, "held_out")


def test_drawing_never_touches_a_folder_of_others(tmp_path, drawer):
    target = prepared_set(tmp_path / "set", {"a": ("test", 0), "b": ("test", 1)})
    write_images(tmp_path / "out/sketches", ["precious.png"])
    with pytest.raises(HidaError, match="not drawn by this command"):
        run(tmp_path, "--weights", "1", "--target", str(target), *OFFLINE)
    assert (tmp_path / "out/sketches/precious.png").is_file()
    with pytest.raises(HidaError, match="not a prepared data set"):
        run(tmp_path, "--weights", "1", "--target", str(tmp_path / "out"), *OFFLINE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "either --pred DIR"),
        (["--pred", "p", "--weights", "w"], "either --pred DIR"),
        (["--pred", "absent"], "absent is not a folder"),
        (["--pred", "p", "--device", "abacus"], "no device"),
        (["--pred", "p", "--metrics"], "--metrics names none"),
        (["--pred", "p", "--split", "held_out"], "--split chooses what --weights draws"),
    ],
)
def test_refusals_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "p", ["a.png"])
    write_images(tmp_path / "t", ["a.png"])
    assert run_command(cli_evaluate.main, ["--target", "t", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("hida: ")
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize("own", [True, False], ids=["--photos", "of the prepared set"])
def test_a_damaged_photo_is_said_and_none_of_the_three_files_is_written(tmp_path, capsys, monkeypatch, own):
    names = [f"n{i}" for i in range(3)]
    target = prepared_set(tmp_path / "set", dict.fromkeys(names, ("test", 0)))
    write_images(tmp_path / "p", [f"{name}.png" for name in names], seed=5)
    photo = target / "photo/n1.png"
    photo.write_bytes(photo.read_bytes()[:60])
    arguments = ["--pred", str(tmp_path / "p"), "--metrics", "fsim", "--out", str(tmp_path / "out")]
    if own:
        monkeypatch.setattr("hida.metrics.evaluation.score", lambda *_: pytest.fail("measured first"))
        arguments += ["--target", str(target / "sketch"), "--photos", str(target / "photo")]
    else:
        arguments += ["--target", str(target)]
    assert run_command(cli_evaluate.main, arguments) == 2
    assert str(photo) in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.*"))


def test_a_limit_takes_pairs_from_the_middle_of_equal_parts():
    assert spread(range(10), 5) == [1, 3, 5, 7, 9]
    assert spread(range(9), 3) == [1, 4, 7]
    assert spread(range(4), 0) == spread(range(4), 9) == [0, 1, 2, 3]


@pytest.mark.parametrize("failing", ["scores.json", "scores.md", "report.html"])
def test_the_three_files_are_written_or_none_of_them(tmp_path, monkeypatch, failing):
    for folder, seed in (("p", 1), ("q", 2), ("t", 3)):
        write_images(tmp_path / folder, ["a.png", "b.png"], seed=seed)
    arguments = ["--target", str(tmp_path / "t"), "--metrics", "fsim", "--pred"]
    run(tmp_path, *arguments, str(tmp_path / "p"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    real = Path.write_bytes

    def full(path, data):
        if (b"<html" in data, data.startswith(b"{")) == (failing == "report.html", failing == "scores.json"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    arguments += [str(tmp_path / "q"), "--out", str(tmp_path / "out")]
    assert run_command(cli_evaluate.main, arguments) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("side", ["p", "t", "photos"])
def test_all_damaged_pictures_are_named_in_a_line_each_before_anything_is_measured(tmp_path, capsys, monkeypatch, side):
    monkeypatch.setattr("hida.metrics.evaluation.score", lambda *_: pytest.fail("measured"))
    kinds = ("jpg", "png", "webp", "tif", "bmp", "gif", "ppm", "JFIF")
    for folder in ("p", "t", "photos"):
        write_images(tmp_path / folder, [f"{kind}.{kind}" for kind in kinds] + ["sound.png"])
    for kind in kinds:
        path = tmp_path / side / f"{kind}.{kind}"
        os.truncate(path, path.stat().st_size // 2)
    arguments = ["--pred", "p", "--target", "t", "--photos", "photos", "--metrics", "fsim"]
    monkeypatch.chdir(tmp_path)
    assert run_command(cli_evaluate.main, arguments) == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("hida: ")]
    assert len(lines) == len(kinds) + 1
    for kind in kinds:
        assert sum(f"'{side}/{kind}.{kind}'" in line for line in lines) == 1
    assert "8 of 27 pictures cannot be read, named above, and nothing was measured" in lines[-1]
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize("way", [["--pred", "p"], ["--weights", "small"]])
def test_a_target_that_is_not_there_is_said_so(tmp_path, capsys, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "p", ["a.png"])
    assert run_command(cli_evaluate.main, [*way, "--target", "nosuch.zip", "--metrics", "fsim"]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err


def test_with_a_locked_cache_everything_is_measured_and_two_lines_say_why_it_is_not_kept(tmp_path, capsys, monkeypatch):
    for folder in ("p", "t"):
        write_images(tmp_path / folder, ["a.png"])
    monkeypatch.setattr("hida.metrics.store._WAIT_AT_WORK", 0.2)
    monkeypatch.setattr("hida.metrics.store._WAIT_AT_END", 0.2)
    cache = tmp_path / "cache.sqlite"
    Store(cache).close()
    with sqlite3.connect(cache, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        arguments = ["--pred", str(tmp_path / "p"), "--target", str(tmp_path / "t"), "--metrics", "fsim"]
        result = run(tmp_path, *arguments, "--cache", str(cache))
        other.execute("ROLLBACK")
    other.close()
    assert 0 < result["groups"]["overall"]["fsim"]["value"] <= 1
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "cache" in line]
    assert len(lines) == 2  # that it waits, and that it gave up
    assert all(line.startswith(f"hida: the cache {cache} is locked by another process") for line in lines)


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb"])
def test_a_name_that_does_not_print_is_escaped_as_a_label_and_refused_as_an_option(tmp_path, capsys, name):
    write_images(tmp_path / name, ["n.png"])
    arguments = ["--pred", str(tmp_path / name), "--target", str(tmp_path / name), "--metrics", "fsim"]
    assert run(tmp_path, *arguments)["label"] == ascii(name)[1:-1]
    assert load(tmp_path / "out")["label"].isprintable()
    assert run_command(cli_evaluate.main, [*arguments, "--label", name, "--out", str(tmp_path / "out")]) == 2
    assert "characters that do not print" in capsys.readouterr().err
