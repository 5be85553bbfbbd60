"""How a command ends: its status and the one line it says."""

from __future__ import annotations

import errno

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


def test_success_says_nothing(capsys):
    assert ending(None, capsys) == (0, "")


def test_the_arguments_arrive():
    seen = []
    run_command(seen.append, ["--a", "1"])
    run_command(seen.append)
    assert seen == [["--a", "1"], None]


def test_a_users_fault_is_one_line_and_status_2(capsys):
    assert ending(HidaError("this is wrong; do that."), capsys) == (2, "hida: this is wrong; do that.\n")


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


def test_a_refusal_without_a_path_is_still_a_sentence(capsys):
    assert ending(OSError(errno.ENOSPC, "strerror"), capsys) == (
        2,
        "hida: no space is left on the disk; free some or choose another output folder.\n",
    )


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "input/output error"), OSError("no number"), ValueError("defect")]
)
def test_other_errors_keep_their_traceback(error, capsys):
    with pytest.raises(type(error)):
        ending(error, capsys)


@pytest.mark.parametrize(
    ("stop", "said"), [(KeyboardInterrupt(), "hida: interrupted\n"), (Interrupted("saved in x"), "hida: saved in x\n")]
)
def test_an_interruption_is_status_130(stop, said, capsys):
    assert ending(stop, capsys) == (130, said)


def test_a_handler_of_faults_cannot_swallow_a_stop():
    assert not issubclass(Interrupted, Exception)
