"""The processes that the tests of this folder kill, starve of space or lock out.

    python driver.py hida WORDS…     one command in a process of its own, as the console script runs it
    python driver.py serve           a server that has imported everything and forks a process for every command

The server reads a JSON object per line and answers with one. It may be begun in a mount namespace of its own
(``unshare -rm``), where it mounts what it is asked to; paths in there are seen by its answers only.

Doubles stand for what the repository does not hold: a face model that sees a face in every photo, and an asset of
weights that a server on this machine gives (its description is in the environment variable ROBUST_ASSET).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent), str(HERE.parents[1])) if path not in sys.path]

# What is watched for files, below the folder that a command runs in, which it has as its current one.
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link")
EVENTS += ("os.listdir", "os.scandir", "sqlite3.connect")
CALLS = ("open", "close", "replace", "rename", "unlink", "mkdir", "rmdir", "chmod", "fsync", "scandir", "write")


def stand_in(name):
    """Stand for hida.cli.prepare.load_model; worker processes find it here."""
    from faces import Model

    return Model()


def install_doubles():
    """Put the doubles in place; loads no torch."""
    import hida.cli.prepare
    from hida.weights import assets

    hida.cli.prepare.load_model = stand_in
    described = json.loads(os.environ.get("ROBUST_ASSET", "null"))
    if described:
        from hida.weights.package_index import Archive

        member, url = described.pop("member"), described.pop("url")
        sources = [assets.Member(Archive(**member["archive"]), member["path"])] if member else []
        sources += [assets.Url(url)] if url else []
        assets.ASSETS[described["name"]] = assets.Asset(**described, sources=tuple(sources))


def count_events(before, after, number, told):
    """Count what this process does to files below its folder; at one of these moments, kill itself.

    Args:
        before: kill it when it is about to do the ``before``-th thing (0: never).
        after: kill it when that many calls of the system have returned, and nobody has their result yet.
        number: the signal.
        told: file to write both counts to at the end.
    """
    root, seen = os.getcwd(), [0, 0]

    def note(which, moment):
        seen[which] += 1
        if seen[which] == moment:
            os.kill(os.getpid(), number)

    def hook(event, arguments):
        path = arguments[0] if event in EVENTS and arguments else None
        if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(root):
            note(0, before)

    calls = {getattr(os, name) for name in CALLS}
    if fcntl is not None:
        calls.add(fcntl.flock)

    def profile(frame, event, function):
        # What is imported or loaded is no result.
        if event == "c_return" and function in calls and not frame.f_code.co_filename.startswith("<frozen"):
            note(1, after)

    if before or told:
        sys.addaudithook(hook)
    if after or told:
        sys.setprofile(profile)
    if told:
        import atexit

        atexit.register(lambda: Path(told).write_text(f"{seen[0]} {seen[1]}", encoding="utf-8"))


def drop_capabilities():
    """Let the bits of permission count for this process, also where it is root's."""
    import ctypes

    class Capabilities(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (Capabilities * 2)()) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities cannot be dropped")


def run(words, before=0, after=0, number=signal.SIGKILL, told=""):
    """Run a command as the console script does; return its exit status."""
    sys.argv = ["hida", *words]
    if before or after or told:
        count_events(before, after, number, told)
    from hida.cli.main import entry

    return entry()


class Server:
    """Forks processes, mounts, and tells what files there are."""

    def __init__(self):
        self.ended = {}

    def start(self, request):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._child(request)
        return pid

    def _child(self, request):
        status = 1
        try:
            os.setsid()
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            for number, (name, flags) in enumerate(
                (
                    (os.devnull, os.O_RDONLY),
                    *((request[k], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for k in ("out", "err")),
                )
            ):
                handle = os.open(name, flags, 0o666)
                os.dup2(handle, number)
                os.close(handle)
            sys.stdin, sys.stdout, sys.stderr = (
                os.fdopen(k, "w" if k else "r", encoding="utf-8", closefd=False) for k in range(3)
            )
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
            if request.get("bare"):
                drop_capabilities()
            install_doubles()
            when = {key: request[key] for key in ("before", "after", "number", "told") if key in request}
            status = run(request["words"], **when)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.setprofile(None)
            # As the interpreter ends, without what the server would do at its own end.
            with contextlib.suppress(BaseException):
                import atexit

                atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(BaseException):
                    stream.flush()
            os._exit(status)

    def poll(self, request):
        """Return the exit status of a process that has ended, negative for a signal, else None."""
        pid = request["pid"]
        if pid not in self.ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.ended[pid] = os.waitstatus_to_exitcode(status)
        return self.ended.get(pid)

    def command(self, request):
        """Run a program to its end, such as mount."""
        done = subprocess.run(
            request["words"], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
        )
        return [done.returncode, done.stdout + done.stderr]

    def files(self, request):
        """Return what :func:`watch.contents` says of a folder."""
        from watch import contents

        return contents(Path(request["folder"]))

    def serve(self):
        import hida.metrics.evaluation
        import hida.training.ablation
        from hida.cli.main import COMMANDS

        for name in COMMANDS:
            __import__(f"hida.cli.{name.replace('-', '_')}")
        from faces import Model

        import hida.depth.builtin.train
        import hida.weights.released.exporting
        import hida.weights.released.importing

        hida.depth.builtin.train.TDDFA.load = classmethod(lambda cls, *_: Model())
        hida.depth.builtin.train.recalibrate.__defaults__ = (1,)  # of 32 batches, which take a minute
        with contextlib.suppress(ImportError):
            import matplotlib.figure  # noqa: F401
        channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"answer": getattr(self, request["do"])(request)}
            except Exception:
                answer = {"fault": traceback.format_exc()}
            channel.write(json.dumps(answer) + "\n")
            channel.flush()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        Server().serve()
    else:
        install_doubles()
        sys.exit(run(sys.argv[2:]))
