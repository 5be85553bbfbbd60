"""Run a command in a folder of its own, in a forked or a fresh process, and compare what it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from commands import Command
from watch import TORN, contents

DRIVER = Path(__file__).with_name("driver.py")
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("out", "cache", "tmp", "home")
_BAR = re.compile(r"\d+%\||\[\d+:\d\d|^\s*$")
_NOTE = re.compile(r"(note|fault|warning): ")


@dataclass
class Ended:
    """A process that has ended: its status (negative: by a signal), what it said, and the seconds that it took."""

    status: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def said(self) -> list[str]:
        """The lines of stderr without progress bars and notes."""
        lines = [piece for line in self.err.split("\n") for piece in line.split("\r")]
        return [line for line in lines if not _BAR.search(line) and not _NOTE.match(line)]


class Server:
    """The server of driver.py, begun in a mount namespace of its own with ``prefix``."""

    def __init__(self, scratch: Path, prefix: tuple[str, ...] = ()) -> None:
        self.log = (scratch / "server.log").open("w+", encoding="utf-8")
        scratch.joinpath("matplotlib").mkdir(exist_ok=True)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "ROBUST_SCRATCH": str(scratch)}
        env |= {"MPLCONFIGDIR": str(scratch / "matplotlib"), "PYTHONPATH": str(ROOT)}
        words = [*prefix, sys.executable, str(DRIVER), "serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(words, env=env, text=True, start_new_session=True, **pipes)
        self.lock = threading.Lock()

    def ask(self, do: str, **request):
        with self.lock:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"the server has ended: {self.log.read()[-2000:]}")
        answer = json.loads(line)
        if "fault" in answer:
            raise RuntimeError(answer["fault"])
        return answer["answer"]

    def must(self, *words: str) -> None:
        status, said = self.ask("command", words=words)
        assert status == 0, (words, said)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.log.close()


class Source:
    """Weights on an HTTP server of this machine, given slowly: a package archive, which a page of an index names."""

    CONTENT = hashlib.sha256(b"thing").digest() * 16_000  # 512 kB

    def __init__(self, folder: Path, seconds: float = 0.5) -> None:
        folder.mkdir()
        path = folder / "pack_age-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("pack/data.bin", self.CONTENT)
        data = path.read_bytes()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                page = self.path.endswith("/pack-age/")
                body = f'<a href="/files/{path.name}">x</a>'.encode() if page else data
                self.send_response(200)
                self.send_header("Content-Type", "text/html" if page else "application/zip")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    for start in range(0, len(body), 1 << 15):
                        self.wfile.write(body[start : start + (1 << 15)])
                        time.sleep(0 if page else seconds / 16)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        archive = {"package": "Pack_Age", "version": "1.0", "filename": path.name}
        archive |= {"sha256": hashlib.sha256(data).hexdigest()}
        asset = {"name": "thing", "filename": "thing.bin", "size": len(self.CONTENT), "licence": "MIT"}
        asset |= {"sha256": hashlib.sha256(self.CONTENT).hexdigest(), "description": "test weights", "url": None}
        self.env = {
            "ROBUST_ASSET": json.dumps({**asset, "member": {"archive": archive, "path": "pack/data.bin"}}),
            "PIP_INDEX_URL": f"http://127.0.0.1:{self.server.server_address[1]}/simple",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Stage:
    """Where commands run: the server, the inputs, and a folder for each run."""

    def __init__(self, server: Server, inputs: Path, source: Source, folder: Path) -> None:
        self.server, self.inputs, self.source, self.folder = server, inputs, source, folder
        folder.mkdir(exist_ok=True)
        self.references: dict[tuple[str, ...], tuple[dict[str, str], Ended, dict[str, int], Path]] = {}
        self.count, self.lock = 0, threading.Lock()

    def env(self, work: Path) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")}
        places = {"HIDA_CACHE": work / "cache", "TMPDIR": work / "tmp", "HOME": work / "home", "PYTHONPATH": ROOT}
        quiet = {
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HIDA_WEIGHTS": "",
            "PYTHONWARNINGS": "default",
        }
        return kept | {k: str(v) for k, v in places.items()} | quiet | self.source.env

    def work(self, older: dict | None = None) -> Path:
        """Return a new folder to run in; ``older`` is one to begin as a copy of."""
        with self.lock:
            self.count += 1
            work = self.folder / f"run{self.count}"
        for name in FOLDERS:
            (work / name).mkdir(parents=True)
        if older:
            shutil.copytree(older, work, dirs_exist_ok=True, symlinks=True)
        return work

    def begin(self, words: list[str], work: Path, **how) -> int:
        """Start a command in a forked process."""
        told = {"out": f"{work}.out", "err": f"{work}.err"} | how
        return self.server.ask("start", words=words, cwd=str(work), env=self.env(work), **told)

    def end(self, pid: int, work: Path, limit: float = 120.0) -> Ended:
        """Wait for a forked process."""
        began = time.monotonic()
        while (status := self.server.ask("poll", pid=pid)) is None:
            if time.monotonic() - began > limit:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.005)
        return Ended(status, read(f"{work}.out"), read(f"{work}.err"), time.monotonic() - began)

    def run(self, words: list[str], work: Path, **how) -> Ended:
        return self.end(self.begin(words, work, **how), work)

    def begin_fresh(self, words: list[str], work: Path) -> subprocess.Popen:
        """Start a command as a process of its own."""
        with (
            Path(f"{work}.out").open("w", encoding="utf-8") as out,
            Path(f"{work}.err").open("w", encoding="utf-8") as err,
        ):
            doubles = words[0] in ("prepare", "weights")
            program = [str(DRIVER), "hida"] if doubles else ["-m", "hida"]
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            return subprocess.Popen(
                [sys.executable, *program, *words], cwd=work, env=self.env(work), start_new_session=True, **streams
            )

    def end_fresh(self, process: subprocess.Popen, work: Path, limit: float = 120.0) -> Ended:
        began = time.monotonic()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Ended(process.returncode, read(f"{work}.out"), read(f"{work}.err"), time.monotonic() - began)

    def reference(
        self, command: Command, words: tuple[str, ...] = ()
    ) -> tuple[dict[str, str], Ended, dict[str, int], Path]:
        """Return what an undisturbed run leaves, how it ended, its numbers of file events, and its folder."""
        words = words or command.words
        if words not in self.references:
            work = self.work()
            ended = self.run(command.at(self.inputs, words), work, told=f"{work}.events")
            assert ended.status == 0, (words, ended)
            counts = dict(zip(("before", "after"), map(int, read(f"{work}.events").split()), strict=True))
            self.references[words] = (contents(work), ended, counts, work)
        return self.references[words]

    def said_after_older(self, command: Command) -> list[str]:
        """Return what the command says then."""
        self.after_older(command)
        return self.references[(*command.older, "then", *command.words)][1].said if command.older else []

    def after_older(self, command: Command) -> dict[str, str]:
        """Return what the command leaves, undisturbed, where an older run had written (or in a new folder)."""
        if not command.older:
            return dict(self.reference(command)[0])
        key = (*command.older, "then", *command.words)
        if key not in self.references:
            work = self.work(self.older(command))
            ended = self.run(command.at(self.inputs), work)
            assert ended.status == 0, (command, ended)
            self.references[key] = (contents(work), ended, {}, work)
        return dict(self.references[key][0])

    def older(self, command: Command) -> Path | None:
        """Return the folder of the run before, if the command has one."""
        return self.reference(command, command.older)[3] if command.older else None


def read(path) -> str:
    return Path(path).read_text(errors="replace", encoding="utf-8")


def torn(found: dict[str, str]) -> list[str]:
    """Say which files that have a result's name are no whole result."""
    return [f"{name} is {what}" for name, what in found.items() if what.startswith(TORN) and ".part" not in name]


def lost(before: dict[str, str], found: dict[str, str], command: Command, reference: dict[str, str]) -> list[str]:
    """Say which results of before are neither there nor replaced by those of a finished run."""
    allowed = re.compile(f"{command.kept}|{command.loose}")
    return [
        f"{name} was there and is {'changed' if name in found else 'gone'}"
        for name, what in before.items()
        if not allowed.fullmatch(name) and found.get(name) not in (what, reference.get(name))
    ]


def leftovers(found: dict[str, str], before: dict[str, str], reference: dict[str, str], kept: str) -> list[str]:
    """Say which files are there that neither were there before nor belong to a finished run."""
    return [
        f"{name} is left" for name in found.keys() - before.keys() - reference.keys() if not re.fullmatch(kept, name)
    ]


def differing(found: dict[str, str], expected: dict[str, str], command: Command) -> list[str]:
    """Say in what two finished runs differ: files, and contents of those that are not loose."""
    # What is remembered of a file's sha256 is there or not: a file that was just downloaded needs none.
    names = {name for name in found.keys() ^ expected.keys() if not name.startswith("cache/verified/")}
    faults = [f"{name} is {'left over' if name in found else 'missing'}" for name in sorted(names)]
    for name in sorted(found.keys() & expected.keys()):
        same = found[name] == expected[name] or re.fullmatch(command.loose, name)
        faults += [] if same else [f"{name} differs ({found[name]}, {expected[name]})"]
    return faults


def without(found: dict[str, str], folder: str) -> dict[str, str]:
    """Leave out what is in a folder."""
    return {name: what for name, what in found.items() if not name.startswith(folder)}


def unsaid(said: list[str], place: Path) -> list[str]:
    """Leave out what a command that does without a folder may say: that it does."""
    return [line for line in said if not (line.startswith("hida: ") and str(place) in line and "not kept" in line)]


def of_session(leader: int) -> list[str]:
    """Return the commands of the processes that belong to a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, _, _, session = entry.read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(entry.with_name("cmdline").read_text(encoding="utf-8").replace("\0", " ")[:100])
    return found


def processes_left(leader: int, seconds: float = 5.0) -> list[str]:
    """Return what of a session still runs after so many seconds, and end it."""
    deadline = time.monotonic() + seconds
    while (found := of_session(leader)) and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if found:
            os.killpg(leader, signal.SIGKILL)
    return [f"the process {name!r} is left" for name in found]
