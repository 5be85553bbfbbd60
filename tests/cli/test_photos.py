"""What the commands for photos share: which photos, names of results, and a loop that one bad photo does not end."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli.test_sketch import folder  # noqa: F401
from PIL import Image

from hida.cli import depth, inspect, sketch
from hida.cli.photos import for_each, list_photos
from hida.cli.run import run_command
from hida.cli.targets import name_targets
from hida.errors import HidaError
from hida.images.writing import MARK, encode

WEIGHTS = ["--weights", "tiny.safetensors", "--device", "cpu"]
COMMANDS = {
    "sketch": (sketch.main, ["--style", "1", "--depth", "none", *WEIGHTS], ["_style1"]),
    "inspect": (inspect.main, ["--depth", "none", *WEIGHTS], ["_features", "_modules"]),
    "depth": (depth.main, ["--method", "none"], [""]),
}


@pytest.fixture
def plain_inspection(monkeypatch):
    """Inspection without computing and without matplotlib, which have tests of their own."""

    class Figure:
        def savefig(self, path, dpi, metadata):
            Path(path).write_bytes(encode(Image.new("L", (1, 1)), marked=metadata == {"Software": MARK}))

    monkeypatch.setattr("hida.cli.figures.require_pyplot", lambda: SimpleNamespace(close=lambda _: None))
    for name in ("cli.figures.features_figure", "cli.figures.modules_figure"):
        monkeypatch.setattr(f"hida.{name}", lambda *_: Figure())
    for name in ("features", "ablations"):
        monkeypatch.setattr(f"hida.models.inspection.{name}", lambda *_: None)


@pytest.mark.parametrize("name", COMMANDS)
def test_damage_and_warnings_are_a_line_each_with_the_photo_and_the_others_are_done(
    folder,  # noqa: F811
    plain_inspection,
    capsys,
    name,
):
    main, options, suffixes = COMMANDS[name]

    def run(*words):
        status = run_command(main, [*words, *options, "--out", "out"])
        return status, [x for x in capsys.readouterr().err.replace("\r", "\n").splitlines() if x.startswith("hida: ")]

    source = Image.open(folder / "photos/a.png").convert("RGB")
    broken = []
    for k, kind in enumerate(("jpg", "png", "webp", "tif", "bmp", "gif", "ppm")):
        path = folder / "photos" / f"{'a0' if k % 2 else 'c'}{kind}.{kind}"
        source.save(path)
        os.truncate(path, path.stat().st_size // 2)
        broken.append(path.name)
    frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue")]
    for film in ("d.gif", "e.gif"):
        frames[0].save(folder / "photos" / film, save_all=True, append_images=frames[1:])
    status, lines = run("photos")
    assert status == 2
    for photo in broken:
        assert sum(f"photos/{photo}" in line for line in lines) == 1
    for film in ("d.gif", "e.gif"):
        assert sum("holds 2 frames" in line and f"photos/{film}" in line for line in lines) == 1
    assert f"{len(broken)} of {len(broken) + 4} photos" in lines[-1]
    assert all("photos/" in line for line in lines[:-1])
    expected = {f"{stem}{suffix}.png" for stem in "abde" for suffix in suffixes}
    assert set(os.listdir("out")) == expected
    status, lines = run("photos/e.gif")
    assert status == 0
    assert sum("photos/" in line for line in lines) == 1  # the one of the frames, which says it anyway


@pytest.mark.parametrize("name", COMMANDS)
def test_what_was_made_in_the_folder_of_the_photos_is_no_photo_the_next_time(
    folder,  # noqa: F811
    plain_inspection,
    capsys,
    name,
):
    main, options, suffixes = COMMANDS[name]
    os.rename("photos/a.png", "photos/a.webp")  # its depth map is a.png
    for again in range(3):
        given = ["photos"] if again < 2 else [f"photos/{name}" for name in os.listdir("photos")]
        assert run_command(main, [*given, *options, "--out", "photos"]) == 0
        made = {f"{stem}{suffix}.png" for stem in "ab" for suffix in suffixes}
        assert set(os.listdir("photos")) == {"a.webp", "b.jpg"} | made
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
        where = " in photos" if again == 1 else ""
        some = f"note: {len(made)} files{where} made by hida: left out ("
        assert [line.startswith(some) for line in said] == [True] * bool(again)
    assert run_command(main, [f"photos/{min(made)}", *options, "--out", "out"]) == 0  # alone it may be meant


@pytest.mark.parametrize("stem", ["x" * 251, "é" * 125, "é" * 122 + "yy", os.fsdecode(b"\xe9" * 250), "画" * 83])
def test_results_of_photos_with_long_names_have_names_that_fit(tmp_path, stem):
    photos = [tmp_path / f"{stem}.png", tmp_path / f"{stem[:-1]}z.png"]
    targets = name_targets(photos, tmp_path, ["_style1", "_style2-60_3-40"])
    found = [path for paths in targets.values() for path in paths]
    for path in found:
        path.touch()
        assert path.name.startswith(stem[:70])
    assert len(set(found)) == len(os.listdir(tmp_path)) == 4
    assert [path.name.rpartition("_style")[2] for path in found] == ["1.png", "2-60_3-40.png"] * 2


def test_a_photo_with_the_longest_name_is_drawn(folder):  # noqa: F811
    shutil.copy(folder / "photos/a.png", folder / ("x" * 251 + ".png"))
    main, options, _ = COMMANDS["sketch"]
    assert run_command(main, ["x" * 251 + ".png", *options, "--out", "out"]) == 0
    assert len(os.listdir("out")) == 1


def test_names_that_fit_are_kept(tmp_path):
    (targets,) = name_targets([tmp_path / ("n" * 240 + ".jpg")], tmp_path, ["_style1"]).values()
    assert targets == [tmp_path / ("n" * 240 + "_style1.png")]


def test_a_photo_that_does_not_fit_in_memory_is_one_of_the_bad(tmp_path, capsys):
    photos = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    done = []

    def work(photo):
        warnings.warn("odd", stacklevel=1)
        if photo.name == "b.png":
            raise MemoryError
        done.append(photo)

    assert for_each({photo: [] for photo in photos}, work) == 1
    assert done == [photos[0], photos[2]]
    error = capsys.readouterr().err
    assert f"hida: {photos[1]}: it does not fit in memory; scale it down." in error
    assert error.count("odd") == 2
    with pytest.raises(HidaError, match=r"b\.png: it does not fit in memory"):
        for_each({photos[1]: []}, work)


def test_what_a_folder_has_besides_its_photos_is_said(tmp_path, capsys):
    for name in ("a.JPEG", "b.psd", "c.txt", ".d.jpg", "more/e.JFIF", "none/f.txt", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_photos([tmp_path]) == [tmp_path / "a.JPEG"]
    assert capsys.readouterr().err.splitlines() == [
        f"note: 2 files in {tmp_path} without the suffix of a picture: left out (b.psd, c.txt).",
        f"note: 1 folder in {tmp_path} holds pictures too: left out; to draw them, give the name of the folder.",
    ]
    (tmp_path / "a.JPEG").unlink()
    with pytest.raises(HidaError, match="holds no pictures itself, 1 folder in it does"):
        list_photos([tmp_path])
