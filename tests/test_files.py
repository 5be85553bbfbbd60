"""Files are whole or absent."""

from __future__ import annotations

import json
import os

import pytest

from hida.errors import HidaError
from hida.files import atomic_path, require_file_place, require_folder_place, write_bytes, write_json


def test_a_new_file_appears_with_its_folders_and_nothing_beside_it(tmp_path):
    target = tmp_path / "a" / "b" / "c.bin"
    write_bytes(target, b"\x00\x01")
    assert target.read_bytes() == b"\x00\x01"
    assert os.listdir(target.parent) == ["c.bin"]


def test_the_temporary_path_has_the_suffix_and_the_folder_of_the_target(tmp_path):
    with atomic_path(tmp_path / "picture.png") as path:
        assert path.suffix == ".png"
        assert path.parent == tmp_path
        assert not (tmp_path / "picture.png").exists()
        path.write_bytes(b"x")
    assert (tmp_path / "picture.png").read_bytes() == b"x"


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "c.bin"
    target.write_bytes(b"old")

    def fail():
        with atomic_path(target) as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["c.bin"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_the_umask_decides_the_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "c.bin", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "c.bin").stat().st_mode & 0o777 == 0o640


def test_a_folder_in_the_way_leaves_no_temporary(tmp_path):
    (tmp_path / "c.bin").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_bytes(tmp_path / "c.bin", b"x")
    assert caught.value.filename == str(tmp_path / "c.bin")
    assert os.listdir(tmp_path) == ["c.bin"]


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "ä" * 125 + ".webp", "s." + "t" * 253])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(OSError, match="too long") as caught:
        write_bytes(tmp_path / f"{name}yy", b"x")
    assert caught.value.filename == str(tmp_path / f"{name}yy")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("check", [require_file_place, require_folder_place])
def test_a_place_that_cannot_be_written_is_said_before_any_work(tmp_path, check):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    check(tmp_path / "new/deep")
    for place in ("file/x", "file/x/y", "gone/x"):
        with pytest.raises(HidaError, match="where a folder was expected"):
            check(tmp_path / place)
    taken = tmp_path if check is require_file_place else tmp_path / "file"
    with pytest.raises(HidaError, match="is a folder" if check is require_file_place else "where a folder"):
        check(taken)
    assert sorted(os.listdir(tmp_path)) == ["file", "gone"]


def test_json_keeps_its_text(tmp_path):
    value = {"name": "Übung", "list": [1, 2.5, None]}
    write_json(tmp_path / "v.json", value)
    text = (tmp_path / "v.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Übung" in text
    assert text.endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "v.json", {"x": object()})
    assert json.loads((tmp_path / "v.json").read_text(encoding="utf-8")) == value


def test_a_name_that_is_no_utf_8_is_valid_json_and_comes_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "v.json", {"name": name})
    assert json.loads((tmp_path / "v.json").read_bytes()) == {"name": name}
