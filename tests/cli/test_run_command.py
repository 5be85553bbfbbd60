"""How a command ends: its status and the one line it says."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from hida.cli.run import run_command
from hida.errors import HidaError, Interrupted


def ending(error, capsys):
    def main(argv):
        if error is not None:
            raise error

    status = run_command(main, [])
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err


NO_SPACE = "hida: no space is left on the disk; free some or choose another output folder.\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (HidaError("this is wrong; do that."), 2, "hida: this is wrong; do that.\n"),
        (OSError(errno.ENOSPC, "strerror"), 2, NO_SPACE),  # without a path
        (HidaError("'a\x1b[31m\nb\u202e' is wrong."), 2, "hida: 'a\\x1b[31m\\nb\\u202e' is wrong.\n"),
        (KeyboardInterrupt(), 130, "hida: interrupted\n"),
        (Interrupted("saved in x"), 130, "hida: saved in x\n"),
        (Interrupted("saved in x", signal.SIGTERM), 143, "hida: saved in x\n"),
    ],
    ids=repr,
)
def test_every_end_has_its_status_and_one_line_at_most(error, status, said, capsys):
    assert ending(error, capsys) == (status, said)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"KMP_BLOCKTIME": "0"}, {"KMP_BLOCKTIME": "0"}),
    ],
)
def test_threads_wait_asleep_unless_the_user_has_said_how(monkeypatch, given, found):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    seen = []
    with monkeypatch.context() as patch:
        for name in names:
            patch.setenv(name, "")  # so that it is as before afterwards
            patch.delenv(name)
        for name, value in given.items():
            patch.setenv(name, value)
        run_command(lambda argv: seen.append({name: os.environ[name] for name in names if name in os.environ}), [])
    assert seen == [found]


def test_the_arguments_arrive():
    seen = []
    run_command(seen.append, ["--a", "1"])
    run_command(seen.append)
    assert seen == [["--a", "1"], None]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left on the disk"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "not permitted"),
        (errno.EROFS, "read-only"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.ENOTDIR, "not a folder"),
        (errno.EISDIR, "there is a folder where a file"),
        (errno.EEXIST, "there is a file where a folder"),
        (errno.ENOENT, "no such file or folder"),
    ],
)
def test_refusals_of_the_file_system_name_the_path(number, words, capsys):
    status, said = ending(OSError(number, "strerror", "/some/where"), capsys)
    assert status == 2
    assert words in said
    assert "(/some/where)" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "input/output error"), OSError("no number"), ValueError("defect")]
)
def test_other_errors_keep_their_traceback(error, capsys):
    with pytest.raises(type(error)):
        ending(error, capsys)


def test_a_handler_of_faults_cannot_swallow_a_stop():
    assert not issubclass(Interrupted, Exception)


HALF_WRITTEN = """
import signal, sys
from hida.cli.run import run_command
from hida.files import atomic_path, folder_lock, temporary_folder
if sys.argv[1:]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
def main(argv):
    with folder_lock("run", "hida test"), temporary_folder("run"), atomic_path("run/x.png"):
        print("ready", flush=True)
        sys.stdin.read()
sys.exit(run_command(main))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_with_one_line_and_leaves_nothing(tmp_path, number):
    with subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN], cwd=tmp_path, stdin=-1, stdout=-1, stderr=-1
    ) as process:
        process.stdout.readline()
        process.send_signal(number)
        told = process.communicate()[1].decode()
    assert process.returncode == 128 + number
    assert told == ("hida: interrupted\n" if number == signal.SIGINT else f"hida: stopped by {number.name}.\n")
    assert list(tmp_path.iterdir()) == []


IMPORTING = """
import sys
from hida.cli.run import run_command
from hida.files import folder_lock
def main(argv):
    with folder_lock("run", "hida test"):
        import slow
        slow.time.sleep(60)
sys.exit(run_command(main))
"""
SLOW = """
import time
try:
    print("ready", flush=True)
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        time.sleep(0.01)
    print("imported", flush=True)
except BaseException as error:
    print("never", type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_what_is_being_imported_has_been(tmp_path, number):
    # Code that a compiled module calls as it is imported may not raise: torch ends the process by abort() then.
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    with subprocess.Popen([sys.executable, "-c", IMPORTING], cwd=tmp_path, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        printed, told = process.communicate(timeout=60)
    assert (process.returncode, printed) == (128 + number, b"imported\n")
    assert told.count(b"\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_closed_terminal_does_not_end_what_ignores_it(tmp_path):
    command = [sys.executable, "-c", HALF_WRITTEN, "nohup"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=-1, stdout=-1) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.communicate(b"")
    assert process.returncode == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["x.png"]


PRINTING = """
import sys
from hida.cli.run import run_command

def main(argv):
    for _ in range(int(argv[0])):
        print("a line of what a command prints")
    if argv[1:]:
        sys.exit(0)

sys.exit(run_command(main, sys.argv[1:]))
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("lines", ["1", "1 as --help ends", "9999"])
@pytest.mark.parametrize(
    ("rest", "status", "said"),
    [
        ("| true", 141, ""),
        (">&-", 0, ""),
        (">/dev/full", 2, "no space"),
        (">/dev/full 2>&-", 2, ""),
        (">&- 2>/dev/full", 0, ""),
    ],
)
def test_output_that_nobody_takes_has_its_status_and_one_line_at_most(lines, rest, status, said):
    command = f"sleep 0.01; exec '{sys.executable}' -c \"$CODE\" {lines.replace(' as --help ends', ' x')}"
    script = f"({command}) {rest}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "CODE": PRINTING}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)


def test_a_warning_of_ours_is_one_line_and_others_are_as_python_has_them():
    code = "import warnings, hida; from hida.cli.run import run_command; "
    code += "warn = lambda file: warnings.warn_explicit('not \\x1b kept.', UserWarning, file, 7); "
    code += "run_command(lambda _: (warn(hida.__file__), warn('/other.py')), [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stderr == "hida: not \\x1b kept.\n/other.py:7: UserWarning: not \x1b kept.\n"
