"""Names for files of several folders: as short as they can be, and of which no two are equal."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from hida.files import told_apart

FORMS = (lambda path: path.stem, lambda path: path.name)


def test_names_are_longer_only_where_they_would_be_equal():
    paths = [Path(f"/{a}/{b}/{c}.{d}") for a, b, c, d in product("xy", "xyz", ("one", "TWO", "two"), ("jpg", "png"))]
    paths += [Path("/x/x/three.jpg"), Path("/four.jpg"), Path("/x/four.jpg")]
    names = told_apart(paths, FORMS, "-")
    assert list(names) == paths
    assert len({name.casefold() for name in names.values()}) < len(paths)  # those that differ by case, in one folder
    assert names[Path("/x/x/one.jpg")] == "x-x-one.jpg"
    assert names[Path("/x/x/three.jpg")] == "three"
    assert [names[path] for path in paths[-2:]] == ["four", "x-four"]
    near = [Path("/b/p/a"), Path("/b/q/a")]
    assert told_apart(near, FORMS[1:], "/") == {near[0]: "p/a", near[1]: "q/a"}


def test_one_file_twice_has_one_name():
    assert set(told_apart([Path("/p/a"), Path("/p/q/../a")], FORMS, "-").values()) == {"a"}
