"""Pairing by name, the store, intervals, and what scoring a folder gives for odd folders."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hida.errors import HidaError
from hida.metrics import scoring
from hida.metrics.bootstrap import mean_interval
from hida.metrics.frechet import frechet_distance, kernel_distance
from hida.metrics.pairing import find_pairs
from hida.metrics.protocol import PAIRS, STYLE_COUNTS
from hida.metrics.store import Store, content_hash

ALL = ("fid", "kid", "lpips", "scoot", "fsim")


def write_images(folder: Path, names: list[str], size: int = 40, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (size // 4, size // 4), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return folder


def prepared_set(folder: Path, names: dict[str, tuple[str, int]], size: int = 40) -> Path:
    """A small prepared data set: name → (split, style)."""
    pairs = []
    for i, (name, (split, style)) in enumerate(names.items()):
        files = {kind: f"{kind}/{name}.png" for kind in ("photo", "sketch", "depth")}
        for kind in files:
            write_images(folder / kind, [f"{name}.png"], size, seed=i)
        common = {"matrix": [[1, 0, 0], [0, 1, 0]], "points": [[1, 1], [2, 1], [1, 2]], "faces": 1, "attributes": {}}
        pairs.append({"name": name, "split": split, "style": style, **files, **common})
    index = {"version": 1, "source": "pairs", "size": size, "template": [[1, 1], [2, 1], [1, 2]], "fill": {}}
    index |= {"depth": "none", "styles": ["one", "two", "three"], "pairs": pairs}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.fixture
def light_networks(monkeypatch):
    """Cheap functions in the networks' place, which have tests of their own; counts the images they were given."""
    counted = {"features": 0, "lpips": 0}

    def features(batch, tap=2048):
        counted["features"] += len(batch)
        return batch.double().flatten(2)[:, 0, :16].numpy() / 255

    def distance(a, b):
        counted["lpips"] += len(a)
        return (a.double() - b.double()).abs().mean((1, 2, 3)) / 255

    monkeypatch.setattr(scoring, "load_lpips", lambda *a, **k: None)
    monkeypatch.setattr(scoring, "load_inception", lambda *a, **k: None)
    monkeypatch.setattr(scoring, "inception_features", features)
    monkeypatch.setattr(scoring, "_FEATURES", replace(scoring._FEATURES, length=16))
    monkeypatch.setitem(scoring._PAIRWISE, "lpips", distance)
    return counted


def test_names_pair_across_folders_and_suffixes(tmp_path):
    targets = write_images(tmp_path / "t", ["photo1/image0001.png", "photo2/image0007.png"])
    predictions = write_images(tmp_path / "p", ["photo1_image0001.jpg", "sketch2/sketch0007.png"])
    pairs, remarks = find_pairs(predictions, targets)
    assert [pair.name for pair in pairs] == ["photo1_image0001", "photo2_image0007"]
    assert [pair.prediction.suffix for pair in pairs] == [".jpg", ".png"]
    assert remarks == []


def test_a_prepared_set_brings_styles_and_photos_and_only_its_test_split(tmp_path):
    target = prepared_set(tmp_path / "set", {"a": ("train", 0), "b": ("test", 2), "c": ("test", 0)})
    pairs, remarks = find_pairs(target / "photo", target)
    assert [(pair.name, pair.style) for pair in pairs] == [("b", 2), ("c", 0)]
    assert pairs[0].photo == target / "photo/b.png"
    assert remarks == ["1 predictions of other pairs were left aside"]


@pytest.mark.parametrize(
    ("predictions", "targets", "says"),
    [
        (["a.png"], ["a.png", "b.png"], r"1 of 2 targets have no prediction .*\(b\)"),
        (["a.png", "x.png"], ["a.png"], r"1 predictions have no target .*x\.png"),
        (["a.png", "a.jpg"], ["a.png"], r"both have the name a"),
        (["a.png"], [], "not a folder"),
        ([".hidden.png"], ["a.png"], "holds no images"),
    ],
    ids=["missing", "extra", "twice", "no-folder", "empty"],
)
def test_unpaired_names_are_one_clear_error(tmp_path, predictions, targets, says):
    write_images(tmp_path / "p", predictions)
    write_images(tmp_path / "t", targets)
    with pytest.raises(HidaError, match=says):
        find_pairs(tmp_path / "p", tmp_path / "t")


def test_only_common_scores_the_shared_names_and_says_so(tmp_path):
    write_images(tmp_path / "p", ["a.png", "x.png"])
    write_images(tmp_path / "t", ["a.png", "b.png"])
    pairs, remarks = find_pairs(tmp_path / "p", tmp_path / "t", only_common=True)
    assert [pair.name for pair in pairs] == ["a"]
    assert remarks == ["1 targets without and 1 predictions beyond a pair were left aside"]
    (tmp_path / "t/b.png").unlink()
    assert find_pairs(tmp_path / "p", tmp_path / "t", only_common=True)[1] == [
        "0 targets without and 1 predictions beyond a pair were left aside"
    ]
    write_images(tmp_path / "q", ["z.png"])
    with pytest.raises(HidaError, match="no name in common"):
        find_pairs(tmp_path / "q", tmp_path / "t", only_common=True)


def test_raw_fs2k_and_an_unfinished_preparation_are_named(tmp_path):
    write_images(tmp_path / "p", ["a.png"])
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "anno_test.json").write_text("[]", encoding="utf-8")
    with pytest.raises(HidaError, match="hida prepare fs2k"):
        find_pairs(tmp_path / "p", tmp_path / "raw")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "journal.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(HidaError, match="did not finish"):
        find_pairs(tmp_path / "p", tmp_path / "begun")


def test_names_pair_whichever_way_they_write_accents(tmp_path):
    target = prepared_set(tmp_path / "set", {"Zo\u00eb": ("test", 0), "Rene\u0301": ("test", 1)})
    write_images(tmp_path / "p", ["Zoe\u0308.png", "Ren\u00e9.png"])
    pairs, remarks = find_pairs(tmp_path / "p", target)
    assert [(pair.prediction.name, pair.target.name) for pair in pairs] == [
        ("Zoe\u0308.png", "Zo\u00eb.png"),
        ("Ren\u00e9.png", "Rene\u0301.png"),
    ]
    assert remarks == []


def score_folders(tmp_path: Path, store: Store | None = None, **options):
    pairs, _ = find_pairs(tmp_path / "p", tmp_path / "t")
    scores = scoring.score(pairs, ALL, store or Store(), **options)
    return scoring.summarise(pairs, scores, ALL)


def test_scores_are_the_metrics_of_the_files(tmp_path, light_networks):
    names = [f"{i}.png" for i in range(20)]
    write_images(tmp_path / "p", names, seed=1)
    write_images(tmp_path / "t", names, seed=2)
    result = score_folders(tmp_path)
    overall = result["groups"]["overall"]
    expected = [
        scoring.scoot(*(np.array(Image.open(tmp_path / side / record["name"]).convert("L")) for side in "pt"))
        for record in ({"name": f"{record['name']}.png"} for record in result["pairs"])
    ]
    assert [record["scoot"] for record in result["pairs"]] == pytest.approx(expected)
    assert overall["n"] == 20
    assert overall["scoot"]["value"] == pytest.approx(np.mean(expected))
    assert overall["scoot"]["low"] < overall["scoot"]["value"] < overall["scoot"]["high"]
    assert overall["fid"]["value"] > 0
    assert "low" not in overall["fid"]
    scores = scoring.score(find_pairs(tmp_path / "p", tmp_path / "t")[0], ALL, Store())
    for side, found in (("p", scores.predictions), ("t", scores.targets)):  # the features of their own side
        first = np.array(Image.open(tmp_path / side / f"{result['pairs'][0]['name']}.png").convert("L")).ravel()[:16]
        np.testing.assert_allclose(found[0], first / 255, atol=1e-6)
    assert result["protocol"]["deviations"][0].startswith("20 pairs")


def test_equal_folders_score_perfectly(tmp_path, light_networks):
    for side in "pt":
        write_images(tmp_path / side, ["a.png", "b.png", "c.png"])
    overall = score_folders(tmp_path)["groups"]["overall"]
    assert overall["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert (overall["lpips"]["value"], overall["scoot"]["value"]) == (0, 1)
    assert overall["fsim"]["value"] == pytest.approx(1, abs=1e-12)


def test_one_image_has_means_but_no_distance_and_no_interval(tmp_path, light_networks):
    write_images(tmp_path / "p", ["a.png"], seed=1)
    write_images(tmp_path / "t", ["a.png"], seed=2)
    overall = score_folders(tmp_path)["groups"]["overall"]
    assert overall["fid"]["value"] is None
    assert overall["kid"]["value"] is None
    assert 0 < overall["fsim"]["value"] < 1
    assert overall["fsim"]["low"] is None


def test_constant_images_have_a_defined_result(tmp_path, light_networks):
    for side, value in (("p", 255), ("t", 0)):
        (tmp_path / side).mkdir()
        for name in "ab":
            Image.fromarray(np.full((40, 40), value, np.uint8)).save(tmp_path / side / f"{name}.png")
    overall = score_folders(tmp_path)["groups"]["overall"]
    assert overall["scoot"]["value"] == 1
    assert 0.8 < overall["fsim"]["value"] < 1
    assert np.isfinite(overall["fid"]["value"])


def test_another_size_is_an_error_naming_the_file_or_is_resized_on_request(tmp_path, light_networks):
    write_images(tmp_path / "p", ["a.png", "b.png"], size=80)
    write_images(tmp_path / "t", ["a.png", "b.png"])
    with pytest.raises(HidaError, match=r"p/a\.png' is 80×80 but its target .* 40×40.*--resize"):
        score_folders(tmp_path)
    result = score_folders(tmp_path, resize=True)
    assert "2 predictions were resized to their targets" in result["protocol"]["deviations"]


def test_corrupt_and_tiny_pictures_are_errors_naming_the_file(tmp_path, light_networks):
    write_images(tmp_path / "p", ["a.png", "b.png"])
    write_images(tmp_path / "t", ["a.png", "b.png"])
    whole = (tmp_path / "p/b.png").read_bytes()
    (tmp_path / "p/b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HidaError, match=r"p/b\.png"):
        score_folders(tmp_path)
    for side in "pt":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / side / "b.png")
    with pytest.raises(HidaError, match=r"p/b\.png': SCOOT needs"):
        score_folders(tmp_path)


def test_lossy_files_are_a_deviation_whatever_their_names(tmp_path, light_networks):
    names = ["a.jpg", "b.png", "c.png", "d.webp", "e.webp"]
    for side in "pt":
        write_images(tmp_path / side, names)
    picture = Image.open(tmp_path / "p/b.png")
    picture.save(tmp_path / "p/c.png", format="JPEG")
    picture.save(tmp_path / "p/d.webp", lossless=False)
    for path in (tmp_path / "p/e.webp", tmp_path / "t/e.webp", tmp_path / "t/d.webp"):
        picture.save(path, lossless=True)
    picture.save(tmp_path / "t/a.jpg", format="PNG")
    picture.save(tmp_path / "t/b.png", format="WEBP")
    found = score_folders(tmp_path)["protocol"]["deviations"]
    assert [text for text in found if " are " in text] == [
        "2 predictions are JPEG",
        "1 predictions are lossy WebP",
        "1 targets are lossy WebP",
    ]


def test_nothing_is_measured_twice(tmp_path, light_networks):
    names = [f"{i}.png" for i in range(18)]
    write_images(tmp_path / "p", names, seed=1)
    write_images(tmp_path / "t", names, seed=2)
    first = score_folders(tmp_path, Store(tmp_path / "store.sqlite"))
    assert light_networks == {"features": 36, "lpips": 18}
    # Renamed and recompressed, the pictures are the same.
    for side in "pt":
        for name in names:
            image = Image.open(tmp_path / side / name)
            image.load()
            (tmp_path / side / name).unlink()
            image.save(tmp_path / side / f"new{name}", compress_level=1)
    assert score_folders(tmp_path, Store(tmp_path / "store.sqlite"))["groups"] == first["groups"]
    assert light_networks == {"features": 36, "lpips": 18}
    write_images(tmp_path / "p", ["new3.png"], seed=9)
    score_folders(tmp_path, Store(tmp_path / "store.sqlite"))
    assert light_networks == {"features": 37, "lpips": 19}


def test_a_stopped_run_keeps_what_it_had_done(tmp_path, light_networks):
    names = [f"{i:02}.png" for i in range(40)]
    write_images(tmp_path / "p", names, seed=1)
    write_images(tmp_path / "t", names, seed=2)

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_folders(tmp_path, Store(tmp_path / "store.sqlite"), progress=stop)
    assert light_networks["lpips"] == 16
    score_folders(tmp_path, Store(tmp_path / "store.sqlite"))
    assert light_networks["lpips"] == 40


@pytest.mark.parametrize(
    "value",
    [b"abc", b"", b"\0" * 7, b"\0" * 65, "textual.", "\0" * 64, 5, 0.5, b"\xff" * 8, b"\xff" * 64]
    + [np.full(count, number, dtype).tobytes() for count, dtype in ((1, "f8"), (16, "f4")) for number in (1e30, -0.5)],
)
def test_damaged_results_in_the_store_are_measured_again(tmp_path, light_networks, value):
    write_images(tmp_path / "t", ["a.png", "b.png"], seed=1)
    write_images(tmp_path / "p", ["a.png", "b.png"], seed=2)
    first = score_folders(tmp_path, Store(tmp_path / "store.sqlite"))
    with sqlite3.connect(tmp_path / "store.sqlite") as database:
        assert database.execute("UPDATE result SET value = ?", (value,)).rowcount == 2 * 3 + 4
    database.close()
    light_networks.update(features=0, lpips=0)
    for _ in range(2):
        assert score_folders(tmp_path, Store(tmp_path / "store.sqlite")) == first
        assert light_networks == {"features": 4, "lpips": 2}  # mended at once


def test_distances_of_a_style_are_of_its_own_images():
    left, right = (np.random.default_rng(seed).uniform(size=(6, 3)) for seed in (1, 2))
    pairs = [scoring.Pair(str(i), Path(), Path(), i % 2) for i in range(6)]
    scores = scoring.Scores({}, left, right, [""] * 6, {(40, 40)}, 0)
    groups = scoring.summarise(pairs, scores, ["fid", "kid"])["groups"]
    for name, rows in (("overall", slice(None)), ("style 1", slice(0, None, 2)), ("style 2", slice(1, None, 2))):
        for key, distance in (("fid", frechet_distance), ("kid", kernel_distance)):
            assert groups[name][key]["value"] == pytest.approx(distance(left[rows], right[rows]))


def test_content_hash_tells_shapes_apart():
    flat = np.zeros((2, 8), np.uint8)
    assert content_hash(flat) == content_hash(flat.copy())
    assert len({content_hash(x) for x in (flat, flat.reshape(4, 4), flat + 1, flat.astype(np.int8))}) == 4


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = rng.normal(3.0, 1.0, (60, 1))
        low, high = mean_interval(values, resamples=400, seed=seed)
        covered += bool(low[0] <= 3.0 <= high[0])
    assert 180 <= covered <= 198


def test_interval_is_that_of_the_normal_theory_and_is_reproducible():
    values = np.random.default_rng(0).normal(size=(2000, 2)) * [1, 5]
    low, high = mean_interval(values)
    error = values.std(0) / np.sqrt(2000)
    np.testing.assert_allclose((high - low) / error, 2 * 1.96, rtol=0.05)
    np.testing.assert_array_equal(mean_interval(values)[0], low)
    assert mean_interval(values[:1]) is None


def test_the_whole_test_set_at_its_size_has_no_deviation(tmp_path):
    pairs = []
    for style, count in enumerate(STYLE_COUNTS):
        for i in range(count):
            path = Path(f"{style}_{i}.png")
            pairs.append(scoring.Pair(path.stem, path, path, style))
    scores = scoring.Scores({}, None, None, [""] * PAIRS, {(250, 250)}, 0)
    assert scoring.summarise(pairs, scores, [])["protocol"]["deviations"] == []
    assert scoring.summarise(pairs, scores, [])["groups"]["style 3"] == {"n": 46}
    pairs[0] = replace(pairs[0], style=2)  # as many pairs, but not those
    assert scoring.summarise(pairs, scores, [])["protocol"]["deviations"] != []
    assert torch.is_tensor(scoring._tensor([np.zeros((2, 2), np.uint8)], "cpu"))
