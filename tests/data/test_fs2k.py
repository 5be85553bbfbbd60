"""A tiny tree laid out as FS2K: sound it reads, and each way of breaking it gives one named fault."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from hida.data.fs2k import EXPECTED, read_fs2k
from hida.errors import HidaError

COUNTS = {"train": (2, 2, 1), "test": (1, 0, 1)}
# name -> (split, style, size)
PAIRS = {
    "photo1/image0001": ("train", 0, (25, 25)),
    "photo1/image0002": ("train", 0, (25, 25)),
    "photo1/image0003": ("train", 1, (25, 25)),
    "photo2/image0001": ("train", 1, (22, 31)),
    "photo3/image0001": ("train", 2, (47, 34)),
    "photo3/image0002": ("test", 0, (47, 34)),
    "photo1/image0004": ("test", 2, (25, 25)),
}


def entry(name, style):
    return {
        "image_name": name,
        "skin_color": [163, 139],
        "lip_color": [156.9, 82.5, 79.0],
        "eye_color": [118.6, 71.2, 69.5],
        "hair": 0,
        "hair_color": 2,
        "gender": 0,
        "earring": 1,
        "smile": 1,
        "frontal_face": 1,
        "style": style,
    }


def sketch_of(name):
    return name.replace("photo", "sketch").replace("image", "sketch")


@pytest.fixture
def tree(tmp_path):
    generator = np.random.default_rng(0)
    for name, (_, _, (width, height)) in PAIRS.items():
        photo, sketch = tmp_path / "photo" / f"{name}.jpg", tmp_path / "sketch" / f"{sketch_of(name)}.jpg"
        if name == "photo3/image0001":
            photo = photo.with_suffix(".JPG")
        if name.startswith("photo2"):
            sketch = sketch.with_suffix(".png")
        for path, channels in ((photo, 3), (sketch, 4 if sketch.suffix == ".png" else 3)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (height, width, channels), np.uint8)).save(path)
    for split in COUNTS:
        entries = [entry(name, style) for name, (own, style, _) in PAIRS.items() if own == split]
        (tmp_path / f"anno_{split}.json").write_text(json.dumps(entries), encoding="utf-8")
    return tmp_path


def edit(tree, split, change):
    path = tree / f"anno_{split}.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    change(entries)
    path.write_text(json.dumps(entries), encoding="utf-8")


def faults(tree, expected=COUNTS):
    return [(fault.kind, fault.name) for fault in read_fs2k(tree, expected).faults]


def test_a_sound_tree(tree):
    source = read_fs2k(tree, COUNTS)
    assert source.faults == ()
    assert source.counts() == {"train": [2, 2, 1], "test": [1, 0, 1]}
    assert {pair.name: (pair.split, pair.style) for pair in source.pairs} == {
        name.replace("/", "_"): values[:2] for name, values in PAIRS.items()
    }
    for pair in source.pairs:
        assert pair.sketch.stem == pair.photo.stem.replace("image", "sketch")
        assert pair.attributes["hair_color"] == 2
        assert "style" not in pair.attributes
    assert "1 sketch is transparent" in source.notes[0]


def test_skin_patch_is_taken_for_skin_color(tree):
    edit(tree, "train", lambda e: e[0].update(skin_patch=e[0].pop("skin_color")))
    assert faults(tree) == []


def test_order_and_time_of_files_do_not_matter(tree):
    for path in tree.rglob("*.jpg"):
        os.utime(path, (1, 1))
    edit(tree, "train", lambda e: e.reverse())
    assert faults(tree) == []


def test_three_faults_are_named_and_no_more(tree):
    (tree / "sketch/sketch1/sketch0002.jpg").unlink()
    photo = tree / "photo/photo1/image0003.jpg"
    photo.write_bytes(photo.read_bytes()[:-200])
    edit(tree, "train", lambda e: e[0].update(style=7))
    source = read_fs2k(tree, COUNTS)
    assert {(fault.kind, fault.name) for fault in source.faults} == {
        ("missing sketch", "sketch1/sketch0002"),
        ("unreadable", "photo1/image0003.jpg"),
        ("entry", "photo1/image0001"),
    }
    assert "style is 7" in next(str(fault) for fault in source.faults if fault.kind == "entry")
    assert [pair.name for pair in source.pairs if pair.split == "train"] == ["photo2_image0001", "photo3_image0001"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda e: e[0].pop("hair"), ("entry", "photo1/image0001")),
        (lambda e: e[0].pop("style"), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(style="1"), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(style=True), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(style=-1), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(hair_color=5), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(lip_color="red"), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(lip_color=[True]), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(skin_color=[1.0, 1e300]), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(eye_color=[-(10**40)]), ("entry", "photo1/image0001")),
        (lambda e: e[0].update(image_name="photo1/image9999"), ("entry", "photo1/image9999")),
        (lambda e: e[0].update(image_name="elsewhere"), ("entry", "elsewhere")),
        (lambda e: e[0].update(image_name="../../photo1/image0001"), ("entry", "../../photo1/image0001")),
        (lambda e: e[0].update(image_name="photo1/image" + "1" * 300), ("entry", "anno_train.json entry 1")),
        (lambda e: e[0].update(image_name="photo1/image1\n"), ("entry", "anno_train.json entry 1")),
        (lambda e: e[0].update(image_name=5), ("entry", "anno_train.json entry 1")),
        (lambda e: e[0].pop("image_name"), ("entry", "anno_train.json entry 1")),
        (lambda e: e.__setitem__(0, "photo1/image0001"), ("entry", "anno_train.json entry 1")),
        (lambda e: e.__setitem__(0, e[1]), ("duplicate", "photo1/image0002")),
        (lambda e: e[0].update(image_name="photo1/image0004"), ("overlap", "photo1/image0004")),
    ],
)
def test_a_wrong_entry_is_one_fault(tree, change, fault):
    edit(tree, "train", change)
    assert faults(tree) == [fault]


def test_several_wrong_fields_are_one_fault(tree):
    edit(tree, "train", lambda e: (e[0].update(style=9, hair=None), e[0].pop("smile")))
    (fault,) = read_fs2k(tree, COUNTS).faults
    for word in ("style is 9", "hair is None", "lacks smile"):
        assert word in fault.message


@pytest.mark.parametrize(
    "text", ["[{", "", "{}", "null", "\x00", "[" * 100_000, '[{"hair": NaN}]', '[{"a": 1, "a": 2}]']
)
def test_an_annotation_that_is_no_list(tree, text):
    (tree / "anno_test.json").write_text(text, encoding="utf-8")
    assert faults(tree) == [("annotation", "anno_test.json")]


def test_missing_photo_and_wrong_suffix(tree):
    (tree / "photo/photo1/image0001.jpg").rename(tree / "photo/photo1/image0001.txt")
    (fault,) = read_fs2k(tree, COUNTS).faults
    assert (fault.kind, fault.name) == ("missing photo", "photo1/image0001")
    assert "image0001.txt" in fault.message


def test_two_files_for_one_name(tree):
    shutil.copy(tree / "photo/photo1/image0001.jpg", tree / "photo/photo1/image0001.png")
    assert faults(tree) == [("ambiguous", "photo1/image0001")]
    assert len(read_fs2k(tree, COUNTS).pairs) == len(PAIRS) - 1  # the pair is left out


def test_unequal_sizes(tree):
    Image.new("RGB", (26, 25)).save(tree / "sketch/sketch1/sketch0001.jpg")
    (fault,) = read_fs2k(tree, COUNTS).faults
    assert (fault.kind, fault.name) == ("size", "photo1_image0001")
    assert "25×25" in fault.message
    assert "26×25" in fault.message


def test_wrong_counts_and_unlisted_pairs(tree):
    edit(tree, "train", lambda e: e.pop(0))
    found = read_fs2k(tree, COUNTS).faults
    assert [(fault.kind, fault.name) for fault in found] == [
        ("count", "anno_train.json"),
        ("unlisted", "photo1/image0001"),
    ]
    assert "4 pairs (1/2/1 by style) instead of 5 (2/2/1)" in found[0].message


def test_swapped_styles_are_a_wrong_count(tree):
    edit(tree, "train", lambda e: e[0].update(style=1))
    assert faults(tree) == [("count", "anno_train.json")]


def test_an_unlisted_file(tree):
    shutil.copy(tree / "sketch/sketch1/sketch0001.jpg", tree / "sketch/sketch1/sketch0777.jpg")
    (tree / "photo/photo1/.DS_Store").write_bytes(b"x")
    (tree / "photo/photo1/Thumbs.db").write_bytes(b"x")
    assert faults(tree) == [("unlisted", "photo1/image0777")]


def test_the_counts_of_the_real_set_are_the_default(tree):
    source = read_fs2k(tree)
    assert "5 pairs (2/2/1 by style) instead of 1,058 (357/350/351)" in source.faults[0].message
    assert sum(EXPECTED["test"]) == 1046


@pytest.mark.parametrize("lost", ["anno_train.json", "photo", "sketch/sketch2", "photo/photo3"])
def test_another_layout_is_one_error(tree, lost):
    path = tree / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(HidaError, match=rf"has no {lost} \(expected anno_train.json"):
        read_fs2k(tree, COUNTS)


def test_the_folder_above_is_recognised(tree, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    (above / "FS2K").symlink_to(tree, target_is_directory=True)
    with pytest.raises(HidaError, match=r"did you mean '.*FS2K'"):
        read_fs2k(above, COUNTS)
    with pytest.raises(HidaError, match="is not a folder"):
        read_fs2k(above / "nothing", COUNTS)


@pytest.mark.fs2k
@pytest.mark.slow
def test_the_real_set_is_sound():
    if "HIDA_FS2K" not in os.environ:
        pytest.skip("HIDA_FS2K does not name the folder of FS2K")
    source = read_fs2k(os.environ["HIDA_FS2K"])
    assert source.faults == ()
    assert source.counts() == {"train": [357, 350, 351], "test": [619, 381, 46]}
    assert source.notes == ("8 sketches are transparent and laid over white.",)
    assert len({pair.name for pair in source.pairs}) == 2104
