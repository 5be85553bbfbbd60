"""What a command line has wrong is one sentence, whichever version of tyro says it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import pytest

from hida.cli.main import main
from hida.cli.parsing import read_command, sentence
from hida.cli.run import run_command
from hida.errors import HidaError


def said(words, capsys):
    """Return the sentence about a command line, without "hida: " and the command whose help it names."""
    assert run_command(main, words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    start, end = "hida: ", f" (see hida {words[0]}"
    assert captured.err.startswith(start)
    assert captured.err.endswith(" --help).\n")
    assert captured.err.count("\n") == 1
    return captured.err[len(start) : captured.err.rindex(end)]


TRAIN = ["train", "--data", "d", "--out", "o"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*TRAIN, "--train.batch", "abc"], "--train.batch: 'abc' is no integer"),
        ([*TRAIN, "--train.batch=1.5"], "--train.batch: '1.5' is no integer"),
        ([*TRAIN, "--train.epochs", "a\nb"], "--train.epochs: 'a\\nb' is no number"),
        ([*TRAIN, "--trainn.batch", "3"], "there is no option --trainn.batch; did you mean --train.batch?"),
        (["train", "--data", "d"], "--out is missing"),
        (["train"], "--data and --out are missing"),
        (["evaluate", "--taget", "t"], "there is no option --taget; did you mean --target?"),
        (["sketch", "p", "--out"], "--out: a value must follow"),
        (["sketch", "p", "--frame", "upside"], "--frame: 'upside' is none of auto, portrait, face, whole"),
        (["sketch", "p", "--sheet", "yes"], "the word 'yes' is one too many"),
        (["sketch", "p", "--steps", "caf\udce9"], "--steps: 'caf\\udce9' is no integer"),
        (["sketch", "p", "--format", "gif"], "--format: 'gif' is none of jpeg, jpg, png, svg, webp"),
        (["depth", "p", "--bits", "9"], "--bits: '9' is none of 8, 16"),
        (
            ["evaluate", "--target", "t", "--metrics", "fid", "kidd"],
            "--metrics: 'kidd' is none of fid, kid, lpips, lpips_vgg, scoot, fsim; did you mean kid?",
        ),
        (["ablate", "--data", "d", "--seeds", "1", "x"], "--seeds: 'x' is no integer"),
        (["pack"], "DATA and OUT.zip are missing"),
        (["pack", "a", "b", "c"], "the word 'c' is one too many"),
        (["prepare"], "a command is missing: one of fs2k, pairs"),
        (["prepare", "fs2k", "a"], "OUT is missing"),
        (["prepare", "fs2k", "a", "b", "--depht", "none"], "there is no option --depht; did you mean --depth?"),
        (["weights", "lst"], "'lst' is none of list, fetch, snapshot; did you mean list?"),
        (["info", "--x"], "there is no option --x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_sentence_that_names_it(words, sentence, capsys):
    assert said(words, capsys) == sentence


@pytest.mark.parametrize(
    ("given", "counts"), [("1", "2 values, with spaces between, must follow, not 1"), ("a b", "'a' is no integer")]
)
def test_a_pair_of_values(given, counts, capsys):
    assert said(["sketch", "p", "--sweep", *given.split()], capsys).startswith(f"--sweep: {counts}")


# As tyro 0.9.2, 1.0.0 and 1.0.17 print them, in UTF-8 or not.
BOXES = {
    """
╭─ Parsing error ───────────────────────────╮
│ Argument --sweep: expected 2 arguments    │
│ ───────────────────────────────────────── │
│ For full helptext, run hida sketch --help │
╰───────────────────────────────────────────╯
""": "--sweep: 2 values must follow (see hida sketch --help).",
    """
╭─ Parsing error ───────────────────────────────────────────────────────────────────────────╮
│ Argument {list,fetch,snapshot}: invalid choice: 'lst' (choose from 'list', 'fetch', 'snapshot') │
│ ───────────────────────────────────────────────────────────────────────────────────────── │
│ For full helptext, run hida weights --help                                                │
╰───────────────────────────────────────────────────────────────────────────────────────────╯
""": "'lst' is none of list, fetch, snapshot; did you mean list? (see hida weights --help).",
    """
╭─ Required options ────────────────────────────────╮
│ The following arguments are required: DATA, --out │
│ ───────────────────────────────────────────────── │
│ Argument helptext:                                │
│     --out PATH                                    │
│         folder of the run, to write to (required) │
│ ───────────────────────────────────────────────── │
│ For full helptext, run hida train --help          │
╰───────────────────────────────────────────────────╯
""": "DATA and --out are missing (see hida train --help).",
    """
╭─ Missing argument ────────────────────────────────────────────╮
│ Missing value for argument '('--sweep',)'. Expected 2 values. │
│ ───────────────────────────────────────────────────────────── │
│ For full helptext, run hida sketch --help                     │
╰───────────────────────────────────────────────────────────────╯
""": "--sweep: 2 values must follow (see hida sketch --help).",
    """
 Unrecognized options
 -------------------------------------------
  Unrecognized options: --shet, --x
  -------------------------------------------
  Arguments similar to --shet:
      --sheet, --no-sheet
          also write a sheet (default: False)
  -------------------------------------------
  For full helptext, run hida sketch --help

""": "there is no option --shet; did you mean --sheet? (see hida sketch --help).",
    """
╭─ Something new ─────────────────────────────╮
│ A fault that no version has told            │
│ so far                                      │
│ ─────────────────────────────────────────── │
│ For full helptext, see hida a b --help      │
╰─────────────────────────────────────────────╯
""": "A fault that no version has told so far (see hida a b --help).",
    "": "it was not understood (see hida --help).",
}


@pytest.mark.parametrize("box", BOXES, ids=lambda box: BOXES[box][:20])
def test_the_boxes_of_several_versions_are_read(box):
    expected = BOXES[box]
    assert sentence(box, expected.rpartition("see ")[2].partition(" --help")[0]) == expected


@dataclass
class Options:
    size: int = 1


def test_the_words_are_those_of_the_process_if_none_are_given_and_the_terminal_stays(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prog", "--size", "3"])
    monkeypatch.setenv("COLUMNS", "50")
    assert read_command(Options, None, "prog").size == 3
    assert read_command(Options, [], "prog", default=Options(7)).size == 7
    with pytest.raises(HidaError, match="--size: 'x' is no integer"):
        read_command(Options, ["--size", "x"], "prog")
    assert os.environ["COLUMNS"] == "50"
    with pytest.raises(SystemExit) as end:
        read_command(Options, ["--help"], "prog")
    assert not end.value.code
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50


@pytest.mark.parametrize("command", ["sketch", "evaluate", "compare", "presets", "ablate", "import-released"])
def test_help_shows_no_value_where_there_is_none(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "None" not in text
    assert "(default: )" not in text
