"""hida sketch: files in, files out, one sentence for every mistake."""

import numpy as np
import pytest
import torch
from faces import Cone, Model
from PIL import Image

from hida import depth
from hida.cli.run import run_command
from hida.cli.sketch import main
from hida.config import Config, GeneratorConfig
from hida.models import build_generator
from hida.weights import checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "face_model", lambda method="auto", device="cpu": Model())
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = Config(generator=GeneratorConfig(base_width=2))
    tensors = {f"ema.{k}": v for k, v in build_generator(config).state_dict().items()}
    checkpoint.save(tmp_path / "tiny.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    (tmp_path / "photos").mkdir()
    values = np.random.default_rng(1).integers(1, 256, (250, 250, 3), np.uint8)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(values).save(tmp_path / "photos" / name)
    return tmp_path


def run(*words):
    return run_command(main, [*map(str, words), "--weights", "tiny.safetensors", "--device", "cpu"])


def test_every_style_is_drawn_and_the_sheet_shows_them(folder, capsys):
    assert run("photos/a.png", "--sheet") == 0
    names = sorted(path.name for path in (folder / "sketches").iterdir())
    assert names == ["a_sheet.png", "a_style1.png", "a_style2.png", "a_style3.png"]
    assert capsys.readouterr().out.split() == [f"sketches/{n}" for n in (*names[1:], names[0])]
    sheet = Image.open(folder / "sketches" / "a_sheet.png")
    assert sheet.width > 5 * 250


def test_a_folder_and_chosen_styles(folder):
    assert run("photos", "--style", 3, 1, "--out", "x/y") == 0
    names = sorted(path.name for path in (folder / "x" / "y").iterdir())
    assert names == ["a_style1.png", "a_style3.png", "b_style1.png", "b_style3.png"]


@pytest.mark.parametrize(
    ("words", "drawn"),
    [
        (["--style", "1", "photos/a.png"], ["a_style1"]),
        (["--style", "1:0.6,3:0.4", "2", "photos"], ["a_style1-60_3-40", "a_style2", "b_style1-60_3-40", "b_style2"]),
        (["photos/b.jpg", "--style", "3", "photos/a.png"], ["a_style3", "b_style3"]),
        (["--style", "2", "photos/a.png", "photos/b.jpg", "--frame", "whole"], ["a_style2", "b_style2"]),
    ],
)
def test_photos_may_follow_the_styles(folder, words, drawn):
    assert run(*words) == 0
    assert sorted(path.stem for path in (folder / "sketches").iterdir()) == drawn


def test_mixtures_sweeps_and_regions(folder):
    Image.fromarray(np.full((9, 9, 3), (255, 0, 80), np.uint8)).save(folder / "mask.png")
    assert run("photos/a.png", "--style", "1:0.5,3:0.5", 2, "--sweep", 1, 3, "--steps", 5, "--sheet") == 0
    assert run("photos/a.png", "--style-map", "mask.png") == 0
    names = sorted(path.name for path in (folder / "sketches").iterdir())
    assert names == ["a_regions.png", "a_sheet.png", "a_style1-50_3-50.png", "a_style2.png", "a_sweep.png"]
    widths = [Image.open(folder / "sketches" / f"a_{name}.png").width // 250 for name in ("sheet", "sweep")]
    assert widths == [4, 6]  # photo, depth and two styles; photo and five steps


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["photos", "--style", "7"], "there is no style 7; these weights have styles 1 to 3"),
        (["photos/a.png", "--style", "1:0.5,9:0.5"], "there is no style 9"),
        (["photos/a.png", "--style", "x"], "--style 'x'"),
        (["photos/a.png", "--style", "1:1", "1:2"], "twice"),
        (["photos/a.png", "--style", "1", "pencil"], "--style 'pencil' is neither"),
        (["--style", "photos/a.png"], "--style 'photos/a.png' is neither"),
        (["--style", "1", "nothere.jpg"], "'nothere.jpg' cannot be read"),
        (["photos/a.png", "--sweep", "1", "1"], "two different styles"),
        (["photos/a.png", "--steps", "3"], "--steps has no effect"),
        (["photos/a.png", "--style-map", "photos/a.png", "--style", "1"], "--style-map gives every region its style"),
        (["photos/a.png", "--style-map", "black.png"], "style numbers, 1 to 3"),
        *[
            (["photos/a.png", "--faces", word], f"faces is {told}; give")
            for word, told in (("both", "'both'"), ("0", 0))
        ],
        (["photos/a.png", "--size", "400"], "size is a portrait's and has no effect with frame 'auto'"),
        (
            ["photos/a.png", "--size", "9", "--frame", "portrait"],
            "size is 9; give a portrait's height in pixels, 64 to",
        ),
        (["nothere.jpg"], "nothere.jpg"),
        (["empty"], "holds no pictures"),
        (["text.jpg"], "text.jpg"),
        (["black.png"], "no face"),
        (["photos", "--depth", "photos/a.png"], "one map for 2 photos"),
        (["photos/a.png", "--depth", "no.png"], "no.png"),
        (["photos/a.png", "--device", "cuda:9"], "no device"),
        (["photos/a.png", "other/a.png"], "would both be written"),
        (["photos/a.png", "--weights", "text.jpg"], "text.jpg"),
        (["photos/a.png", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["photos/a.png", "--weights", "nosuch"], "no weights named 'nosuch'"),
        (["photos/a.png", "--weights", "empty"], "no whole checkpoint"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(folder, capsys, words, sentence):
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "text.jpg").write_text("no picture", encoding="utf-8")
    Image.new("RGB", (40, 40)).save(folder / "black.png")
    Image.new("RGB", (40, 40), "red").save(folder / "other" / "a.png")
    assert run_command(main, ["--weights", "tiny.safetensors", "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (folder / "sketches").exists()


@pytest.mark.parametrize("frame", ["portrait", "face"])
def test_portraits_have_a_size_of_their_own(folder, frame):
    assert run("photos/a.png", "--style", 1, "--frame", frame, "--size", 300) == 0
    assert Image.open(folder / "sketches" / "a_style1.png").size == (240, 300)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["hida: photos/a.png: 3 faces found, 2 drawn, the others as a part of their surroundings"]),
        (
            ["--faces", "largest"],
            ["hida: photos/a.png: 3 faces found, 1 drawn, the others as a part of their surroundings"],
        ),
        (["--frame", "whole"], []),
    ],
)
def test_the_number_of_faces_is_said_once_where_there_are_several(folder, capsys, monkeypatch, words, said):
    group = [Cone((60, 60, 190, 220), 0.9), Cone((10, 10, 40, 40), 0.9), Cone((0, 0, 15, 15), 0.9)]
    monkeypatch.setattr(Model, "group", lambda self, photo: group)
    assert run("photos/a.png", "--style", 1, 2, *words) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == said
    assert told.out.split() == ["sketches/a_style1.png", "sketches/a_style2.png"]
    assert run("photos", "--style", 1, "--frame", "whole") == 0


def test_one_bad_photo_does_not_stop_the_others(folder, capsys):
    (folder / "photos" / "c.jpg").write_bytes((folder / "photos" / "b.jpg").read_bytes()[:900])
    assert run("photos", "--style", 1) == 2
    error = capsys.readouterr().err
    assert "c.jpg" in error
    assert "1 of 3 photos could not be drawn" in error
    assert sorted(p.name for p in (folder / "sketches").iterdir()) == ["a_style1.png", "b_style1.png"]


def test_a_photo_is_never_overwritten(folder, capsys):
    Image.new("RGB", (40, 40), "red").save(folder / "photos" / "a_style1.png")
    assert run("photos/a.png", "photos/a_style1.png", "--style", 1, "--out", "photos") == 2
    assert "is one of the photos" in capsys.readouterr().err
    assert Image.open(folder / "photos" / "a_style1.png").size == (40, 40)
