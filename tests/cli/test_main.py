"""The command hida: every name leads somewhere, and a wrong one is told in a sentence."""

import subprocess
import sys

import pytest
from PIL import Image
from runs import PROCESS

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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sketch", ""], "argument 1 of hida sketch is empty"),
        (["sketch", "photo.jpg", "--out="], "--out is empty"),
        (["sketch", "https://host//photo.jpg"], "'https://host//photo.jpg' is a web address"),
        (["depth", "FILE:///photo.jpg"], "'FILE:///photo.jpg' is a web address"),
        (["train", "--data=s3://bucket/set.zip"], "'s3://bucket/set.zip' is a web address"),
    ],
)
def test_what_names_no_file_is_refused_as_it_was_given(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("photo.jpg")
    assert run_command(main, words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hida: {sentence}")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_label_may_be_a_web_address(capsys):
    for words in (["--label", "https://host/run"], ["--label=https://host/run"]):
        assert run_command(main, ["evaluate", "--target", "nothere", *words]) == 2
        assert "give either --pred DIR" in capsys.readouterr().err


def test_info_prints_what_a_bug_report_needs(capsys):
    assert run_command(main, ["info"]) == 0
    out = capsys.readouterr().out
    for word in ("hida", "torch", "CUDA", "native ops", "presets", "weights found"):
        assert word in out


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr or "torch was imported"
    assert done.stdout.endswith("small\n")
    assert all(f"usage: hida {name}" in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hida", "nosuch"], "there is no command 'nosuch'; the commands are"),
        pytest.param(
            ["hida", "info"],
            "HIDA_CPU is 'sse9'; choose avx512, avx2 or generic, or unset it.",
            marks=pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}"),
        ),
        (["hida", "sketch", "photo.jpg", "--out", ""], "argument 3 of hida sketch is empty; give a value, or leave it"),
        *[
            ([f"hida.{name}", "--out", ""], f"argument 2 of hida {name} is empty")
            for name in ("train", "sketch", "evaluate")
        ],
    ],
    ids=str,
)
def test_a_process_ends_with_status_2_and_a_sentence_before_anything_begins(tmp_path, words, said):
    environment = {**PROCESS, "HIDA_CPU": "sse9"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"hida: {said}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_gone_is_no_error_to_be_told():
    command = [sys.executable, "-m", "hida", "--help"]
    with subprocess.Popen(
        command, env=PROCESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as running:
        running.stdout.close()
        said = running.stderr.read()
    assert (running.returncode, said) == (141, "")
