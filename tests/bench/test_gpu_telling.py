"""bench/gpu/telling.py: what a run prints of failing tests, and that it does so before the run is over."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # processes of pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os
import pytest

@pytest.fixture
def broken():
    raise OSError("no such thing")

def test_one():
    print("a line that is not told")
    assert 1 + 1 == 3, "output 2: relative error 3e-06 > 2e-06"

def test_two(broken):
    pass

def test_three():
    pass

def test_that_ends_the_process():
    os._exit(7)
"""


def told(folder, *options):
    (folder / "test_some.py").write_text(TESTS, encoding="utf-8")
    words = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "bench.gpu.telling", *options, "test_some.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    lines = run.stdout.splitlines()
    return run.returncode, [line for line in lines if line.startswith("! ")]


ONE = [
    "! test_some.py::test_one",
    "!   AssertionError: output 2: relative error 3e-06 > 2e-06",
    "!   assert (1 + 1) == 3",
]
TWO = ["! test_some.py::test_two (setup)", "!   OSError: no such thing"]


def test_what_has_failed_is_known_although_the_run_is_cut(tmp_path):
    assert told(tmp_path) == (7, [*ONE, *TWO])


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="there is no xdist")
def test_of_the_tests_of_workers_each_is_told_once(tmp_path):
    status, lines = told(tmp_path, "-n", "2", "-k", "not process")
    assert status == 1
    assert sorted(lines) == sorted([*ONE, *TWO])
