"""The prepared folder: what is saved is what is loaded, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hida.data.prepared import PreparedPair, PreparedSet
from hida.errors import HidaError
from hida.images.alignment import IDENTITY, TEMPLATE
from hida.images.io import write_png


@pytest.fixture
def prepared(tmp_path):
    folder = tmp_path / "set"
    generator = np.random.default_rng(0)
    pairs = []
    for k, split in enumerate(("train", "test", "train")):
        names = {kind: f"{kind}/p{k}.png" for kind in ("photo", "sketch", "depth")}
        write_png(folder / names["photo"], generator.integers(0, 256, (250, 250, 3), np.uint8))
        for kind in ("sketch", "depth"):
            write_png(folder / names[kind], generator.integers(0, 256, (250, 250), np.uint8))
        matrix, points = tuple(map(tuple, IDENTITY.tolist())), tuple(map(tuple, TEMPLATE.tolist()))
        pairs.append(PreparedPair(f"p{k}", split, k % 2, **names, matrix=matrix, points=points, faces=1))
    template = tuple(map(tuple, TEMPLATE.tolist()))
    fill = {"photo": "replicate", "sketch": "white"}
    made = PreparedSet(folder, "fs2k", 250, template, fill, "tddfa", ("ink", "chalk"), tuple(pairs))
    made.save()
    return made


def test_what_is_saved_is_loaded(prepared):
    assert PreparedSet.load(prepared.folder) == prepared
    assert [pair.name for pair in prepared.split("train")] == ["p0", "p2"]
    with pytest.raises(HidaError, match="split 'valid'"):
        prepared.split("valid")


def test_pictures_are_read_exactly(prepared):
    pair = prepared.pairs[1]
    photo, sketch, depth = prepared.read(pair)
    assert photo.shape == (250, 250, 3)
    for array, path in zip((photo, sketch, depth), prepared.files(pair), strict=True):
        np.testing.assert_array_equal(array, np.asarray(Image.open(path)))
    write_png(prepared.files(pair)[1], np.zeros((10, 10), np.uint8))
    with pytest.raises(HidaError, match="10×10, not 250×250"):
        prepared.read(pair)


def test_a_folder_of_photos_is_to_be_prepared_into_another(tmp_path):
    (tmp_path / "raw/photo").mkdir(parents=True)
    with pytest.raises(HidaError, match=r"run 'hida prepare pairs \S*/raw OUT' and give OUT"):
        PreparedSet.load(tmp_path / "raw")
    (tmp_path / "raw/anno_train.json").touch()
    with pytest.raises(HidaError, match=r"run 'hida prepare fs2k \S*/raw OUT' and give OUT"):
        PreparedSet.load(tmp_path / "raw")
    with pytest.raises(HidaError, match=r"run 'hida prepare fs2k SRC \S*/absent'"):
        PreparedSet.load(tmp_path / "absent")


def test_the_folder_can_be_moved(prepared, tmp_path):
    shutil.move(prepared.folder, tmp_path / "elsewhere")
    moved = PreparedSet.load(tmp_path / "elsewhere")
    assert moved.pairs == prepared.pairs
    assert all(path.is_file() for pair in moved.pairs for path in moved.files(pair))
    assert str(tmp_path) not in (tmp_path / "elsewhere/index.json").read_text(encoding="utf-8")


def test_other_folders_are_refused_with_what_to_do(prepared, tmp_path):
    with pytest.raises(HidaError, match=r"not a prepared data set .*run 'hida prepare "):
        PreparedSet.load(tmp_path)
    with pytest.raises(HidaError, match="not a prepared data set"):
        PreparedSet.load(tmp_path / "nothing")
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(HidaError, match="did not finish"):
        PreparedSet.load(tmp_path)
    (prepared.folder / "depth/p1.png").unlink()
    with pytest.raises(HidaError, match=r"incomplete, .*p1\.png"):
        PreparedSet.load(prepared.folder)


def first(key, value):
    return lambda raw: raw["pairs"][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("pairs"), "it has no field 'pairs'"),
        (lambda raw: raw.update(version=99), "format 99"),
        (lambda raw: raw.update(version=True), "format true"),
        (lambda raw: raw.update(pairs=3), "pairs is 3, not a list"),
        (lambda raw: raw.update(styles=[]), "styles is a list of 0, not of 1"),
        (lambda raw: raw.update(styles="ab"), "styles is 'ab', not a list"),
        (lambda raw: raw.update(size=250.0), "size is 250.0"),
        (lambda raw: raw.update(size=10**9), "size is 1000000000"),
        (lambda raw: raw["template"].pop(), "template is a list of 2, not of 3"),
        (lambda raw: raw["fill"].update(photo=None), "photo.* is null, not a text"),
        (lambda raw: raw["pairs"].append(raw["pairs"][0]), r"pairs\[3\]\.name is 'p0', which another pair has"),
        (lambda raw: raw["pairs"][1].update(name="P0"), r"pairs\[1\]\.name is 'P0', which another pair has"),
        (lambda raw: raw["pairs"][0].pop("name"), r"pairs\[0\] has no field 'name'"),
        (first("split", "valid"), r"pairs\[0\]\.split is 'valid', not one of train, test"),
        (first("style", 2), r"pairs\[0\]\.style is 2, not a whole number 0 to 1"),
        (first("style", 0.5), r"pairs\[0\]\.style is 0\.5"),
        (first("style", True), r"pairs\[0\]\.style is true"),
        (first("faces", -1), r"pairs\[0\]\.faces is -1"),
        (first("photo", "../../secret.png"), r"pairs\[0\]\.photo: .*outside the folder"),
        (first("sketch", "/secret.png"), "outside the folder"),
        (first("depth", "depth\\..\\p.png"), "outside the folder"),
        (first("photo", None), "null is no path"),
        (first("photo", "photo/" + "x" * 300), "longer than"),
        (first("name", "../../../ESC0"), r"pairs\[0\]\.name: .*separator"),
        (first("name", "/tmp/ESC0"), "separator"),
        (first("name", ".."), "begins with a dot"),
        (first("name", "a\0b"), "characters that no file name"),
        (first("name", 7), "7 is no name"),
        (first("matrix", [[1, 0, float("inf")], [0, 1, 0]]), r"pairs\[0\]\.matrix\[0\]\[2\] is Infinity"),
        (first("matrix", [[1, 0], [0, 1]]), r"matrix\[0\] is a list of 2, not of 3"),
        (first("points", [["a", 0]] * 3), r"points\[0\]\[0\] is 'a', not a number"),
        (first("attributes", {"hair": float("nan")}), r"pairs\[0\]\.attributes\.hair is NaN"),
        (first("attributes", []), "attributes is a list of 0"),
        (first("unknown", 1), "unknown field 'unknown'"),
    ],
)
def test_a_damaged_index_is_refused_with_the_place_in_it(prepared, change, message):
    path = prepared.folder / "index.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(HidaError, match=message) as caught:
        PreparedSet.load(prepared.folder)
    assert str(path.parent) in str(caught.value)


def test_an_index_that_is_no_json(prepared):
    for text in ("{", "[]", "3", "[" * 100_000):
        (prepared.folder / "index.json").write_text(text, encoding="utf-8")
        with pytest.raises(HidaError, match="damaged"):
            PreparedSet.load(prepared.folder)


def test_what_is_not_there_is_said_with_the_way_to_make_it(tmp_path):
    with pytest.raises(HidaError, match=r"no such file or folder.*'hida prepare fs2k SRC .*/gone'"):
        PreparedSet.load(tmp_path / "gone")
    with pytest.raises(HidaError, match=r"no such file or folder.*SRC OUT' and 'hida pack OUT .*/gone\.ZIP'"):
        PreparedSet.load(tmp_path / "gone.ZIP")
