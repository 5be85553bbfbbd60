"""Where drawings go: folders, files and standard output, told apart before anything is drawn."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from hida.cli.photos import STDIN, list_photos
from hida.cli.targets import STDOUT, Place, existing, name_targets, read_place
from hida.errors import HidaError


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dotted.png").mkdir()
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("out", "kind", "place"),
    [
        ("sketches", None, ("sketches", True, "png")),
        ("a/b", "svg", ("a/b", True, "svg")),
        ("dotted.png", "webp", ("dotted.png", True, "webp")),
        ("new.v2/", None, ("new.v2", True, "png")),
        (".", "jpeg", (".", True, "jpeg")),
        (".hidden", None, (".hidden", True, "png")),
        ("a.png", None, ("a.png", False, "png")),
        ("new/a.JPEG", "jpeg", ("new/a.JPEG", False, "jpeg")),
        ("a.b.webp", None, ("a.b.webp", False, "webp")),
        ("-", None, ("-", False, "png")),
        ("-", "jpeg", ("-", False, "jpeg")),
    ],
)
def test_a_suffix_means_a_file_and_a_folder_that_exists_is_one(out, kind, place):
    pytest.importorskip("contourpy")
    found = read_place(out, kind)
    assert (str(found.path), found.is_folder, found.format) == place
    assert found.is_stdout == (out == "-")
    assert sorted(os.listdir(".")) == ["dotted.png", "file"]


@pytest.mark.parametrize(
    ("out", "kind", "sentence"),
    [
        ("x.bmp", None, "--out x.bmp ends in '.bmp', which no picture is written as"),
        ("v1.2", None, "or a folder with a slash at its end"),
        ("a.png", "svg", "--out a.png is a file, whose suffix says its format; leave out --format svg"),
        ("file", None, "there is a file where a folder was expected"),
        ("file/a.png", None, "there is a file where a folder was expected"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(out, kind, sentence):
    with pytest.raises(HidaError, match=sentence):
        read_place(out, kind)


def test_svg_asks_for_its_package_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "contourpy", None)
    for out, kind in (("a.svg", None), ("folder", "svg"), ("-", "svg")):
        with pytest.raises(HidaError, match="pip install contourpy"):
            read_place(out, kind)


def test_a_terminal_and_a_closed_stream_are_refused(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    for name, act in (("stdout", lambda: read_place("-")), ("stdin", lambda: list_photos([STDIN]))):
        monkeypatch.setattr(sys, name, Terminal(io.BytesIO()))
        with pytest.raises(HidaError, match="terminal"):
            act()
        monkeypatch.setattr(sys, name, None)
        with pytest.raises(HidaError, match="closed"):
            act()


@pytest.mark.parametrize(
    ("out", "photos", "suffixes", "sentence"),
    [
        ("a.png", ["x.jpg"], ["_style1", "_style2"], "one file for 2 drawings of one photo; give one style"),
        ("a.png", ["x.jpg", "y.jpg"], ["_style1"], "one file for 2 drawings of 2 photos; give one photo"),
        ("-", ["x.jpg", "y.jpg"], ["_style1", "_sheet"], "--out - is one file for 4 drawings of 2 photos; give one"),
        ("x.jpg", ["x.jpg"], ["_style1"], "x.jpg is one of the photos or maps"),
        ("map.png", ["x.jpg"], ["_style1"], "map.png is one of the photos or maps"),
        ("a.svg", ["x.jpg"], ["_sweep"], "with the photo in it cannot be an SVG"),
    ],
)
def test_more_than_one_drawing_or_a_file_that_is_read_is_refused(out, photos, suffixes, sentence):
    pytest.importorskip("contourpy")
    with pytest.raises(HidaError, match=sentence):
        read_place(out).targets([*map(Path, photos)], suffixes, [Path("map.png")])


def test_one_drawing_has_the_name_that_was_given():
    assert read_place("a/me.webp").targets([Path("x.jpg"), Path("x.jpg")], ["_style2"]) == {
        Path("x.jpg"): [Path("a/me.webp")]
    }
    assert read_place("-").targets([STDIN], ["_style2"]) == {STDIN: [STDOUT]}


def test_the_format_of_a_folder_is_that_of_drawings_and_of_sheets_where_it_has_colours():
    pytest.importorskip("contourpy")
    for kind, names in (
        ("jpeg", ["x_style1.jpg", "x_sheet.jpg"]),
        ("webp", ["x_style1.webp", "x_sheet.webp"]),
        ("svg", ["x_style1.svg", "x_sheet.png"]),
    ):
        (targets,) = read_place("out", kind).targets([Path("x.png")], ["_style1", "_sheet"]).values()
        assert [path.name for path in targets] == names


def test_photos_of_one_stem_keep_their_suffix():
    photos = [Path(name) for name in ("p/c.jpg", "p/c.png", "p/d.jpg", "q/C.webp", "-", "q/stdin.jpg")]
    found = [files[0].name for files in name_targets(photos, Path("out"), ["_style1"]).values()]
    assert found == [f"{name}_style1.png" for name in ("c.jpg", "c.png", "d", "C.webp", "stdin", "stdin.jpg")]


def test_photos_of_one_name_begin_with_their_folders(inside):
    photos = [Path(name) for name in ("p/c.jpg", "q/C.png", "q/c.jpg", "r/d.jpg", "r/s/e.jpg", "t/s/e.jpg", "e.jpg")]
    found = [files[0].name for files in name_targets(photos, Path("out"), ["_style1"]).values()]
    assert found == [
        f"{name}_style1.png"
        for name in ("p-c.jpg", "q-C.png", "q-c.jpg", "d", "r-s-e", "t-s-e", f"{inside.parent.name}-{inside.name}-e")
    ]
    with pytest.raises(HidaError, match=r"p-c\.png and p/c\.jpg would both be written to out/p-c_style1\.png"):
        name_targets([Path(name) for name in ("p/c.jpg", "q/c.jpg", "p-c.png")][::-1], Path("out"), ["_style1"])


def test_what_leads_to_standard_output_is_it_and_a_device_is_no_folder(inside, monkeypatch):
    for name in ("/dev/stdout", "/dev/fd/1"):
        assert read_place(name).is_stdout
    assert read_place("/dev/null", "webp") == Place(Path("/dev/null"), False, "webp")
    os.mkfifo("pipe")
    assert not read_place("pipe").is_folder
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"photo"), encoding="utf-8"))
    assert list_photos([Path("/dev/stdin")]) == [STDIN]


def test_a_photo_with_a_missing_file_is_not_there(inside):
    targets = name_targets([Path("a.jpg"), Path("b.jpg")], inside, ["_style1", "_style2"])
    for name in ("a_style1", "a_style2", "b_style1"):
        (inside / f"{name}.png").touch()
    assert existing(targets) == {Path("a.jpg"): [inside / "a_style1.png", inside / "a_style2.png"]}
