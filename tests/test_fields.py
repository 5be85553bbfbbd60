"""Documents are read strictly, and what does not fit is named in a short sentence."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from hida.errors import HidaError
from hida.fields import ConfigError, build, parse_json, shown


@pytest.mark.parametrize("value", [None, 3, -0.5, "ü", [], {}, {"a": [1, {"b": [True, None, "x"]}]}, 10**300])
def test_what_json_writes_is_read(value):
    assert parse_json(json.dumps(value), "it") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[" * 100_000, "nests too deeply"),
        ("[" * 65 + "]" * 65, "nests too deeply"),
        ('{"a":' * 65 + "1" + "}" * 65, "nests too deeply"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "the key 'b' is there twice"),
        ("[NaN]", "'NaN' is no number"),
        ("[Infinity]", "'Infinity' is no number"),
        ('{"a": -1e999}', "'-1e999' is no number"),
        ("9" * 5000, "limit"),
    ],
)
def test_what_the_format_leaves_to_the_reader_is_refused(text, said):
    with pytest.raises(HidaError, match=r"'x\.json' is not readable JSON \(") as caught:
        parse_json(text, "'x.json'")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 250


def test_sixty_levels_are_read_and_infinity_where_it_is_allowed():
    assert parse_json("[" * 60 + "]" * 60, "it")
    assert parse_json("[Infinity, 1e999]", "it", infinite=True) == [math.inf, math.inf]
    with pytest.raises(HidaError):
        parse_json("NaN", "it", infinite=True)


@dataclasses.dataclass(frozen=True)
class Sample:
    count: int
    share: float = 0.5
    more: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "field count is absent"),
        ({"count": 2**63}, "count must be an integer"),
        ({"count": -(10**400)}, "count must be an integer"),
        ({"count": 10**5000}, "count must be an integer; it is a very long int"),
        ({"count": 1, "share": 10**400}, "share must be a number"),
        ({"count": 1, "share": "x" * 10**6}, "share must be a number"),
        ({"count": 1, "more": {"a": "x"}}, "more must be a table of numbers"),
        ({"count": 1, "more": [1]}, "more must be a table of numbers"),
        ({"count": 1, "a\nb": 1}, r"unknown configuration field 'a\nb'"),
        ([["count", 1]], "must be a table of fields"),
    ],
)
def test_what_does_not_fit_is_named_on_one_short_line(values, said):
    with pytest.raises(ConfigError) as caught:
        build(Sample, values)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_what_fits_is_built():
    assert build(Sample, {"count": 3, "share": 1, "more": {"a": 1, "b": 0.5}}) == Sample(3, 1.0, {"a": 1, "b": 0.5})
    assert shown("a") == "'a'"
