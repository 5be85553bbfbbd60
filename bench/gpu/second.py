"""The second call: wait for the training until its minutes are over, then bring out its weights and its logs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu.first import log_lines, tail
from bench.gpu.packing import MIB, ROOT, sha256
from bench.gpu.parts import Programme, json_of, signal_group

STOPPING = 25.0
"""seconds that a training which is told to stop has to write its weights"""


def second(options) -> int:
    """Wait, stop what still runs, make weights of the newest checkpoint where there are none; 1 without weights."""
    programme = Programme("second", options.out, options.work, 60 * options.minutes)
    programme.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str((options.work / "site").resolve())])
    run, weights = options.work / "run", options.work / "run" / "weights.safetensors"
    job = json_of(options.work / "job.json")
    if not job:
        programme.say(f"no training was begun in '{options.work}'; run the part first")
        programme.bring()
        return 2
    wait(programme, options.work, job)
    if not weights.is_file():
        programme.say("the training has left no weights: they are made of its newest checkpoint")
        snapshot(programme, run, weights)
    logs = [p for p in (run / "log.jsonl", run / "config.json", *sorted(run.glob("samples/*.png"))[-1:]) if p.is_file()]
    programme.record |= {"train": json_of(options.work / "train-state.json"), "lines": len(log_lines(run))}
    for line in log_lines(run)[-4:]:
        programme.say(line[:300])
    if not weights.is_file():
        programme.say("there are no weights and no checkpoint; the end of the training's log:")
        programme.say(tail(programme.log("train"), 12))
        programme.bring(logs)
        return 1
    programme.bring(logs)  # before the pieces: it says how much room is left
    told = programme.record["weights"] = bring_pieces(options, weights, 0, counts_others=True)
    programme.bring(logs)
    programme.say(json.dumps(told))
    if not told["brought"]:
        programme.say("no piece fits beside the logs: raise --files or --return-mib, or lower --piece-mib")
    return 0 if told["brought"] else 1


def fetch(options) -> int:
    """Bring the pieces from ``--from`` on."""
    weights = options.work / "run" / "weights.safetensors"
    if not weights.is_file():
        print(f"short: there is no '{weights}': run the part second first", file=sys.stderr)
        return 2
    pieces = -(-weights.stat().st_size // int(options.piece_mib * MIB))
    if options.first_piece >= pieces:
        print(f"short: there are pieces 0 to {pieces - 1}, none from {options.first_piece} on", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(bring_pieces(options, weights, options.first_piece, counts_others=False)))
    return 0


def wait(programme: Programme, work: Path, job: dict) -> None:
    """Wait until the training has ended, its deadline is over, or this call must end; then stop it."""
    grace = 2 * STOPPING  # of this call's own time: stopping and bringing out
    said = 0.0
    while True:
        state = json_of(work / "train-state.json")
        if state.get("status", "running") != "running" or not alive(state):
            break
        if time.time() > job["deadline"] + 5 or programme.left() < grace:
            break
        if time.monotonic() - said > 30:
            said = time.monotonic()
            lines = log_lines(work / "run")
            programme.say(f"training: {lines[-1][:160] if lines else 'no line in its log yet'}")
        time.sleep(0.25)
    if alive(state):
        programme.say("the training is told to stop")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids(state)[0], signal.SIGTERM)  # a supervisor tells its training
        end = time.monotonic() + min(STOPPING, max(2.0, programme.left() - 10))
        while alive(state) and time.monotonic() < end:
            time.sleep(0.1)
        if alive(state):
            programme.say("it does not stop: it is killed")
            signal_group(state["supervisor"], signal.SIGKILL)  # the training's group, too


def snapshot(programme: Programme, run: Path, weights: Path) -> None:
    command = [sys.executable, "-m", "hida", "weights", "snapshot", str(run), str(weights)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        seconds = max(5.0, programme.left() - 5)
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=programme.environment,
            capture_output=True,
            encoding="utf-8",
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            programme.say(done.stderr.strip()[-300:])


def alive(state: dict) -> bool:
    return bool(pids(state))


def pids(state: dict) -> list[int]:
    """Return which of a state's processes run: the supervisor, and the training, which may outlive it."""
    named = [(state.get("supervisor"), "supervise.py")]
    named += [(attempt["pid"], "hida.train") for attempt in state.get("attempts", [])[-1:]]
    found = []
    for pid, word in named:
        with contextlib.suppress(OSError, IndexError):
            folder = Path(f"/proc/{pid}")
            ends = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
            # Numbers are given out again: the words must fit.
            if not ends and word in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(pid)
    return found


def bring_pieces(options, weights: Path, first: int, counts_others: bool) -> dict:
    """Cut the weights into pieces and lay down those from ``first`` on, as many as the limits of a return allow.

    Pieces of an earlier call go first: of other sizes, they would be put together with these.
    """
    for stale in options.out.glob("weights.part-*"):
        stale.unlink()
    there = [p.stat().st_size for p in options.out.iterdir() if p.is_file()] if counts_others else []
    data, size = weights.read_bytes(), int(options.piece_mib * MIB)
    pieces = [data[k : k + size] for k in range(0, len(data), size)]
    room, files = options.return_mib * MIB - sum(there), options.files - len(there)
    brought = []
    for number in range(first, len(pieces)):
        if files < 1 or len(pieces[number]) > room:
            break
        path = options.out / f"weights.part-{number:02d}"
        path.write_bytes(pieces[number])
        brought.append(path.name)
        room, files = room - len(pieces[number]), files - 1
    next_piece = first + len(brought)
    same = f" --work {shlex.quote(str(options.work))} --piece-mib {options.piece_mib:g}"
    return {
        "sha256": sha256(weights),
        "bytes": len(data),
        "pieces": len(pieces),
        "brought": brought,
        "to put together": "cat weights.part-* > weights.safetensors; sha256sum weights.safetensors",
        "left": f"bash bench/gpu/short.sh fetch --from {next_piece}{same}" if next_piece < len(pieces) else "",
    }
