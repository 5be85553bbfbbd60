"""The contract with the CPU kernels of every instruction set, each in a process of its own: the choice is made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checking import assert_same, function
from operands import adaptation, upstream_of

from hida import ops
from hida.errors import HidaError
from hida.ops import library

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(not library.loaded, reason=f"the native library is {library.why_not}")


def test_the_kernels_are_those_asked_for():
    wanted = os.environ.get("HIDA_CPU")
    assert library.instruction_set() == (wanted or library.instruction_set())


def test_a_set_that_there_is_not_is_refused_in_a_sentence(monkeypatch):
    code = f"import ctypes, torch; f = ctypes.CDLL({str(library.PATH)!r}).hida_cpu_kernels; f.restype = ctypes.c_char_p"
    environment = {**os.environ, "HIDA_CPU": "sse9"}
    run = subprocess.run(
        [sys.executable, "-c", code + "; print(f())"], env=environment, capture_output=True, encoding="utf-8"
    )
    assert (run.returncode, run.stderr) == (0, "")  # nothing is thrown through C
    assert "HIDA_CPU is 'sse9'; choose avx512, avx2 or generic, or unset it." in run.stdout
    kernels = SimpleNamespace(hida_cpu_kernels=lambda: b"HIDA_CPU asks for avx512, which there is not.")
    monkeypatch.setattr(library.ctypes, "CDLL", lambda path: kernels)
    with pytest.raises(HidaError, match="HIDA_CPU asks for avx512"):
        library.instruction_set()


# What is slow, or the same for all.
LEFT_OUT = (
    "opcheck",
    "compiles",
    "named",
    "derivative",
    "torchvision",
    "transforms",
    "forward_mode",
)  # slow, or the same for all


# The first case of every test and one in sixty of the others, or all of them.
@pytest.mark.parametrize("every", ["60", pytest.param("1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["generic", "avx2", "avx512"])
def test_the_contract_with_the_kernels_of_every_instruction_set(name, every):
    if name == library.instruction_set():
        pytest.skip("the kernels of this very run")
    environment = {**os.environ, "HIDA_CPU": name, "HIDA_TESTS_EVERY": every, "OMP_NUM_THREADS": "1"}
    chosen = " and not ".join(("asked_for or (cpu", *LEFT_OUT)) + ")"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["-m", "not slow", "-k", chosen, str(HERE)]
    run = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    if "which this processor or this build does not have" in run.stdout + run.stderr:
        pytest.skip(f"this processor has no {name}")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["instance_norm_modulate", "ida activated", "ida input"])
def test_gradients_that_pass_the_caches_have_the_bits_of_those_that_do_not(name, dtype):
    call, inputs = function(ops, name), adaptation(name, (1, 64, 64, 64), dtype=dtype)  # 1 MB or 2, and an eighth of it
    upstream = upstream_of(inputs[0])

    def gradients(channels):
        given = [t[:, channels].clone().requires_grad_() for t in inputs]
        with ops.backend("native"):
            return torch.autograd.grad(call(*given), given, upstream[:, channels].clone())

    parts = [gradients(slice(c, c + 8)) for c in range(0, 64, 8)]
    assert_same(gradients(slice(64)), [torch.cat(pieces, 1) for pieces in zip(*parts, strict=True)])
