"""Keep a timed training going until its minutes are over: started again, more carefully each time, whenever it fails.

python bench/gpu/supervise.py JOB.json

A job: {"command", "run", "state", "deadline" (of time.time()), "startup" (seconds from start to the first iteration)}.
The command is that of hida train without its minutes. After a failure it continues from its newest checkpoint: first
as it is after a signal from outside, then without CUDA graphs, then with the reference ops. What happened is in the
state file, a JSON object that is replaced in one step.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from hida.files import write_json

CAREFUL = ((), ("--train.no-cuda-graph",), ("--train.no-cuda-graph",))
"""options of the first attempt, and of those after a failure"""
LEAST = 2.0
"""seconds of training for which nothing is started any more"""


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    state: dict = {"supervisor": os.getpid(), "deadline": job["deadline"], "attempts": [], "status": "running"}
    stopping: list[int] = []
    process: subprocess.Popen | None = None

    def stop(number: int, frame: object) -> None:
        stopping.append(number)
        if process is not None and process.poll() is None:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    level = 0
    while True:
        minutes = minutes_of(Path(job["run"]), job["deadline"] - job["startup"])
        if minutes is None or stopping:
            state["status"] = "out of time"
            break
        reference = level == len(CAREFUL) - 1
        command = [*job["command"], "--train.minutes", f"{minutes:.4f}", *CAREFUL[level]]
        environment = os.environ | ({"HIDA_OPS": "reference"} if reference else {})
        process = subprocess.Popen(command, env=environment)
        state["attempts"].append({"command": command, "pid": process.pid, "reference": reference, "begun": time.time()})
        write_json(job["state"], state)
        code = process.wait()
        state["attempts"][-1] |= {"code": code, "ended": time.time()}
        write_json(job["state"], state)
        if code == 0:
            state["status"] = "finished"
            break
        if code > 0 or -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
            level += 1
        if level == len(CAREFUL) or len(state["attempts"]) == 6:
            state["status"] = "failed"
            break
        time.sleep(0.5)
    write_json(job["state"], state)
    return 0 if state["status"] == "finished" else 1


def minutes_of(run: Path, end: float) -> float | None:
    """Return the minutes that a run which starts now must be given to end then; None where it is not worth while.

    A continued run counts the seconds that its checkpoint has already.
    """
    left = end - time.time()
    return (elapsed(run) + left) / 60 if left > LEAST else None


def elapsed(run: Path) -> float:
    """Return the seconds in the newest checkpoint of a run, 0 without one. Needs nothing but Python."""
    for path in sorted(run.glob("checkpoints/iteration-*.safetensors"), reverse=True):
        try:
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                state = json.loads(json.loads(file.read(size))["__metadata__"]["state"])
            return float(state.get("elapsed", 0.0))
        except (OSError, ValueError, KeyError, struct.error):
            continue
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
