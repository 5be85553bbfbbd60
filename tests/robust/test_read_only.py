"""Folders that may not be written: one sentence before any work, and everything as it was.

With HIDA_ROBUST_ROUNDS above 1 more of a command's folders are tried.
"""

from __future__ import annotations

import os
import re
import shutil
import sys

import pytest
from commands import COMMANDS
from stage import differing, unsaid, without

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")]

ROUNDS = int(os.environ.get("HIDA_ROBUST_ROUNDS", 1))


def refusal(stage, command, work, place, needed, **how):
    """Run a command; return what is wrong with how it refuses a folder, or, if it is not needed, with its results."""
    files = lambda: stage.server.ask("files", folder=str(work))  # noqa: E731
    before, usual = files(), {*stage.reference(command)[1].said, *stage.said_after_older(command)}
    ended = stage.run(command.at(stage.inputs), work, **how)
    said, faults, found = [line for line in ended.said if line not in usual], [], files()
    if ended.status == 0 and not needed:
        found, expected = (without(each, f"{place}/") for each in (found, stage.reference(command)[0]))
        return differing(found, expected, command) + unsaid(said, work / place)
    faults += [] if ended.status == 2 else [f"its status is {ended.status}"]
    if len(said) != 1 or "Traceback" in ended.err:
        faults.append(f"it said {said[:1] + said[-2:]}")
    elif place not in said[0] or not re.search("read-only|permission|permitted", said[0], re.IGNORECASE):
        faults.append(f"the place or the reason is not named: {said[0]}")
    if ended.out or "%|" in ended.err:
        faults.append(f"it had begun to work: {(ended.out + ended.err)[:200]!r}")
    return faults + [
        f"{name} has changed" for name in before.keys() | found.keys() if before.get(name) != found.get(name)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_file_system_is_told_before_any_work(isolated, name):
    command, faults = COMMANDS[name], []
    for place, filled in (("out", True), ("cache", False), *[("out", False), ("tmp", False)][: 2 * (ROUNDS > 1)]):
        if place == "out" and name == "fetch":
            continue
        filled = filled and bool(command.older)
        work = isolated.work()
        isolated.server.must("mount", "-t", "tmpfs", "none", str(work / place))
        if filled:
            isolated.server.must("cp", "-a", f"{isolated.older(command)}/{place}/.", str(work / place))
        isolated.server.must("mount", "-o", "remount,ro", str(work / place))
        needed = place == "out" or (name == "fetch" and place == "cache")
        found = refusal(isolated, command, work, place, needed)
        faults += [f"hida {name}, {place}{' with results' * filled} is read-only: {fault}" for fault in found]
        isolated.server.must("umount", str(work / place))
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_without_permission_is_told_before_any_work(stage, name):
    command, faults = COMMANDS[name], []
    for place, deep in (("out", True), *[("out", False), ("cache", False), ("tmp", False)][: 3 * (ROUNDS > 1)]):
        if place == "out" and name == "fetch":
            place, deep = "cache", False
        work = stage.work()
        if deep:  # the folder to write does not exist, and may not be made
            shutil.rmtree(work / "out")
            work.chmod(0o555)
        else:
            (work / place).chmod(0o555)
        needed = place == "out" or (name == "fetch" and place == "cache")
        found = refusal(stage, command, work, place, needed, bare=True)
        faults += [f"hida {name}, {place} of mode 555{' above it' * deep}: {fault}" for fault in found]
        work.chmod(0o755)
        (work / place).exists() and (work / place).chmod(0o755)
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
