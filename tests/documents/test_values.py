"""A document is read strictly, and what is wrong in it is named by its place."""

from __future__ import annotations

import json
import math

import pytest

from hida.documents import DocumentError, Value, parse_json, read_json
from hida.documents.values import LARGEST


@pytest.mark.parametrize("text", ["null", "[]", "{}", '"ä"', "[1, 2.5, -3e2, true]", '{"a": {"b": [{"c": null}]}}'])
def test_what_is_valid_is_what_json_reads(text):
    assert parse_json(text).raw == json.loads(text)
    assert parse_json(text.encode("utf-8-sig")).raw == json.loads(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1] 2", "not valid JSON"),
        (b"\xff\xfe[\x00]\x00", "not text in UTF-8"),
        ("[1, NaN]", r"\[1\] is NaN, not a finite number"),
        ('{"a": {"b": [-Infinity]}}', r"a\.b\[0\] is -Infinity"),
        ('{"a": 1e999}', "a is 1e999"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' is there twice"),
        ("1" * 5000, "5,000 digits"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 500 + "]" * 500, "nested too deeply"),
        ('{"a":' * 50 + "1" + "}" * 50, "nested too deeply"),
        ("[" + "[]," * 1_000_000 + "0]", "millions"),
        ("[" + "0," * 3_000_001 + "0]", "millions"),
    ],
)
def test_what_json_forbids_or_nothing_needs_is_refused(text, says):
    with pytest.raises(DocumentError, match=says):
        parse_json(text)


def test_no_more_than_the_bound_is_read(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(DocumentError, match="larger than"):
        read_json(path)
    with pytest.raises(DocumentError, match="larger than 3 bytes"):
        parse_json("[ 1 ]", 3)


ROOT = Value(
    {
        "t": "ink",
        "s": "\ud800",
        "n": 2,
        "f": 0.5,
        "b": True,
        "big": 10**300,
        "z": None,
        "l": [1, {"x": 1}],
        "o": {"x": "y"},
    }
)


@pytest.mark.parametrize(
    ("take", "says"),
    [
        (lambda: ROOT.field("gone"), "it has no field 'gone'"),
        (lambda: ROOT.field("l").items()[1].field("y"), r"l\[1\] has no field 'y'"),
        (lambda: ROOT.field("l").items()[1].field("x").text(), r"l\[1\]\.x is 1, not a text"),
        (lambda: ROOT.field("l").field("x"), "l is a list of 2, not an object"),
        (lambda: ROOT.field("o").items(), "o is an object of 1 fields, not a list"),
        (lambda: ROOT.field("l").items(3, 3), "l is a list of 2, not of 3"),
        (lambda: ROOT.field("o").only(["y"]), "o has the unknown field 'x'"),
        (lambda: ROOT.field("s").text(), "not a text"),
        (lambda: ROOT.field("t").one_of(("oil", "wax")), "t is 'ink', not one of oil, wax"),
        (lambda: ROOT.field("l").one_of(("oil", "wax")), "not one of"),
        (lambda: ROOT.field("f").whole(0, 3), "f is 0.5, not a whole number 0 to 3"),
        (lambda: ROOT.field("b").whole(0, 3), "b is true, not a whole number"),
        (lambda: ROOT.field("n").whole(0, 1), "n is 2, not a whole number 0 to 1"),
        (lambda: ROOT.field("b").number(), "b is true, not a number"),
        (lambda: ROOT.field("big").number(), "big is 1000"),
        (lambda: ROOT.field("z").number(), "z is null, not a number"),
        (lambda: Value(math.nan).number(), "nan"),
        (lambda: ROOT.field("n").name(), "n: 2 is no name"),
    ],
)
def test_a_value_of_another_kind_is_named_by_its_place(take, says):
    with pytest.raises(DocumentError, match=says):
        take()


def test_values_are_taken_as_they_are():
    assert ROOT.field("t").text() == ROOT.field("t").name() == ROOT.field("t").path() == "ink"
    assert (ROOT.field("n").whole(0, 3), ROOT.field("n").number(), ROOT.field("f").number()) == (2, 2.0, 0.5)
    assert [item.place for item in ROOT.field("l").items(2, 2)] == ["l[0]", "l[1]"]
    assert ROOT.optional("gone") is None
