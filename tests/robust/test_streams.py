"""Output that cannot be written: closed, full, or read by nobody. No traceback, and results are there as usual."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from stage import Ended

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")]

DRAW = ("--style", "1", "--depth", "none", "--frame", "whole")
WORDS = {
    "help": ["--help"],
    "help of a command": ["sketch", "--help"],
    "presets": ["presets"],
    "weights list": ["weights", "list"],
    "compare": ["compare", "{inputs}/a", "{inputs}/b"],
    "sketch": ["sketch", "{inputs}/photos", "--weights", "{inputs}/tiny.safetensors", "--out", "out", *DRAW],
}


def shell(stage, name, rest):
    """Run a command in a shell with ``rest`` after it; return the command's own status and what it said."""
    work = stage.work()
    command = " ".join(f"'{word}'" for word in [sys.executable, "-m", "hida", *WORDS[name]])
    command = command.replace("{inputs}", str(stage.inputs))
    script = f"{command} {rest}; echo ${{PIPESTATUS[0]}} >status"
    done = subprocess.run(
        ["bash", "-c", script], cwd=work, env=stage.env(work), capture_output=True, encoding="utf-8", check=False
    )
    return Ended(int((work / "status").read_text(encoding="utf-8")), done.stdout, done.stderr), work


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("rest", ["| head -1", "| true", ">&-", ">/dev/full", "2>&-", "2>/dev/full"])
def test_output_that_nobody_takes_is_no_traceback(stage, name, rest):
    ended, work = shell(stage, name, rest)
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
    said = [line for line in ended.said if "depth" not in line and "face" not in line]
    if rest.startswith("|"):
        assert said == []
        assert ended.status in (0, 141)
    elif rest == ">/dev/full":
        assert len(said) == 1
        assert re.search("no space", said[0], re.IGNORECASE)
        assert ended.status == 2
    elif (rest, name) == ("2>/dev/full", "sketch"):
        assert ended.status in (2, 120)  # it has notes to tell, and cannot; 120 is Python's own
        return
    else:
        assert said == []
        assert ended.status == 0
    if name == "sketch":
        assert len(list((work / "out").iterdir())) == 4
