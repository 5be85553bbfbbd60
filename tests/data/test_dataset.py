"""Pairs in memory: what is read, taken and held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hida.data.dataset import load_pairs, split_holdout
from hida.data.prepared import PreparedPair, PreparedSet
from hida.errors import HidaError
from hida.images.alignment import IDENTITY, TEMPLATE
from hida.images.io import write_png


@pytest.fixture
def prepared(tmp_path):
    random, pairs = np.random.default_rng(0), []
    for k in range(3):
        names = {kind: f"{kind}/p{k}.png" for kind in ("photo", "sketch", "depth")}
        write_png(tmp_path / names["photo"], random.integers(0, 256, (250, 250, 3), np.uint8))
        for kind in ("sketch", "depth"):
            write_png(tmp_path / names[kind], random.integers(0, 256, (250, 250), np.uint8))
        matrix, points = tuple(map(tuple, IDENTITY.tolist())), tuple(map(tuple, TEMPLATE.tolist()))
        pairs.append(PreparedPair(f"p{k}", "train", k % 2, **names, matrix=matrix, points=points, faces=1))
    template = tuple(map(tuple, TEMPLATE.tolist()))
    fill = {"photo": "replicate", "sketch": "white"}
    return PreparedSet(tmp_path, "fs2k", 250, template, fill, "tddfa", ("ink", "chalk"), tuple(pairs))


def test_the_bytes_of_the_files(prepared):
    loaded = load_pairs(prepared, prepared.pairs, progress=False)
    assert len(loaded) == 3
    assert loaded.names == ("p0", "p1", "p2")
    assert loaded.style.tolist() == [0, 1, 0]
    for k, pair in enumerate(prepared.pairs):
        photo, sketch, depth = prepared.read(pair)
        assert (loaded.photo[k].permute(1, 2, 0).numpy() == photo).all()
        assert (loaded.sketch[k, 0].numpy() == sketch).all()
        assert (loaded.depth[k, 0].numpy() == depth).all()


def test_taking_keeps_pairs_together(prepared):
    loaded = load_pairs(prepared, prepared.pairs, progress=False)
    taken = loaded.take(torch.tensor([2, 0, 2]))
    assert taken.names == ("p2", "p0", "p2")
    for name in ("photo", "depth", "sketch", "style"):
        assert torch.equal(getattr(taken, name), getattr(loaded, name)[[2, 0, 2]])
    assert len(loaded.take(torch.tensor([], dtype=torch.int64))) == 0


def test_no_pairs(prepared):
    loaded = load_pairs(prepared, (), progress=False)
    assert len(loaded) == 0
    assert loaded.photo.shape == (0, 3, 250, 250)
    assert loaded.sketch.shape == loaded.depth.shape == (0, 1, 250, 250)


def test_a_damaged_file_is_named(prepared):
    prepared.files(prepared.pairs[1])[2].write_bytes(b"\x89PNG")
    with pytest.raises(HidaError, match=r"depth/p1\.png"):
        load_pairs(prepared, prepared.pairs, progress=False)


@pytest.mark.parametrize(("count", "holdout"), [(10, 0), (10, 3), (10, 10), (4, 9)])
def test_the_holdout_is_a_partition_that_the_seed_decides(count, holdout):
    kept, held_out = split_holdout(count, holdout, 1)
    assert len(held_out) == min(holdout, count)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(count))
    again = split_holdout(count, holdout, 1)
    assert torch.equal(kept, again[0])
    assert torch.equal(held_out, again[1])


def test_another_seed_holds_out_others():
    assert not torch.equal(split_holdout(100, 10, 1)[1], split_holdout(100, 10, 2)[1])
