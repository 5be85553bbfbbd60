"""The emulation itself: what a kernel must not do, shows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def program(builder, tmp_path_factory):
    """Run a program of this folder with arguments, built with or without sanitizers."""
    folder = tmp_path_factory.mktemp("programs")

    def run(name: str, *arguments: int, sanitize: bool = False) -> subprocess.CompletedProcess[str]:
        built = folder / f"{name}_{sanitize}"
        if not built.exists():
            variant = builder.SANITIZE if sanitize else ["-O1"]
            command = [*builder.compiler(), "-std=c++17", "-DHIDA_EMULATE_CUDA", *variant, f"-I{HERE}"]
            command += [f"-I{builder.CSRC}", "-Wno-unknown-pragmas", "-pthread", "-x", "c++", str(HERE / f"{name}.cu")]
            subprocess.run([*command, *map(str, builder.EMULATION), "-o", str(built)], check=True)
        command = [str(built), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)

    return run


@pytest.fixture
def misuse(program):
    """Run a case of misuse.cu, in an order of threads."""
    return lambda case, order=0, **build: program("misuse", case, order, **build)


def test_fragments_are_those_of_the_tables_of_ptx(program):
    run = program("fragments")
    assert (run.returncode, run.stdout) == (0, "0 wrong\n"), run.stdout + run.stderr


def test_no_launch_takes_shared_memory_from_another(program):
    run = program("launching")
    assert run.returncode == 0, run.stderr
    *kernels, runs = run.stdout.splitlines()
    # More than 48 KB, more than 32, little; set once each on either device, to all that there is.
    assert kernels == ["1 1 1", "1 0 1", "0 0 0"] * 2
    assert runs == "6000"


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
