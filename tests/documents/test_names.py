"""A name of a document becomes one component of a path or is refused, on every system's terms."""

from __future__ import annotations

import os
from pathlib import PurePosixPath, PureWindowsPath

import pytest

from hida.documents import DocumentError, require_name, require_path, safe_name

OUTSIDE = [
    "..",
    "../x",
    "/x",
    "a/../../x",
    "a\\..\\x",
    "..\\x",
    "C:x",
    "C:\\x",
    "\\\\host\\x",
    "file:x",
    "a/./x",
    "./x",
]
NO_NAMES = [
    *OUTSIDE,
    "",
    ".",
    ".x",
    "a/b",
    "a\0",
    "a\nb",
    "a\x7f",
    "a\u2028b",
    "a\u0085b",
    "\ud800",
    "a" * 251,
    "ä" * 126,
]


@pytest.mark.parametrize("name", [*NO_NAMES, None, 1, True, ["a"], {"a": 1}])
def test_what_is_no_single_component_is_refused_in_one_short_line(name):
    with pytest.raises(DocumentError) as caught:
        require_name(name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name", ["a", "photo1_image0110", "a b", "a.b", "é", "e\u0301", "名", "a..b", "a" * 250, "ä" * 125]
)
def test_a_component_stays_as_it_is_and_leaves_room_for_a_suffix(tmp_path, name):
    assert require_name(name) == name
    (tmp_path / f"{name}.webp").touch()
    assert len(os.listdir(tmp_path)) == 1
    assert PurePosixPath(name).parts == PureWindowsPath(name).parts == (name,)


@pytest.mark.parametrize("path", [*OUTSIDE, "", "a//b", "a/", "a/b\0", "x" * 256, "a/" * 20 + "b", 3, None])
def test_paths_that_leave_their_folder_or_name_no_file_are_refused(path):
    with pytest.raises(DocumentError):
        require_path(path)


@pytest.mark.parametrize("path", ["photo/a.png", "a.webp", "photo/" + "a" * 250 + ".webp"])
def test_paths_inside_stay_as_they_are(path):
    assert require_path(path) == path


@pytest.mark.parametrize("text", [*filter(None, NO_NAMES), "a?b", "ink/ä b", "x" * 400, "日" * 300])
def test_a_safe_name_can_be_made_of_anything(text):
    assert require_name(safe_name(text))


def test_safe_names_of_long_texts_differ_where_the_texts_do():
    assert len({safe_name("x" * 300 + end) for end in "abc"}) == 3
    assert safe_name("e\u0301") == safe_name("\u00e9") == "\u00e9"
