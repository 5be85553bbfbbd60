"""The emulation itself: what a kernel must not do, shows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def misuse(builder, tmp_path_factory):
    """Run a case of misuse.cu, in an order of threads, built with or without sanitizers."""
    folder = tmp_path_factory.mktemp("misuse")

    def run(case: int, order: int = 0, sanitize: bool = False) -> subprocess.CompletedProcess[str]:
        program = folder / f"misuse_{sanitize}"
        if not program.exists():
            variant = builder.SANITIZE if sanitize else ["-O1"]
            command = [*builder.compiler(), "-std=c++17", "-DHIDA_EMULATE_CUDA", *variant]
            command += [f"-I{HERE}", f"-I{builder.CSRC}", "-x", "c++", str(HERE / "misuse.cu"), str(HERE / "cuda.cpp")]
            subprocess.run([*command, "-o", str(program)], check=True)
        return subprocess.run([str(program), str(case), str(order)], capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_correct_kernel(misuse, order):
    run = misuse(0, order)
    assert (run.returncode, run.stdout) == (0, "189 190\n"), run.stderr


def test_a_missing_barrier_is_an_unwritten_value_or_another_result(misuse):
    assert {misuse(1, order).stdout for order in (0, 1)} != {"189 190\n"}
    assert "nan" in misuse(1).stdout


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (2, "for threads that never come there"),
        (3, "threads wait at barriers of lines"),
        (4, "lanes that have left"),
        (5, "which takes no part"),
        (11, "no block 1 in a cluster of 1"),
    ],
)
def test_what_stops_the_program(misuse, case, words):
    run = misuse(case)
    assert run.returncode < 0
    assert run.stderr.startswith("CUDA emulation: ")
    assert words in run.stderr


def test_shared_memory_that_nobody_wrote_is_not_a_number(misuse):
    assert "nan" in misuse(8).stdout


def test_blocks_that_read_each_other_show_in_another_order(misuse):
    assert misuse(10, 0).stdout != misuse(10, 1).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "words"),
    [(6, "heap-buffer-overflow"), (7, "use-after-poison"), (9, "heap-buffer-overflow")],
    ids=["dynamic shared memory", "fixed shared memory", "device memory"],
)
def test_out_of_bounds_is_found_by_the_sanitizer(misuse, case, words):
    assert misuse(0, sanitize=True).returncode == 0
    run = misuse(case, sanitize=True)
    assert run.returncode != 0
    assert words in run.stderr
