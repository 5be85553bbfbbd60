"""A folder belongs to one process at a time, and to nobody after any end of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from hida.errors import HidaError
from hida.files import folder_lock

HOLDER = """
import sys, time
from hida.files import folder_lock
with folder_lock(sys.argv[1], "hida train"):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_has_the_folder_and_since_when(holder, tmp_path):
    told = rf"'{tmp_path}/run' is in use by hida train, process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d"
    with pytest.raises(HidaError, match=told), folder_lock(tmp_path / "run", "hida evaluate"):
        pass
    assert os.listdir(tmp_path / "run") == [".hida-lock"]


def test_the_end_of_the_first_frees_the_folder_and_leaves_nothing(holder, tmp_path):
    holder.communicate("")
    assert os.listdir(tmp_path) == []
    with folder_lock(tmp_path / "run", "hida train"):
        assert os.listdir(tmp_path / "run") == [".hida-lock"]
        (tmp_path / "run" / "result").touch()
    assert os.listdir(tmp_path / "run") == ["result"]


def test_a_killed_process_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder_lock(tmp_path / "run", "hida train"):
        assert re.search(rf"process {os.getpid()} ", (tmp_path / "run" / ".hida-lock").read_text(encoding="utf-8"))
    assert os.listdir(tmp_path / "run") == []


def test_who_waits_goes_on_when_the_folder_is_free(holder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", lambda _: holder.communicate(""))
    with folder_lock(tmp_path / "run", "hida weights fetch", wait=True):
        assert holder.returncode == 0
    told = capsys.readouterr().err
    assert told.startswith(f"note: waiting for hida train, process {holder.pid} on ")
    assert told.count("\n") == 1


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".hida-lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"), folder_lock(tmp_path / "run", "hida train"):
        pass
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "precious"
