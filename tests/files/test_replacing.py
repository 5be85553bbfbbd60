"""Whoever looks while a file is replaced, or after the power has failed, finds the old one or the new one."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import torch

from hida.config import Config
from hida.files import write_bytes, write_json
from hida.files.locks import hold
from hida.images.io import write_png
from hida.weights import checkpoint

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="an open file can be replaced, and a folder synced, on POSIX"
)
WRITERS = {
    "write_bytes": lambda target: write_bytes(target, b"new"),
    "write_json": lambda target: write_json(target, {"new": 1}),
    "write_png": lambda target: write_png(target, np.zeros((9, 9), np.uint8)),
    "checkpoint": lambda target: checkpoint.save(target, checkpoint.WEIGHTS, Config(), {}, {"a": torch.ones(9)}),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@every_writer
def test_who_is_reading_the_old_file_reads_it_to_its_end(tmp_path, write):
    target, old = tmp_path / "file.bin", b"old" * 999
    target.write_bytes(old)
    with target.open("rb") as reader:
        begin = reader.read(5)
        write(target)
        assert begin + reader.read() == old
    assert target.read_bytes() != old


@every_writer
def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_at_the_end(tmp_path, monkeypatch, write):
    target, fsync, seen = tmp_path / "file.bin", os.fsync, []
    target.write_bytes(b"old")

    def note(handle):
        status = os.fstat(handle)
        seen.append((status.st_ino, 0 if stat.S_ISDIR(status.st_mode) else status.st_size, target.stat().st_ino))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    old = target.stat().st_ino
    write(target)
    new = target.stat()
    assert seen[0] == (new.st_ino, new.st_size, old)
    assert seen[-1] == (tmp_path.stat().st_ino, 0, new.st_ino)


def test_a_lock_on_a_file_that_was_replaced_is_none_on_its_successor(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with path.open("rb") as former:
        write_bytes(path, b"")
        assert hold(former.fileno(), path) == "gone"
        with path.open("rb") as current:
            assert hold(current.fileno(), path) == "held"
