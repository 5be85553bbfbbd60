"""A process of an unknown user without HOME, as in some containers: what needs no home folder works."""

from __future__ import annotations

import pytest

from hida.cli.main import main
from hida.cli.run import run_command

pwd = pytest.importorskip("pwd")


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "HIDA_CACHE", "XDG_CACHE_HOME", "HIDA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [["info"], ["weights", "list"], ["presets", "small"]], ids=" ".join)
def test_built_in_weights_need_no_home(words, capsys):
    assert run_command(main, words) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["evaluate", "--pred", "a", "--target", "b"], "set HIDA_CACHE"),
        (["evaluate", "--weights", "small", "--target", "b"], "set HIDA_CACHE"),
        (["evaluate", "--pred", "a", "--target", "b", "--cache", "~/c.sqlite"], "'~/c.sqlite'"),
        (["weights", "fetch", "inception"], "set HIDA_CACHE"),
    ],
    ids=" ".join,
)
def test_what_is_kept_in_the_cache_folder_asks_for_one_before_any_work(words, hint, capsys, tmp_path):
    assert run_command(main, words) == 2
    error = capsys.readouterr().err
    assert error.startswith("hida: the home folder ")
    assert hint in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
