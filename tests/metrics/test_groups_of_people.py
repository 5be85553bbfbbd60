"""Scores by who is drawn: who is in which group, what the tables say of them, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from metrics.test_evaluation import Drawer
from metrics.test_scoring import light_networks, prepared_set, write_images  # noqa: F401

from hida.cli import compare as cli_compare
from hida.cli import evaluate as cli_evaluate
from hida.cli.run import run_command
from hida.errors import HidaError
from hida.metrics.frechet import kernel_distance
from hida.metrics.groups import LABELS, group_name, is_group, labels_of
from hida.metrics.scores import load

PEOPLE = {  # name: angle of the skin, frontal_face, gender, hair, smile
    "a": (55.0, 0, 0, 0, 0),
    "b": (41.0, 0, 1, 0, 1),
    "c": (28.1, 1, 1, 0, 0),
    "d": (10.0, 0, 0, 1, 1),
    "e": (-30.0, 1, 0, 1, 0),
    "f": (90.0, 0, 1, 0, 0),
}
SKIN = {"a": "light", "b": "intermediate", "c": "intermediate", "d": "brown", "e": "dark", "f": "light"}
KEYS = ("skin_ita", "frontal_face", "gender", "hair", "smile")


def annotated_set(tmp_path):
    folder = prepared_set(tmp_path / "set", dict.fromkeys(PEOPLE, ("test", 0)))
    edit(folder, lambda pair: pair["attributes"].update(zip(KEYS, PEOPLE[pair["name"]], strict=True)))
    write_images(tmp_path / "p", [f"{name}.png" for name in PEOPLE], seed=9)
    return folder


def edit(folder, change):
    path = folder / "index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    for pair in index["pairs"]:
        change(pair)
    path.write_text(json.dumps(index), encoding="utf-8")


def run(tmp_path, folder, *more):
    words = ["--pred", str(tmp_path / "p"), "--target", str(folder), "--out", str(tmp_path / "out"), *more]
    return run_command(cli_evaluate.main, [*words, "--cache", "none"])


def test_a_boundary_belongs_to_the_darker_group():
    angles = {
        41.001: "light",
        41.0: "intermediate",
        28.0: "tan",
        10.0: "brown",
        -30.0: "dark",
        -31: "dark",
        180: "light",
    }
    for angle, label in angles.items():
        assert labels_of([{"skin_ita": angle}], ["skin"]) == [{"skin": label}]


def test_every_group_has_the_scores_of_its_own_pairs(tmp_path, light_networks, capsys):  # noqa: F811
    folder = annotated_set(tmp_path)
    assert run(tmp_path, folder, "--by", "skin, frontal,gender", "hair", "smile") == 0
    result = load(tmp_path / "out")
    scores = {record["name"]: record for record in result["pairs"]}
    assert {name: record["by"]["skin"] for name, record in scores.items()} == SKIN
    counts = {name: group["n"] for name, group in result["groups"].items()}
    assert counts == {
        "overall": 6, "style 1": 6,
        "skin: light": 2, "skin: intermediate": 2, "skin: brown": 1, "skin: dark": 1,
        "frontal: yes": 4, "frontal: no": 2, "gender: men": 3, "gender: women": 3,
        "hair: yes": 4, "hair: no": 2, "smile: yes": 4, "smile: no": 2,
    }  # fmt: skip
    for by, labels in LABELS.items():
        for label in labels:
            members = [record for record in result["pairs"] if record["by"][by] == label]
            if members:
                group = result["groups"][group_name(by, label)]
                assert group["n"] == len(members)
                for key in ("lpips", "scoot", "fsim"):
                    assert group[key]["value"] == pytest.approx(np.mean([record[key] for record in members]))
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    table = (tmp_path / "out/scores.md").read_text(encoding="utf-8")
    for text in (page, table):
        assert all(name in text for name in counts)
        assert "a proxy that mixes skin" in text
        assert "compare KID" in text
    capsys.readouterr()
    assert run_command(cli_compare.main, [str(tmp_path / "out")] * 2) == 0
    said = capsys.readouterr().out
    assert said.count("skin: dark") == 3  # a row each, and one difference


def test_without_by_nothing_of_groups_is_told(tmp_path, light_networks):  # noqa: F811
    assert run(tmp_path, annotated_set(tmp_path)) == 0
    text = (tmp_path / "out/scores.json").read_text(encoding="utf-8")
    assert "skin" not in text
    assert "by" not in json.loads(text)["pairs"][0]


def test_a_point_outside_of_its_photo_is_in_no_group_and_what_is_not_scored_is_not_asked(
    tmp_path,
    capsys,
    light_networks,  # noqa: F811
):
    folder = annotated_set(tmp_path)
    edit(folder, lambda pair: pair["attributes"].update(skin_ita=None) if pair["name"] == "a" else None)
    edit(folder, lambda pair: pair["attributes"].pop("skin_ita") if pair["name"] == "b" else None)
    (tmp_path / "p/b.png").unlink()
    assert run(tmp_path, folder, "--by", "skin", "--only-common") == 0
    result = load(tmp_path / "out")
    groups = {name: group["n"] for name, group in result["groups"].items() if name.startswith("skin")}
    assert groups == {"skin: light": 1, "skin: intermediate": 1, "skin: brown": 1, "skin: dark": 1}
    assert [record["by"] for record in result["pairs"] if record["name"] == "a"] == [{}]
    assert "skin: 1 pair is in none of the groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "by", "says"),
    [
        (lambda a: a.pop("skin_ita"), "skin", "--by skin: no pair has that annotation"),
        (lambda a: a.update(skin_ita="pale"), "skin", "run 'hida prepare fs2k' on the same folders again"),
        (lambda a: a.update(skin_ita=float("1e9")), "skin", "no pair has"),
        (lambda a: a.update(gender=2), "gender", "FS2K's annotations hold it"),
        (lambda a: a.update(gender=True), "gender", "no pair has"),
        (lambda a: a.pop("smile") if a["hair"] else None, "hair,smile", "--by smile: 2 pairs lack that annotation"),
    ],
)
def test_pairs_without_an_annotation_are_said_before_anything_is_drawn(tmp_path, capsys, monkeypatch, change, by, says):
    monkeypatch.setattr("hida.metrics.evaluation.Sketcher", Drawer)
    monkeypatch.setattr(Drawer, "draw_aligned", lambda *_: pytest.fail("drew first"))
    folder = annotated_set(tmp_path)
    edit(folder, lambda pair: change(pair["attributes"]))
    words = ["--weights", "1", "--target", str(folder), "--metrics", "fsim", "--out", str(tmp_path / "out")]
    assert run_command(cli_evaluate.main, [*words, "--by", by]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--by", "age"], "--by: 'age' is none of"),
        (["--by", "skin,hat"], "--by: 'hat' is none of skin, frontal"),
        (["--by", "skin", "--by=hair"], "--by is given twice"),
        (["--by"], "--by names none"),
        (["--by", "hair"], "does not have"),
    ],
)
def test_unknown_annotations_and_folders_without_are_one_sentence(tmp_path, capsys, words, says):
    target = write_images(tmp_path / "t", ["a.png"])
    write_images(tmp_path / "p", ["a.png"])
    assert run(tmp_path, target, "--metrics", "fsim", *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_names_of_groups_are_known_and_no_others():
    assert all(is_group(group_name(by, label)) for by, labels in LABELS.items() for label in labels)
    assert not any(map(is_group, ("skin", "skin: ", "skin: green", "age: light", "overall", "skin:light")))


def test_a_group_that_a_file_of_scores_makes_up_is_refused(tmp_path, light_networks):  # noqa: F811
    assert run(tmp_path, annotated_set(tmp_path), "--by", "hair") == 0
    path = tmp_path / "out/scores.json"
    whole = path.read_text(encoding="utf-8")
    for wrong in (whole.replace('"hair": "no"', '"hair": "blue"'), whole.replace("hair: no", "hair: blue")):
        assert wrong != whole
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(HidaError, match=r"blue"):
            load(path)


def test_the_interval_of_a_groups_kid_leaves_every_pair_out_once(tmp_path, monkeypatch, light_networks):  # noqa: F811
    from hida.metrics.frechet import kernel_interval

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 12, 5))
    b += 0.4
    without = [kernel_distance(np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(12)]
    error = np.sqrt(11 / 12 * np.square(without - np.mean(without)).sum())
    low, high = kernel_interval(a, b)
    assert (low + high) / 2 == pytest.approx(kernel_distance(a, b))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=1e-4)
    assert kernel_interval(a[:3], b[:3]) is None
    assert kernel_interval(a, b[:11]) is None


def test_the_interval_of_kid_holds_the_true_value_about_as_often_as_it_says():
    from hida.metrics.frechet import kernel_interval

    rng = np.random.default_rng(1)
    far = rng.normal(size=(2, 4000, 3)) + np.array([0, 0.8])[:, None, None]
    truth = kernel_distance(*far)
    held = 0
    for _ in range(200):
        a, b = rng.normal(size=(2, 60, 3))
        low, high = kernel_interval(a, b + 0.8)
        held += low <= truth <= high
    assert 176 <= held <= 200  # of 95 %: 190, less what three standard deviations and the truth's own error allow
