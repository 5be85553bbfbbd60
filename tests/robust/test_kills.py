"""Commands killed at random moments: nothing is lost, torn or left over, and the same command then finishes.

Five commands, 16 times each. HIDA_ROBUST_ROUNDS=10 kills all commands, each ten times as often, and HIDA_ROBUST_SEED
chooses other moments. Half of the kills come at a moment of time, half at a moment of the process's own, where a fault
would be: before it does something to a file, or after, when the system's answer has not reached anybody yet.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from commands import COMMANDS
from stage import differing, leftovers, lost, processes_left, torn
from watch import contents

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")]

ROUNDS, SEED = (int(os.environ.get(f"HIDA_ROBUST_{name}", default)) for name, default in (("ROUNDS", 1), ("SEED", 0)))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
STATUS = {signal.SIGTERM: (143, -15), signal.SIGHUP: (129, -1), signal.SIGINT: (130, -2), signal.SIGKILL: (-9,)}
PATIENCE = 10.0
LANES = 2


class Kill:
    """One kill: of which command, by which signal, when, and in what kind of process."""

    def __init__(self, stage, command, number, kind, share):
        self.stage, self.command, self.number, self.kind, self.share = stage, command, number, kind, share
        self.faults = []

    def __str__(self):
        return f"hida {self.command.name}, {self.number.name}, {self.kind} at {self.share:.3f}"

    def run(self, with_older: bool, fresh_seconds: float) -> bool:
        """Kill, look, and finish; return whether the process was still running."""
        stage, command = self.stage, self.command
        reference, whole, events, _ = stage.reference(command)
        older = stage.older(command) if with_older else None
        work = stage.work(older)
        before, words = contents(work), command.at(stage.inputs)
        if self.kind in events:
            moment = 1 + int(self.share * events[self.kind])
            pid = stage.begin(words, work, number=int(self.number), **{self.kind: moment})
            ended = stage.end(pid, work, whole.seconds * 10 + PATIENCE)
        elif self.kind == "time":
            pid = stage.begin(words, work)
            time.sleep(self.share * whole.seconds)
            os.kill(pid, self.number)
            ended = stage.end(pid, work, PATIENCE)
        else:
            process = stage.begin_fresh(words, work)
            pid = process.pid
            time.sleep(self.share * fresh_seconds)
            process.send_signal(self.number)
            ended = stage.end_fresh(process, work, PATIENCE)
        found = contents(work)
        stopped = command.name == "train" and "stopped at iteration" in ended.out
        if ended.status == 0 and not stopped and not leftovers(found, before, reference, command.kept):
            shutil.rmtree(work)
            return False  # it had done its work
        expected = stage.reference(command)[0] if older is None else stage.after_older(command)
        self._check(ended, found, before, reference, expected)
        self.faults += processes_left(pid)
        again = stage.run(words, work)
        if again.status != 0:
            self.faults.append(f"the same command ends with {again.status}: {again.err[-600:]!r}")
        self.faults += [f"after the same command, {fault}" for fault in self._compare(contents(work), dict(expected))]
        if not self.faults:
            shutil.rmtree(work)
        else:
            self.faults.append(f"see {work}")
        return True

    def _check(self, ended, found, before, reference, expected):
        self.faults += torn(found) + lost(before, found, self.command, expected)
        if self.number == signal.SIGKILL:
            return
        if ended.status == -signal.SIGKILL:
            self.faults.append(f"it did not end within {PATIENCE} s")
        elif ended.status not in (*STATUS[self.number], *([0] if self.command.name == "train" else [])):
            self.faults.append(f"its status is {ended.status}")
        if ended.status == 0 and not any(re.match(r"out/checkpoints/.*\.safetensors", name) for name in found):
            self.faults.append("its status is 0, and there is no checkpoint")
        usual = {*self.stage.reference(self.command)[1].said, *self.stage.said_after_older(self.command)}
        said = [line for line in ended.said if line not in usual]
        if len(said) > 1 or "Traceback" in ended.err:
            self.faults.append(f"it said {said[:1] + said[-3:]}")
        self.faults += leftovers(found, before, reference, self.command.kept)

    def _compare(self, found, expected):
        if self.command.name != "train":
            return differing(found, expected, self.command)
        # A run that was stopped has a checkpoint more on its way, of which it keeps as many.
        saved = [sorted(name for name in each if re.match(r"out/checkpoints/[^.]", name)) for each in (found, expected)]
        faults = [] if saved[0][-1:] == saved[1][-1:] and len(saved[0]) <= 2 else [f"checkpoints are {saved[0]}"]
        for each, names in zip((found, expected), saved, strict=True):
            for name in names[:-1]:
                del each[name]
        return faults + differing(found, expected, self.command)


NAMES = ["train", "prepare", "evaluate", "sketch", "fetch"]


@pytest.mark.parametrize("name", NAMES if ROUNDS == 1 else COMMANDS)
def test_a_kill_at_any_moment_loses_nothing_and_leaves_nothing(stage, name):
    command = COMMANDS[name]
    stage.reference(command)
    if command.older:
        stage.after_older(command)
    work = stage.work()
    began = time.monotonic()
    assert stage.end_fresh(stage.begin_fresh(command.at(stage.inputs), work), work).status == 0
    fresh_seconds = time.monotonic() - began
    # In fresh processes, which take the longest, one signal of the four; each has its turn with some command.
    turns = [SIGNALS[(NAMES.index(name) if name in NAMES else len(name)) % 4]]
    plan = [
        (number, kind)
        for _ in range(ROUNDS)
        for number in SIGNALS
        for kind in ("time", "before", "after", "fresh" if number in turns else "time")
    ]

    def one(turn):
        number, kind = plan[turn]
        own = np.random.default_rng([SEED, *name.encode(), turn])
        for _ in range(5):
            kill = Kill(stage, command, number, kind, float(own.uniform(0, 1)))
            if kill.run(bool(turn % 2), fresh_seconds):
                break
        print(kill, *kill.faults, sep="\n    ", flush=True)  # with pytest -s: as it goes
        return kill

    with ThreadPoolExecutor(LANES) as lanes:
        kills = list(lanes.map(one, range(len(plan))))
    faults = [f"{kill}: {fault}" for kill in kills for fault in kill.faults]
    if faults:
        bad = sum(bool(kill.faults) for kill in kills)
        pytest.fail(f"{bad} of {len(kills)} kills:\n" + "\n".join(faults), pytrace=False)


@pytest.mark.parametrize("name", ["compare", "snapshot"])
def test_a_kill_between_any_two_things_done_to_files_leaves_nothing(stage, name):
    """All moments of two commands that write one file."""
    command = COMMANDS[name]
    faults, landed = [], 0
    for kind, events in stage.reference(command)[2].items():
        for moment in range(events):
            for number in (signal.SIGTERM, signal.SIGKILL):
                kill = Kill(stage, command, number, kind, (moment + 0.5) / events)
                landed += kill.run(bool(moment % 2), 0)
                faults += [f"{kill}: {fault}" for fault in kill.faults]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
    assert landed > 10
