"""CMake builds the libraries, and its tests pass: without a GPU, all but the run of a CUDA operator.

The folders' names are such that a shell, make or a URL would read something else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


TORCH = Path(torch.__file__).parent


@pytest.fixture
def clone(request, tmp_path):
    """What CMake reads, in a folder of another name; a torch beside it."""
    folder = tmp_path / getattr(request, "param", "a (b) 研究 it's & co")
    for name in ("csrc", "tests/csrc"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    (folder / "torch").symlink_to(TORCH)
    return folder


def run(folder, *command, status=0):
    done = subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8", cwd=folder)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("g++"), reason="needs cmake and g++")
def test_the_libraries_build_and_ctest_passes(clone):
    torch_folder = clone / "torch"
    run(clone, "cmake", "-S", ".", "-B", "build", f"-DHIDA_TORCH={torch_folder}", "-DCMAKE_CUDA_ARCHITECTURES=75-real")
    run(clone, "cmake", "--build", "build", "-j", os.environ.get("MAX_JOBS", "2"))
    said = run(clone / "build", "ctest", "--verbose")
    assert "kernels: " in said
    assert "info_acon on cpu" in said
    if (clone / "build/libhida_ops_cuda.so").exists():
        expected = "info_acon on cuda:0" if torch.cuda.is_available() else "skipped: no GPU"
        assert expected in said
    else:
        assert not shutil.which("nvcc")


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("g++"), reason="needs cmake and g++")
@pytest.mark.parametrize("clone", ["semi;colon"], indirect=True)
def test_a_path_that_cmake_cannot_use_is_named_and_a_link_helps(clone, tmp_path):
    said = run(clone, "cmake", "-S", ".", "-B", "build", status=1)
    assert "hida: CMake cannot use a path with a semicolon; name the folder by a symbolic link" in said
    said = run(tmp_path, "cmake", "-S", ROOT, "-B", "build", f"-DHIDA_TORCH={clone / 'torch'}", status=1)
    assert "hida: CMake cannot use a path with a semicolon" in said
    said = run(tmp_path, "cmake", "-S", ROOT, "-B", "build", "-DHIDA_TORCH=/a, b/torch", status=1)
    assert "hida: CMake cannot use torch in a path with a comma" in said
    (tmp_path / "link").symlink_to(clone)
    run(tmp_path, "cmake", "-S", "link", "-B", "other", "-DHIDA_TORCH=", "-DHIDA_CUDA=OFF")


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("nvcc"), reason="needs cmake and nvcc")
@pytest.mark.parametrize("clone", ["a $HOME"], indirect=True)
def test_a_path_that_nvcc_cannot_use_is_named(clone):
    said = run(clone, "cmake", "-S", ".", "-B", "build", "-DHIDA_TORCH=torch", status=1)
    assert "hida: nvcc cannot use a path with a dollar sign" in said
    run(clone, "cmake", "-S", ".", "-B", "build", "-DHIDA_TORCH=torch", "-DHIDA_CUDA=OFF")
