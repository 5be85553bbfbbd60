"""The tests import bench/ from the checkout, and so do the scripts that they run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))


@pytest.fixture(scope="session")
def call():
    """Run a script of bench/ with its words, or a command of bash; return the finished process."""

    def run(script, *words, cwd=ROOT, timeout=900, **environment):
        shell = str(script).endswith(".sh")
        command = ["bash" if shell else sys.executable, str(ROOT / script), *map(str, words)]
        variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, encoding="utf-8", timeout=timeout)

    return run
