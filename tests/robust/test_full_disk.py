"""A disk that becomes full at any step of any command: one sentence, nothing half-written, nothing lost.

HIDA_ROBUST_ROUNDS=10 tries ten times as many sizes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import COMMANDS
from stage import differing, leftovers, lost, torn, unsaid, without
from watch import contents

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")]

ROUNDS = int(os.environ.get("HIDA_ROBUST_ROUNDS", 1))
PAGE = 4096
ROOMY = "size=256m"


def pages(folder: Path) -> int:
    """Return the bytes that a tmpfs gives to the files of a folder."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def disk(isolated):
    """Mount a tmpfs of some size in a folder that is new, or a copy of another; unmounted afterwards."""
    mounted = []

    def mount(place: Path, size: int, copied: Path | None = None) -> None:
        isolated.server.must("mount", "-t", "tmpfs", "-o", ROOMY, "none", str(place))
        mounted.append(place)
        if copied is not None:
            isolated.server.must("cp", "-a", f"{copied}/.", str(place))
        isolated.server.must("mount", "-o", f"remount,size={size}", str(place))

    yield mount
    for place in mounted:
        isolated.server.must("umount", str(place))


def faults_of(isolated, disk, command, place, share, with_older):
    """Run out of space in ``place`` after a share of what the command writes there; return what is wrong."""
    older = isolated.older(command) if with_older else None
    expected = isolated.after_older(command) if older else isolated.reference(command)[0]
    reference, usual = isolated.reference(command)[0], isolated.reference(command)[1].said
    usual = {*usual, *isolated.said_after_older(command)}
    work = isolated.work()
    if older:
        shutil.copytree(older, work, dirs_exist_ok=True)
        for path in (work / place).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    full = pages(isolated.reference(command)[3] / place)
    size = (pages(older / place) if older else 0) + int(share * full) // PAGE * PAGE
    disk(work / place, max(size, PAGE), older / place if older else None)
    files = lambda: isolated.server.ask("files", folder=str(work))  # noqa: E731
    before, words = files(), command.at(isolated.inputs)
    ended = isolated.run(words, work)
    found, faults = files(), []
    said = [line for line in ended.said if line not in usual]
    if ended.status == 0:
        # There was room after all, or what did not fit is not needed.
        kept = without(found, "cache/"), without(expected, "cache/")
        return [f"its status is 0, and {fault}" for fault in [*differing(*kept, command), *unsaid(said, work / place)]]
    faults += [] if ended.status == 2 else [f"its status is {ended.status}"]
    if len(said) != 1 or "Traceback" in ended.err or not re.search("space|free some", ended.err):
        faults.append(f"it said {said[:1] + said[-2:]}")
    elif place not in said[0]:
        faults.append(f"the place is not named: {said[0]}")
    faults += torn(found) + lost(before, found, command, expected) + leftovers(found, before, reference, command.kept)
    isolated.server.must("mount", "-o", f"remount,{ROOMY}", str(work / place))
    again = isolated.run(words, work)
    if again.status != 0:
        faults.append(f"with room the same command ends with {again.status}: {again.err[-300:]!r}")
    else:
        faults += [f"with room, {fault}" for fault in differing(files(), expected, command)]
    return faults


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(isolated, disk, name):
    command = COMMANDS[name]
    place = "cache" if name == "fetch" else "out"
    random = np.random.default_rng([0, *name.encode()])
    tries = [(place, share, k % 2 == 1) for k, share in enumerate((0.0, 0.7) if ROUNDS == 1 else (0.0, 0.3, 0.7, 0.95))]
    tries += [(place, float(random.uniform(0, 1)), k % 2 == 1) for k in range(4 * (ROUNDS - 1))]
    if place == "out":
        tries += [("cache", 0.0, False)] + [("tmp", 0.0, False)] * (ROUNDS > 1)
    if name == "train-depth" and ROUNDS == 1:
        tries = tries[1:2]  # each takes half a minute: the teacher looks at every photo
    faults = []
    for place, share, with_older in tries:
        what = f"{place} of {share:.2f}{' with older results' if with_older else ''}"
        found = faults_of(isolated, disk, command, place, share, with_older and bool(command.older))
        faults += [f"hida {name}, {what}: {fault}" for fault in found]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def test_a_pack_is_unpacked_on_a_full_disk_whole_or_not_at_all(isolated, disk):
    packed = isolated.reference(COMMANDS["pack"])[3] / "out" / "set.zip"
    words = ["evaluate", "--weights", f"{isolated.inputs}/tiny.safetensors", "--target", "out/set.zip"]
    words += ["--metrics", "scoot", "--device", "cpu", "--out", "home/scores"]
    need, faults = pages(packed.parent), []
    for share in (0.0, 0.5, 0.9):
        work = isolated.work()
        (work / "source").mkdir()
        shutil.copy(packed, work / "source")
        disk(work / "out", need + max(int(share * need) // PAGE * PAGE, PAGE), work / "source")
        ended = isolated.run(words, work)
        left = isolated.server.ask("files", folder=str(work / "out"))
        if ended.status != 2 or len(ended.said) != 1 or "space" not in ended.err or "out" not in ended.said[0]:
            faults.append(f"at {share} it ends with {ended.status}: {ended.err[-300:]}")
        faults += [f"at {share}, {name} is left" for name in left if name != "set.zip"]
        isolated.server.must("mount", "-o", f"remount,{ROOMY}", str(work / "out"))
        again = isolated.run(words, work)
        faults += [] if again.status == 0 else [f"with room it ends with {again.status}: {again.err[-300:]}"]
        left = isolated.server.ask("files", folder=str(work / "out"))
        faults += [f"with room, {name} is left" for name in left if not name.startswith("set.zip")]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def test_contents_says_what_is_torn(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1', encoding="utf-8")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    (tmp_path / "c.jsonl").write_text('{"a": 1}\n{"a"', encoding="utf-8")
    (tmp_path / "d.jsonl").write_text('{"a"\n{"a": 1}\n', encoding="utf-8")
    (tmp_path / "e.safetensors").write_bytes(b"\0" * 9)
    assert [line.split()[0] for line in torn(contents(tmp_path))] == ["a.json", "b.png", "d.jsonl", "e.safetensors"]
