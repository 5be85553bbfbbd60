"""Whatever is in a pack, an index, an annotation or a table: a data set, or one sentence, and no file elsewhere."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import struct
import zipfile

import numpy as np
import pytest
from fuzzing import ODD, json_mutations, mutations, withstand
from PIL import Image

from hida.data.fs2k import read_fs2k
from hida.data.packed import RECORD, pack
from hida.data.pairs import read_pairs
from hida.data.prepared import INDEX, PreparedPair, PreparedSet
from hida.data.unpacking import prepared_folder
from hida.images.alignment import IDENTITY, TEMPLATE
from hida.images.io import write_png
from hida.metrics.evaluation import sketch_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIDE = 16


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A prepared set of three small pairs, deep in a folder, so that what is written above it is seen."""
    monkeypatch.setattr(os, "sync", lambda: None)
    folder, noise, pairs = tmp_path / "a/b/c/set", np.random.default_rng(0), []
    matrix, points = tuple(map(tuple, IDENTITY.tolist())), tuple(map(tuple, TEMPLATE.tolist()))
    for k in range(3):
        names = {kind: f"{kind}/p{k}.png" for kind in ("photo", "sketch", "depth")}
        for kind, shape in (("photo", (SIDE, SIDE, 3)), ("sketch", (SIDE, SIDE)), ("depth", (SIDE, SIDE))):
            write_png(folder / names[kind], noise.integers(0, 256, shape, np.uint8))
        pairs.append(PreparedPair(f"p{k}", "test", k, **names, matrix=matrix, points=points, faces=1))
    PreparedSet(folder, "pairs", SIDE, points, {"photo": "white"}, "none", ("1", "2", "3"), tuple(pairs)).save()
    return folder


def use(folder):
    """Do with a prepared set what training and evaluation do with its names and pictures."""
    prepared = PreparedSet.load(folder)
    for pair in prepared.pairs:
        prepared.read(pair)
        assert sketch_of(folder, pair).parent == folder / "sketches"
        assert os.path.normpath(sketch_of(folder, pair)) == str(sketch_of(folder, pair))
        for file in prepared.files(pair):
            assert file.resolve().is_relative_to(folder.resolve())
    assert len({pair.name for pair in prepared.pairs}) == len(prepared.pairs)
    assert all(type(pair.style) is int for pair in prepared.pairs)


def outside(tmp_path):
    """Return all files that belong to nobody: not to the set, nor to the pack, nor to what it is unpacked into."""
    ours = ("set", "set.zip", "set.zip.unpacked")
    top = tmp_path / "a/b/c"
    paths = [path for path in tmp_path.rglob("*") if not (path.is_relative_to(top) and path != top)]
    return {*paths, *(path for path in top.iterdir() if path.name not in ours)}


def zip_mutations(members, count, seed=0):
    """Yield packs with other indices, other names, and changed entries in the list of members or before them."""
    chance = random.Random(seed)
    indices = json_mutations([json.loads(members[INDEX])], count, seed)
    for number in range(count):
        content, kind = dict(members), number % 4
        if kind == 0:
            content[INDEX] = next(indices)
        elif kind == 1:
            for name in chance.sample(list(content), chance.choice((1, 2))):
                strange = str(chance.choice([odd for odd in ODD if isinstance(odd, str)]))[:300]
                content[chance.choice([strange, f"photo/{strange}", f"{strange}/p0.webp"])] = content.pop(name)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", chance.choice((0, 0, 8, 12, 14))) as archive:
            for name, data in content.items():
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode()[:200])
                archive.writestr(info, data, archive.compression)
        data = bytearray(buffer.getvalue())
        places = [found.start() for found in re.finditer(b"PK(\x01\x02|\x03\x04|\x05\x06)", data)]
        for _ in range(chance.choice((1, 1, 2, 5)) if kind >= 2 else 0):
            place, width = chance.choice(places) + chance.randrange(4, 60), chance.choice((1, 2, 4))
            value = chance.choice((0, 1, 8, 9, 12, 99, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, chance.randrange(1 << 17)))
            data[place : place + width] = struct.pack("<I", value)[:width]
        yield bytes(data)


def test_packs(folder, tmp_path):
    out = folder.with_name("set.zip")
    pack(PreparedSet.load(folder), out)
    whole, before = out.read_bytes(), outside(tmp_path)
    with zipfile.ZipFile(out) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert RECORD in members

    def read(data):
        out.write_bytes(data)
        try:
            use(prepared_folder(out))
        finally:
            assert outside(tmp_path) == before

    cases = itertools.chain(mutations([whole, whole[-2000:]], 300), zip_mutations(members, 500))
    assert 50 < withstand(read, cases) < 600


def test_indices(folder):
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))

    def read(data):
        (folder / INDEX).write_bytes(data)
        use(folder)

    text = json.dumps(index).encode()
    assert 20 < withstand(read, itertools.chain(json_mutations([index], 500), mutations([text], 200))) < 300


def test_annotations_and_tables(tmp_path):
    names = ["p0", "p1", "ink/p2"]
    for kind in ("photo", "sketch"):
        for name in ["p0", "p1"]:
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(tmp_path / kind / f"{name}.png")
    rows = [{"name": name, "style": style, "split": "train"} for name, style in zip(names, ("a", 1, "b"), strict=True)]
    table = "name,style,split\n" + "".join(f"{row['name']},{row['style']},train\n" for row in rows)
    tables = [table.encode(), table.replace(",", ";").encode("utf-16"), ("\ufeff" + table).replace(",", "\t").encode()]

    def read(case):
        name, data = case
        (tmp_path / name).write_bytes(data)
        for pair in read_pairs(tmp_path, tmp_path / name).pairs:
            assert pair.photo.parent == tmp_path / "photo"

    cases = [("t.json", data) for data in json_mutations([rows], 300)] + [
        ("t.csv", data) for data in mutations(tables, 400)
    ]
    assert withstand(read, cases) > 100

    for kind, stem in (("photo", "image"), ("sketch", "sketch")):
        (tmp_path / f"{kind}/{kind}1").mkdir()
        Image.new("L", (4, 4)).save(tmp_path / f"{kind}/{kind}1/{stem}1.png")
    numbers = {"hair": 1, "hair_color": 1, "gender": 1, "earring": 1, "smile": 1, "frontal_face": 1, "style": 0}
    entry = {"image_name": "photo1/image1", **numbers, "skin_color": [1.5], "lip_color": [1], "eye_color": [1]}
    (tmp_path / "anno_test.json").write_text("[]", encoding="utf-8")

    def read_annotation(data):
        (tmp_path / "anno_train.json").write_bytes(data)
        source = read_fs2k(tmp_path, {"train": (1,), "test": (0,)})
        found.append(len(source.faults))
        assert all(len(str(fault).splitlines()) == 1 and len(str(fault)) < 2000 for fault in source.faults)

    found: list[int] = []
    withstand(read_annotation, json_mutations([[entry]], 300))
    assert sum(map(bool, found)) > 100
