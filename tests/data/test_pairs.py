"""A user's own folders: one style, many styles, a table, and what can be wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from hida.data.pairs import read_pairs
from hida.errors import HidaError


def put(folder, *names, size=(20, 24)):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def test_one_style_with_mixed_suffixes(tmp_path):
    put(tmp_path, "photo/a.jpg", "photo/b.PNG", "sketch/a.png", "sketch/b.png")
    source = read_pairs(tmp_path, test_fraction=0)
    assert source.faults == ()
    assert source.styles == ("style 1",)
    assert [(p.name, p.split, p.style, p.photo.name, p.sketch.name) for p in source.pairs] == [
        ("a", "train", 0, "a.jpg", "a.png"),
        ("b", "train", 0, "b.PNG", "b.png"),
    ]


def test_a_folder_for_each_style(tmp_path):
    for style in ("2", "10", "1", "m²", "02"):
        put(tmp_path, f"photo/{style}/a.jpg", f"sketch/{style}/a.jpg")
    source = read_pairs(tmp_path, test_fraction=0)
    assert source.styles == ("1", "02", "2", "10", "m²")
    assert {pair.name: pair.style for pair in source.pairs} == {"1_a": 0, "02_a": 1, "2_a": 2, "10_a": 3, "m²_a": 4}


def test_a_mixture_of_both_is_refused(tmp_path):
    put(tmp_path, "photo/ink/a.jpg", "sketch/ink/a.jpg", "photo/b.jpg", "sketch/b.jpg")
    with pytest.raises(HidaError, match="mixes folders of styles with loose pictures"):
        read_pairs(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_table_gives_style_and_split(tmp_path, kind):
    put(tmp_path, "photo/a.jpg", "photo/b.jpg", "photo/c.jpg", "sketch/a.jpg", "sketch/b.jpg", "sketch/c.jpg")
    rows = [("a", "ink", "test"), ("b.jpg", "chalk", "train")]
    table = tmp_path / f"table.{kind}"
    if kind == "csv":
        table.write_text("\ufeffname,style,split\n" + "\n".join(map(",".join, rows)) + "\n", encoding="utf-8")
    else:
        table.write_text(
            json.dumps([dict(zip(("name", "style", "split"), row, strict=True)) for row in rows]), encoding="utf-8"
        )
    source = read_pairs(tmp_path, table=table)
    assert source.faults == ()
    assert source.styles == ("chalk", "ink")
    assert [(p.name, p.split, p.style) for p in source.pairs] == [("a", "test", 1), ("b", "train", 0)]


def test_faults_of_a_table(tmp_path):
    put(tmp_path, "photo/a.jpg", "sketch/a.jpg")
    table = tmp_path / "t.json"
    table.write_text(
        json.dumps(
            [
                {"name": "a", "style": 0, "split": "train"},
                {"name": "a", "style": 0, "split": "train"},
                {"name": "a", "style": 0, "split": "valid"},
                {"name": "a", "split": "train"},
                {"style": 1, "split": "test"},
                7,
                {"name": "ghost", "style": 0, "split": "test"},
            ]
        ),
        encoding="utf-8",
    )
    found = [(fault.kind, fault.name) for fault in read_pairs(tmp_path, table=table).faults]
    assert found == [
        ("entry", "a"),
        ("entry", "a"),
        ("entry", "line 5"),
        ("entry", "line 6"),
        ("duplicate", "a"),
        ("missing photo and sketch", "ghost"),
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_table_without_lines(tmp_path, text):
    put(tmp_path, "photo/a.jpg", "sketch/a.jpg")
    (tmp_path / "t.json").write_text(text, encoding="utf-8")
    with pytest.raises(HidaError, match=r"t\.json"):
        read_pairs(tmp_path, table=tmp_path / "t.json")
    with pytest.raises(HidaError, match=r"gone\.csv"):
        read_pairs(tmp_path, table=tmp_path / "gone.csv")


def test_partners_sizes_and_damage(tmp_path):
    put(tmp_path, "photo/lonely.jpg", "photo/wide.jpg", "photo/high.jpg", "photo/torn.png", "photo/good.jpg")
    put(tmp_path, "sketch/high.jpg", size=(20, 25))
    put(tmp_path, "sketch/other.jpg", "sketch/torn.png", "sketch/good.jpg")
    put(tmp_path, "sketch/wide.jpg", size=(21, 24))
    torn = tmp_path / "photo/torn.png"
    torn.write_bytes(torn.read_bytes()[:-30])
    source = read_pairs(tmp_path)
    assert {(fault.kind, fault.name) for fault in source.faults} == {
        ("missing sketch", "lonely"),
        ("missing photo", "other"),
        ("size", "wide"),
        ("size", "high"),
        ("unreadable", "photo/torn.png"),
    }
    assert [pair.name for pair in source.pairs] == ["good"]


def test_a_pair_of_which_there_are_two_pictures_is_one_fault_and_left_out(tmp_path):
    put(tmp_path, "photo/a.jpg", "photo/a.JFIF", "photo/b.jpg", "sketch/a.png", "sketch/b.tif")
    source = read_pairs(tmp_path)
    assert [(fault.kind, fault.name) for fault in source.faults] == [("ambiguous", "photo/a")]
    assert [pair.name for pair in source.pairs] == ["b"]
    for form in ("Zo\u00eb", "Zoe\u0308"):
        put(tmp_path / "styled", f"photo/{form}/a.jpg", f"photo/{form}/{form}.jpg", f"sketch/{form}/{form}.jpg")
    put(tmp_path / "styled", "sketch/Zo\u00eb/a.jpg")
    source = read_pairs(tmp_path / "styled")
    assert {(fault.kind, fault.name) for fault in source.faults} == {
        ("ambiguous", "Zo\u00eb/a"),
        ("ambiguous", "Zo\u00eb/Zo\u00eb"),
    }
    assert source.pairs == ()


def test_names_that_would_collide_as_files(tmp_path):
    put(
        tmp_path,
        "photo/a b.jpg",
        "photo/a-b.jpg",
        "photo/a?b.jpg",
        "photo/a_B.jpg",
        "sketch/a b.jpg",
        "sketch/a-b.jpg",
        "sketch/a?b.jpg",
        "sketch/a_B.jpg",
    )
    source = read_pairs(tmp_path)
    assert [fault.kind for fault in source.faults] == ["ambiguous"] * 2
    assert sorted(pair.name for pair in source.pairs) == ["a-b", "a_b"]


def test_test_fraction_is_drawn_by_seed_for_each_style(tmp_path):
    for style in ("ink", "chalk"):
        put(tmp_path, *(f"{kind}/{style}/{k}.jpg" for kind in ("photo", "sketch") for k in range(20)))
    draw = {}
    for seed in (0, 0, 1):
        source = read_pairs(tmp_path, test_fraction=0.25, seed=seed)
        assert source.counts() == {"train": [15, 15], "test": [5, 5]}
        assert read_pairs(tmp_path, test_fraction=0.28, seed=seed).counts()["test"] == [6, 6]  # of 5.6
        chosen = {pair.name for pair in source.pairs if pair.split == "test"}
        assert draw.setdefault(seed, chosen) == chosen
    assert draw[0] != draw[1]
    with pytest.raises(HidaError, match="fraction"):
        read_pairs(tmp_path, test_fraction=1.0)


def test_empty_or_other_folders(tmp_path):
    with pytest.raises(HidaError, match="has no folder 'photo'"):
        read_pairs(tmp_path)
    put(tmp_path, "photo/notes.jpg")
    with pytest.raises(HidaError, match="has no folder 'sketch'"):
        read_pairs(tmp_path)
    (tmp_path / "sketch").mkdir()
    (tmp_path / "photo/notes.jpg").unlink()
    with pytest.raises(HidaError, match="holds no pairs"):
        read_pairs(tmp_path)


def test_pairs_are_found_whatever_form_of_unicode_and_suffix_their_names_have(tmp_path):
    put(tmp_path, "photo/Zoe\u0308/e\u0301.jpg", "photo/Zoe\u0308/b.jfif", "photo/Zoe\u0308/c.jpe")
    put(tmp_path, "sketch/Zo\u00eb/\u00e9.png", "sketch/Zo\u00eb/b.jp2", "sketch/Zo\u00eb/c.JPG")
    source = read_pairs(tmp_path, test_fraction=0)
    assert source.faults == source.notes == ()
    assert [(pair.name, pair.style) for pair in source.pairs] == [
        ("Zo\u00eb_b", 0),
        ("Zo\u00eb_c", 0),
        ("Zo\u00eb_\u00e9", 0),
    ]
    (tmp_path / "t.csv").write_text("name,style\nZoe\u0308/e\u0301,ink\nZo\u00eb/b.jpg,ink\n", encoding="utf-8")
    assert len(read_pairs(tmp_path, tmp_path / "t.csv", test_fraction=0).pairs) == 2


def test_nothing_is_left_out_in_silence(tmp_path):
    put(tmp_path, "photo/ink/a.jpg", "sketch/ink/a.jpg", "photo/ink/more/deep/b.jpg", "photo/ink/more/c.jpg")
    put(tmp_path, "photo/ink/.hidden/d.jpg")
    for name in ("raw.cr2", "raw.txt"):
        (tmp_path / "photo/ink" / name).write_bytes(b"x")
    source = read_pairs(tmp_path)
    assert [(fault.kind, fault.name) for fault in source.faults] == [("too deep", "photo/ink/more")]
    assert "holds 2 pictures" in source.faults[0].message
    assert source.notes == ("2 files in photo without the suffix of a picture: left out (raw.cr2, raw.txt).",)


def test_long_names_of_styles_and_pictures_make_a_name_that_fits(tmp_path):
    long = "s" * 200, "p" * 240
    put(tmp_path, f"photo/{long[0]}/{long[1]}1.jpg", f"sketch/{long[0]}/{long[1]}1.jpg")
    put(tmp_path, f"photo/{long[0]}/{long[1]}2.jpg", f"sketch/{long[0]}/{long[1]}2.jpg")
    names = [pair.name for pair in read_pairs(tmp_path).pairs]
    assert len(set(names)) == 2
    for name in names:
        (tmp_path / f"{name}.webp").touch()


@pytest.mark.parametrize("style", ["\x1b[31mred", "two\nlines", "\u202eturned"])
def test_names_of_files_print_in_faults_and_a_style_that_does_not_is_refused(tmp_path, style):
    put(tmp_path, "photo/a.png", "sketch/a.png", f"photo/{style}.png")
    (fault,) = read_pairs(tmp_path).faults
    assert fault.kind == "missing sketch"
    assert str(fault).isprintable()
    put(tmp_path / "styled", f"photo/{style}/a.png", f"sketch/{style}/a.png")
    with pytest.raises(HidaError, match=r"style .* has characters that do not print") as caught:
        read_pairs(tmp_path / "styled")
    assert str(caught.value).isprintable()
