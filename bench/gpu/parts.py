"""Parts of a programme that must bring back something whatever fails: each in processes of its own, cut at its time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hida.files import atomic_path, write_json

GRACE = (10.0, 3.0)
"""seconds that a part which is cut has after SIGINT to write what it knows, and after SIGTERM"""
LONGEST_LOG = 1 << 20


@dataclass
class Outcome:
    """What became of a part: "ok", "failed" (with its exit status), "cut" at its limit, or "skipped" (and why)."""

    name: str
    status: str
    seconds: float = 0.0
    code: int | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def __str__(self) -> str:
        code = f" (exit status {self.code})" if self.status == "failed" else ""
        return f"{self.name:<10} {self.status}{code}, {self.seconds:.0f} s" + (f": {self.note}" if self.note else "")


@dataclass
class Task:
    """A part to run: a command, more environment, and seconds at most."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


class Programme:
    """The clock of one call, the folder that its results go to, and what each part did.

    Args:
        name: of the record, ``NAME.json`` in ``out``.
        out: what is brought back: the record and ``NAME.tar.gz``, made anew after every part.
        work: where results and logs are meanwhile; ``second`` finds there what ``first`` left.
        seconds: of the whole call.
        replaced: shell commands that take the place of parts' own.
    """

    def __init__(
        self, name: str, out: Path, work: Path, seconds: float, replaced: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.out, self.work = name, out, work
        self.start, self.seconds = time.monotonic(), seconds
        self.replaced = dict(replaced or {})
        self.environment = dict(os.environ)
        self.outcomes: list[Outcome] = []
        self.running: list[subprocess.Popen] = []
        self.record: dict[str, object] = {}
        for folder in (out, work / "logs", work / "results"):
            folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Return the seconds that this call still has."""
        return self.seconds - (time.monotonic() - self.start)

    def log(self, name: str) -> Path:
        return self.work / "logs" / f"{name}.log"

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", flush=True)

    def run(self, *tasks: Task, reserve: float = 0.0) -> list[Outcome]:
        """Run tasks side by side, each for its seconds at most, and less where ``reserve`` would not be left."""
        most = self.left() - reserve
        if most < 3:
            return [self.skip(task.name, "no time is left for it") for task in tasks]
        # Of the background it is inherited that SIGINT is ignored, and tasks are cut by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ThreadPoolExecutor(len(tasks)) as pool:
            try:
                found = list(pool.map(lambda task: self._carry_out(task, min(task.seconds, most)), tasks))
            except BaseException:  # interrupted: nothing may outlive it
                for process in self.running:
                    end_group(process.pid)
                raise
        self.running.clear()
        for outcome in found:
            self._note(outcome)
        return found

    def _carry_out(self, task: Task, seconds: float) -> Outcome:
        """Run a task in a process group of its own, and press it to end when its time is over."""
        begun, was_cut = time.monotonic(), False
        command = ["bash", "-c", self.replaced[task.name]] if task.name in self.replaced else list(task.command)
        try:
            with self.log(task.name).open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**self.environment, **task.environment},
                    start_new_session=True,
                )
        except OSError as error:
            return Outcome(task.name, "skipped", note=f"it could not be started ({error.strerror})")
        self.running.append(process)
        for number, patience in ((signal.SIGINT, seconds), (signal.SIGTERM, GRACE[0]), (signal.SIGKILL, GRACE[1])):
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                was_cut = True
                if number == signal.SIGINT:  # it alone: a benchmark ends its workers, and then it can report
                    process.send_signal(number)
                else:
                    signal_group(process.pid, number)
        code = process.wait()
        end_group(process.pid)  # what it has left running
        status = "cut" if was_cut else "ok" if code == 0 else "failed"
        return Outcome(task.name, status, time.monotonic() - begun, code)

    def skip(self, name: str, why: str) -> Outcome:
        outcome = Outcome(name, "skipped", note=why)
        self._note(outcome)
        return outcome

    def bring(self, more: Iterable[Path] = ()) -> None:
        """Lay down the record, and results and logs as one archive; each replaces its predecessor in one step."""
        self.record |= {"parts": [asdict(o) for o in self.outcomes], "seconds": time.monotonic() - self.start}
        write_json(self.out / f"{self.name}.json", self.record)
        files = [p for p in sorted((self.work / "results").rglob("*")) if p.is_file()] + list(more)
        with atomic_path(self.out / f"{self.name}.tar.gz") as path:
            self._archive(path, files)

    def _archive(self, path: Path, files: list[Path]) -> None:
        def add(file: Path, name: str, most: int = 0) -> None:  # its last ``most`` bytes; 0: all
            with contextlib.suppress(OSError):  # what cannot be read is left out
                data = file.read_bytes()[-most:]
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

        with tarfile.open(path, "w:gz", compresslevel=4) as archive:
            for file in files:
                add(file, file.name)
            for log in sorted((self.work / "logs").glob("*.log")):
                add(log, f"logs/{log.name}", LONGEST_LOG)

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.say(str(outcome))
        self.bring()


def signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def end_group(leader: int) -> None:
    signal_group(leader, signal.SIGKILL)


def text_of(path: Path) -> str:
    """Return a file's text, or nothing where it cannot be read (yet)."""
    try:
        return path.read_text(errors="replace", encoding="utf-8")
    except OSError:
        return ""


def json_of(path: Path) -> dict:
    """Return a file's JSON object, or an empty one where there is none (yet)."""
    try:
        return json.loads(text_of(path))
    except ValueError:
        return {}
