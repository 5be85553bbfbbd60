"""Workers run nothing of the folder that the user is in."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import util

import pytest
from hostile import hostile_folder, run_in

from hida.data.spawning import spawning

WORKERS = """
import sys
from hida.data.preparation import _run

def model():
    return 3

def work(model, pair):
    import json, numpy, pickle
    return model * pair, all(sys.path), json.__file__

if __name__ == "__main__":
    found = list(_run(work, [1, 2, 3, 4], model, 2))
    assert sorted(number for number, *_ in found) == [3, 6, 9, 12], found
    assert not any(file.startswith(sys.argv[1]) for _, _, file in found)
"""


@pytest.mark.slow  # each worker loads torch
def test_workers_run_nothing_of_the_current_folder(tmp_path):
    hostile = hostile_folder(tmp_path)
    done = run_in(hostile, WORKERS, str(hostile))
    assert done.returncode == 0, done.stderr
    assert not (hostile.parent / "ran").exists()


def test_a_process_begun_as_workers_are_does_not_see_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(hostile_folder(tmp_path))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with spawning():
        flags = util._args_from_interpreter_flags()
        subprocess.run([sys.executable, *flags, "-c", "import pickle, json"], check=True)
    assert not (tmp_path / "ran").exists()


def test_the_environment_is_afterwards_as_before(monkeypatch):
    for before in (None, "", "1"):
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        if before is not None:
            monkeypatch.setenv("PYTHONSAFEPATH", before)
        with pytest.raises(KeyError), spawning():
            raise KeyError
        assert os.environ.get("PYTHONSAFEPATH") == before
