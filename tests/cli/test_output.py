"""Every command's help and output on terminals, and in pipes, of any encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from runs import PROCESS
from tqdm import tqdm

from hida.cli import output
from hida.cli.main import COMMANDS, main
from hida.cli.run import run_command

ENCODINGS = ("ascii", "latin-1", "cp1252")


class Terminal:
    """Stdout and stderr as a terminal or a pipe of an encoding has them."""

    def __init__(self, encoding, monkeypatch):
        self.encoding, self.bytes = encoding, {}
        for name in ("stdout", "stderr"):
            self.bytes[name] = io.BytesIO()
            stream = io.TextIOWrapper(self.bytes[name], encoding=encoding, write_through=True)
            monkeypatch.setattr(sys, name, stream)

    def text(self, name="stdout"):
        return self.bytes[name].getvalue().decode(self.encoding)


@pytest.fixture
def terminal(monkeypatch):
    return lambda encoding: Terminal(encoding, monkeypatch)


def status(*words):
    try:
        return run_command(main, list(map(str, words)))
    except SystemExit as end:  # of help
        return end.code


@pytest.mark.parametrize("command", [*COMMANDS, "prepare fs2k", "prepare pairs", "weights fetch", "weights snapshot"])
def test_help_prints_in_every_encoding(terminal, command):
    for encoding in ENCODINGS:
        shown = terminal(encoding)
        assert status(*command.split(), "--help") == 0
        assert shown.text().strip().startswith(f"usage: hida {command}")
        assert shown.text("stderr") == ""
        # Nothing of it needs an escape.
        assert "\\u" not in shown.text()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_and_lists_print(terminal, encoding):
    shown = terminal(encoding)
    for words in (["presets", "paper"], ["weights", "list"], ["--help"]):
        assert status(*words) == 0
    assert "operations (2 per multiply-accumulate)" in shown.text()
    assert "10^9" in shown.text()


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-8"])
def test_evaluations_of_any_names_are_written_in_utf_8_and_print(terminal, tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(tmp_path)
    for folder in ("pred", "target"):
        (tmp_path / folder).mkdir()
        for k, name in enumerate((os.fsdecode(b"caf\xe9"), "schön", "日本")):
            values = np.random.default_rng(k + (folder == "pred")).integers(0, 256, (40, 40), np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"{name}.png")
    shown = terminal(encoding)
    options = ("--metrics", "fsim", "--cache", "none", "--device", "cpu")
    out = os.fsdecode(b"\xe9")
    assert status("evaluate", "--pred", "pred", "--target", "target", *options, "--label", "Σ…", "--out", out) == 0
    assert status("compare", out, out) == 0
    assert shown.text().count("FSIM") > 2
    assert {"ascii": "Sigma...", "utf-8": "Σ…"}.get(encoding, "Sigma") in shown.text()
    assert "\\udce9/scores.json" in shown.text()
    written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / out).iterdir()}
    assert written.keys() == {"scores.json", "scores.md", "report.html"}
    assert all("Σ…" in text for text in written.values())
    assert "schön" in written["report.html"]
    assert "日本" in written["report.html"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_mistakes_warnings_and_bars_with_names_print(terminal, encoding, tmp_path):
    shown = terminal(encoding)
    names = f"日本 {os.fsdecode(bytes([0xE9]))} 3×"
    assert status("sketch", tmp_path / names) == 2
    sys.stderr.write(warnings.formatwarning(names, UserWarning, "file.py", 1, ""))  # pytest shows warnings elsewhere
    for _ in tqdm([1], desc=names, unit="…"):
        tqdm.write(names, file=sys.stderr)
    assert shown.text("stderr").count("\\u65e5\\u672c \\udce9 3") > 3


@pytest.mark.parametrize(
    ("text", "ascii_only"),
    [
        ("1, 2, …", "1, 2, ..."),
        ("250×250", "250x250"),
        ("a – b — c − d", "a - b - c - d"),
        ("‘a’ “b” «c» „d‟ ‹e›", '\'a\' "b" "c" "d" \'e\''),
        ("≥ ≤ ± → ≈", ">= <= +/- -> ~"),
        ("10⁹, 10⁻¹², 256²", "10^9, 10^-12, 256^2"),
        ("θ, γ, β, Σ", "theta, gamma, beta, Sigma"),
        ("╭─┬═│┃╯", "+-+-||+"),
        ("a\u00a0b\u2009c", "a b c"),
        ("café 日 😀", "caf\\xe9 \\u65e5 \\U0001f600"),
        ("caf\udce9", "caf\\udce9"),
    ],
)
def test_what_an_encoding_lacks_is_written_alike_or_escaped(terminal, text, ascii_only):
    shown = terminal("ascii")
    output.make_printable()
    sys.stdout.write(text)
    assert shown.text() == ascii_only


def test_what_an_encoding_has_stays(terminal):
    for encoding, text in (("cp1252", "… × – ’ ± é €"), ("latin-1", "× ± é ²"), ("utf-8", "… 日 😀 θ")):
        shown = terminal(encoding)
        output.make_printable()
        sys.stdout.write(text)
        assert shown.text() == text


def test_streams_that_are_absent_or_of_another_kind_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    output.make_printable()
    assert run_command(main, ["--version"]) == 0


@pytest.mark.parametrize(
    "entry",
    [
        ["-c", "import sys; from hida.cli.main import entry; sys.exit(entry())", "inspect"],
        *(["-m", f"hida.{name}"] for name in ("train", "sketch", "evaluate")),
    ],
    ids=lambda entry: entry[-1],
)
def test_every_entry_prints_in_a_locale_without_unicode(entry):
    environment = {**PROCESS, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, *entry, "--help"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").strip().startswith("usage: hida ")


def test_a_name_that_the_locale_cannot_write_is_refused_in_a_sentence(terminal, monkeypatch):
    def open_it(argv):
        raise UnicodeEncodeError(sys.getfilesystemencoding(), "photo/é.png", 6, 7, "ordinal not in range(128)")

    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ANSI_X3.4-1968")
    shown = terminal("ascii")
    assert run_command(open_it, []) == 2
    assert shown.text("stderr").startswith("hida: '\\xe9.png' cannot be a file's name here, where names are ")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "utf-8")
    with pytest.raises(UnicodeEncodeError):  # no matter of the locale, but a defect
        run_command(open_it, [])
