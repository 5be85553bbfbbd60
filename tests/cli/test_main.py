"""The command hida: every name leads somewhere, and a wrong one is told in a sentence."""

import os
import subprocess
import sys

import pytest

from hida import __version__
from hida.cli.main import COMMANDS, main
from hida.cli.run import run_command
from hida.ops import library


def test_help_names_every_command(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert run_command(main, words) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in COMMANDS)


def test_version(capsys):
    assert run_command(main, ["--version"]) == 0
    assert capsys.readouterr().out == f"hida {__version__}\n"


def test_a_misspelt_command_is_corrected(capsys):
    assert run_command(main, ["skecth"]) == 2
    assert capsys.readouterr().err == "hida: there is no command 'skecth'; did you mean 'sketch'?\n"
    assert run_command(main, ["xyzzy"]) == 2
    assert "the commands are" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main_and_a_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: hida {name}" in capsys.readouterr().out


def test_an_empty_argument_is_refused_before_anything_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["sketch", "photo.jpg", "--out", ""]) == 2
    assert capsys.readouterr().err == "hida: argument 3 of hida sketch is empty; give a value, or leave it out.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")
def test_an_unknown_choice_of_cpu_kernels_is_told_in_a_sentence():
    environment = {**os.environ, "HIDA_CPU": "sse9"}
    done = subprocess.run([sys.executable, "-m", "hida", "info"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "hida: HIDA_CPU is 'sse9'; choose avx512, avx2 or generic, or unset it.\n"


def test_info_prints_what_a_bug_report_needs(capsys):
    assert run_command(main, ["info"]) == 0
    out = capsys.readouterr().out
    for word in ("hida", "torch", "CUDA", "native ops", "presets", "weights found"):
        assert word in out


def test_python_dash_m_gives_the_exit_status():
    done = subprocess.run([sys.executable, "-m", "hida", "nosuch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("hida: there is no command")


def test_what_computes_nothing_does_not_import_torch():
    """An import, every --help, hida weights list and a configuration: the seconds that torch takes are not spent."""
    code = (
        "import sys, hida\n"
        "from hida.cli.main import COMMANDS, main\n"
        "for words in [['--help'], ['--version'], ['weights', 'list'], *([name, '--help'] for name in COMMANDS)]:\n"
        "    try:\n        main(words)\n    except SystemExit as stop:\n        assert stop.code == 0, words\n"
        "from hida.config import load_preset\n"
        "print(load_preset('small').name)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch was imported"
    told = done.stdout
    assert told.splitlines()[-1] == "small"
    assert all(f"usage: hida {name}" in told for name in COMMANDS)


@pytest.mark.parametrize("name", ["train", "sketch", "evaluate"])
def test_the_modules_that_torchrun_takes_are_the_commands(name):
    done = subprocess.run([sys.executable, "-m", f"hida.{name}", "--out", ""], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"hida: argument 2 of hida {name} is empty; give a value, or leave it out.\n"
