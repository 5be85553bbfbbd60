"""Files are whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from hida.errors import HidaError
from hida.files import (
    atomic_path,
    folder_lock,
    require_file_place,
    require_folder_place,
    temporary_folder,
    write_bytes,
    write_json,
)


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


@pytest.fixture
def device(tmp_path):
    """Return a device like /dev/null, or skip where only an administrator may make one."""
    path = tmp_path / "mynull"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.write_bytes(b"")
    except OSError:
        pytest.skip("no device can be made here")
    return path


def test_a_device_stays_one_and_takes_what_is_written(device):
    require_file_place(device)
    write_bytes(device, b"x" * 1000)
    assert stat.S_ISCHR(device.stat().st_mode)
    assert os.listdir(device.parent) == ["mynull"]


def test_a_full_device_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "full.png").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(tmp_path / "full.png", b"x" * 100_000)
    assert caught.value.filename == str(tmp_path / "full.png")
    assert os.readlink(tmp_path / "full.png") == "/dev/full"


def test_a_pipe_is_written_to_when_all_is_there(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe.json").read_bytes)
        with contextlib.suppress(RuntimeError), atomic_path(tmp_path / "pipe.json") as path:
            assert path.suffix == ".json"
            path.write_bytes(b"half")
            raise RuntimeError
        write_bytes(tmp_path / "pipe.json", b"whole")
        assert read.result(10) == b"whole"
    assert stat.S_ISFIFO((tmp_path / "pipe.json").stat().st_mode)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_its_target_is_written(tmp_path, there):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "link").symlink_to("file")
    (tmp_path / "near").symlink_to("far/link")
    if there:
        (tmp_path / "far" / "file").write_bytes(b"old")
    require_file_place(tmp_path / "near")
    write_bytes(tmp_path / "near", b"new")
    assert (tmp_path / "far" / "file").read_bytes() == b"new"
    assert (os.readlink(tmp_path / "near"), os.readlink(tmp_path / "far" / "link")) == ("far/link", "file")
    assert sorted(os.listdir(tmp_path / "far")) == ["file", "link"]


@pytest.mark.parametrize("name", ["/dev/stdout", "printed"])
def test_what_is_printed_into_keeps_what_was_printed_before_and_after(tmp_path, name):
    code = (
        "import sys; from hida.files import write_bytes\n"
        "print('before'); write_bytes(sys.argv[1], b'written\\n'); print('after')"
    )
    with (tmp_path / "printed").open("wb") as out:
        subprocess.run([sys.executable, "-c", code, name], cwd=tmp_path, stdout=out, check=True)
    assert (tmp_path / "printed").read_bytes() == b"before\nwritten\nafter\n"
    assert os.listdir(tmp_path) == ["printed"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_file_that_is_replaced_keeps_its_rights(tmp_path):
    (tmp_path / "private").touch()
    (tmp_path / "private").chmod(0o600)
    write_bytes(tmp_path / "private", b"x")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


KILLED = """
import os, sys
from pathlib import Path
from hida.files import atomic_path, temporary_folder
with temporary_folder(".", "download") as folder, atomic_path("picture.png") as path:
    (folder / "half").write_bytes(b"half"), path.write_bytes(b"half")
    print("ready", flush=True)
    if sys.argv[1:]:
        os.kill(os.getpid(), 9)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    (tmp_path / ".other.part").touch()
    killed = subprocess.run([sys.executable, "-c", KILLED, "kill"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert killed.returncode == -9
    assert len(os.listdir(tmp_path)) == 3
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, stdin=-1, stdout=-1) as living:
        living.stdout.readline()
        assert len(os.listdir(tmp_path)) == 3  # the first's are gone, its own are there
        write_bytes(tmp_path / "other.png", b"x")
        living.communicate(b"")
    assert living.returncode == 0
    assert sorted(os.listdir(tmp_path)) == [".other.part", "other.png", "picture.png"]


def write(folder):
    write_bytes(folder / "there", b"new")


def fill(folder):
    with temporary_folder(folder, "name") as made:
        (made / "a").write_bytes(b"x")
        (made / "b").mkdir()


def lock(folder):
    with folder_lock(folder, "a test"):
        pass


@pytest.mark.parametrize("work", [write, fill, lock])
def test_an_interrupt_when_the_system_has_done_something_and_nobody_knows_it_yet_leaves_nothing(tmp_path, work):
    """Python handles a signal that came during a call before it stores what the call returned."""
    fcntl = pytest.importorskip("fcntl")
    calls = {getattr(os, name) for name in ("open", "mkdir", "rmdir", "unlink", "replace", "chmod", "fsync")}
    (tmp_path / "there").write_bytes(b"old")
    moment = 0
    while True:
        moment, seen = moment + 1, 0

        def interrupt(frame, event, function, moment=moment):
            nonlocal seen
            if event == "c_return" and function in {*calls, fcntl.flock}:
                seen += 1
                if seen == moment:
                    raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            work(tmp_path)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.setprofile(None)
        assert (moment, os.listdir(tmp_path)) == (moment, ["there"])
        assert (tmp_path / "there").read_bytes() in (b"old", b"new")
    assert moment > 3
