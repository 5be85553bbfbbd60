"""What does not fit a dataclass is named in a short sentence."""

from __future__ import annotations

import dataclasses
import math

import pytest

from hida.fields import ConfigError, build


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
        ({"count": 1, "share": math.nan}, "share must be a number"),
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
