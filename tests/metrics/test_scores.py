"""A file of scores is checked in full when it is read: whatever is read can be compared."""

from __future__ import annotations

import json

import pytest
from metrics.test_comparison import evaluation

from hida.cli import compare as command
from hida.cli.run import run_command
from hida.errors import HidaError
from hida.metrics.comparison import comparison
from hida.metrics.scores import load


def saved(folder, content):
    path = folder / "x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), ("{", "not a file of scores"), ("{}", "schema"), ('{"schema": 9}', "format 9")],
)
def test_a_foreign_file_is_one_clear_error(tmp_path, capsys, content, says):
    if content is not None:
        saved(tmp_path, content)
    assert run_command(command.main, [str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "x.json" in error
    assert len(error.strip().splitlines()) == 1


def at(*place):
    """Return what sets (or, without a value, deletes) an entry of the evaluation."""

    def change(result, *value):
        for key in place[:-1]:
            result = result[key]
        if value:
            result[place[-1]] = value[0]
        else:
            del result[place[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "value", "says"),
    [
        (at("pairs", 0, "fsim"), (), r"\(pairs\[0\] has no field 'fsim'\)"),
        (at("pairs", 1, "fsim"), ("0.5",), r"pairs\[1\]\.fsim is '0\.5', not a number"),
        (at("pairs", 1, "fsim"), (True,), "true"),
        (at("pairs", 1, "fsim"), (None,), "null"),
        (at("pairs", 1, "fsim"), (float("nan"),), "NaN, not a finite number"),
        (at("pairs", 1, "fsim"), (1e308,), r"1e\+308"),
        (at("pairs", 1, "fsim"), (10**399,), "not a number"),
        (at("pairs", 1, "name"), ("n0",), r"pairs\[1\]\.name is 'n0', which another pair has"),
        (at("pairs", 1, "name"), ([],), "a list of 0, not a name"),
        (at("pairs", 1, "target"), (7,), "7, not a text"),
        (at("pairs", 1, "style"), ("1",), r"pairs\[1\]\.style is '1'"),
        (at("pairs", 1), (3,), r"pairs\[1\] is 3"),
        (at("pairs"), ([],), "a list of 0, not of 1 or more"),
        (at("pairs"), ({},), "an object of 0 fields, not a list"),
        (at("metrics"), (["fid", "beauty"],), r"metrics\[1\] is 'beauty'"),
        (at("metrics"), (["fsim", "fsim"],), "different metrics"),
        (at("metrics"), ("fsim",), "metrics is 'fsim', not a list"),
        (at("metrics"), ([["fsim"]],), r"metrics\[0\] is a list"),
        (at("label"), ({"a": 1},), "label is an object"),
        (at("label"), ("\ud800",), "label is '.ud800', not a text"),
        (at("label"), ("\x1b[31mred",), r"label is '\\x1b\[31mred', not a text of characters that print"),
        (at("label"), ("a\nb",), r"label is 'a\\nb'"),
        (at("protocol", "deviations"), (["ok", "\u202e"],), r"deviations\[1\] is '\\u202e'"),
        (at("protocol"), ([],), "protocol is a list"),
        (at("protocol", "deviations"), ("none",), "deviations is 'none', not a list"),
        (at("protocol", "deviations"), ([1],), r"deviations\[0\] is 1"),
        (at("groups", "overall"), (), "groups has no field 'overall'"),
        (at("groups", "overall", "n"), (59,), "n is 59, not 60, the number of pairs"),
        (at("groups", "overall", "n"), (60.0,), "n is 60.0"),
        (at("groups", "style 1", "n"), (61,), "n is 61"),
        (at("groups", "style 1", "n"), (-1,), "n is -1"),
        (at("groups", "style 1", "fid"), (), "no field 'fid'"),
        (at("groups", "style 1", "fid"), (30,), "fid is 30, not an object"),
        (at("groups", "overall", "fid", "value"), ("30",), "not a number"),
        (at("groups", "overall", "lpips", "value"), (None,), "value is null"),
        (at("groups", "overall", "lpips", "low"), (None,), "both ends"),
        (at("groups", "overall", "lpips", "high"), (-1.0,), "the lower one first"),
        (at("groups", "overall", "lpips", "high"), ("x",), "high is 'x'"),
        (at("groups", "overall", "kid"), ({"value": "x"},), "value is 'x', not a number"),  # though not in metrics
        (at("groups", "styles"), ({},), "no group that hida evaluate makes"),
        (at("groups"), ([],), "groups is a list"),
        (at("groups", "skin: green"), ({},), "no group"),
        (at("pairs", 1, "by"), ({"age": "old"},), r"pairs\[1\]\.by has 'age'"),
        (at("trained_on"), (["beauty"],), r"trained_on\[0\] is 'beauty'"),
        (at("schema"), (True,), "format true"),
    ],
)
def test_what_is_wrong_is_named_by_its_place_when_it_is_read(tmp_path, change, value, says):
    result = json.loads(json.dumps(evaluation("a")))
    change(result, *value)
    with pytest.raises(HidaError, match=says) as caught:
        load(saved(tmp_path, result))
    assert "x.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


def test_undefined_values_of_one_pair_and_pairs_without_a_style_are_no_faults(tmp_path):
    result = evaluation("a", count=1)
    result["groups"] = {"overall": result["groups"]["overall"]}
    result["groups"]["overall"]["fid"] = {"value": None}
    for key in ("lpips", "scoot", "fsim"):
        result["groups"]["overall"][key] = {"value": 0.5, "low": None, "high": None}
    result["groups"]["overall"]["fsim"] = {"value": 0.5, "low": 0.5, "high": 0.5}  # of equal pairs
    result["pairs"][0]["style"] = None
    read = load(saved(tmp_path, result))
    assert read == result
    assert "| a (2) | overall | 1 |" in comparison([read, read])
