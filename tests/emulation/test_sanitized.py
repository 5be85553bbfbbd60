"""A third of every emulated test's cases once more, the contract's too, with AddressSanitizer and UBSan in the kernels.

All of them: the same command and environment without HIDA_TESTS_EVERY, which takes three times as long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_nothing_is_read_or_written_out_of_bounds(builder):
    builder.build(sanitize=True)
    found = [builder.runtime(name) for name in ("libasan.so", "libubsan.so")]
    if None in found:
        pytest.skip("the compiler has no sanitizers")
    environment = {
        **os.environ,
        "HIDA_EMULATION": "sanitized",
        "HIDA_TESTS_EVERY": "3",
        "LD_PRELOAD": ":".join(found),
        # Python and torch leak on purpose; torch's own C++ libraries share symbols.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    command += ["-k", "emulated or emulation", str(HERE), str(HERE.parent / "ops" / "contract")]
    run = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert " passed" in run.stdout
