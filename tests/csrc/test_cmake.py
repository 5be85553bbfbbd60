"""CMake builds the libraries, and its tests pass: without a GPU, all but the run of a CUDA operator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("g++"), reason="needs cmake and g++")
def test_the_libraries_build_and_ctest_passes(tmp_path):
    def run(*command):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    torch_folder = Path(torch.__file__).parent
    run("cmake", "-S", ROOT, "-B", ".", f"-DHIDA_TORCH={torch_folder}", "-DCMAKE_CUDA_ARCHITECTURES=75-real")
    run("cmake", "--build", ".", "-j", os.environ.get("MAX_JOBS", "2"))
    said = run("ctest", "--verbose")
    assert "kernels: " in said
    assert "info_acon on cpu" in said
    if (tmp_path / "libhida_ops_cuda.so").exists():
        expected = "info_acon on cuda:0" if torch.cuda.is_available() else "skipped: no GPU"
        assert expected in said
    else:
        assert not shutil.which("nvcc")
