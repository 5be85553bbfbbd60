"""What the native ops are built from, and what there is to build them with: torch, a C++ compiler, ninja, nvcc."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from importlib import util
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
TORCH = (2, 11)  # the oldest whose stable C++ interface has all that is used here


def listed(group: str) -> list[str]:
    """Return the files (relative to csrc/) or the flags of a group of ``csrc/sources.txt``."""
    lines = (line.split() for line in (CSRC / "sources.txt").read_text().splitlines())
    return [word for first, *words in filter(None, lines) if first == group for word in words]


def compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def no_compiler() -> str:
    """Say that there is no C++ compiler; empty if there is one."""
    return "" if shutil.which(compiler()[0]) else f"there is no C++ compiler {compiler()[0]!r}"


def torch_folder() -> Path | None:
    """Return torch's folder (``HIDA_TORCH``, or that of the package): its headers are all that is used."""
    named = os.environ.get("HIDA_TORCH")
    if named:
        return Path(named).resolve()
    spec = util.find_spec("torch")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def torch_version(folder: Path) -> str:
    """Return a torch's version without importing it; empty if ``folder`` holds none with C++ headers."""
    try:
        text = (folder / "version.py").read_text()
    except OSError:
        return ""
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return found[1] if found and (folder / "include/torch/csrc/stable/library.h").exists() else ""


def suits(version: str) -> bool:
    """Say whether the native ops can be built with the headers of this version of torch."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return bool(found) and (int(found[1]), int(found[2])) >= TORCH


def missing() -> str:
    """Say why the native ops cannot be built here; empty if they can."""
    if os.environ.get("HIDA_BUILD_NATIVE") == "0":
        return os.environ.get("HIDA_NOT_BUILT", "HIDA_BUILD_NATIVE=0")
    if sys.platform != "linux":
        return f"they are built on Linux only, not on {sys.platform}"
    if no_compiler():
        return no_compiler()
    absent = [] if torch_folder() else ["torch"]
    absent += [name for name in ("pybind11", "ninja") if util.find_spec(name) is None]
    if "ninja" in absent and shutil.which("ninja"):
        absent.remove("ninja")
    if absent:
        return f"the build needs {', '.join(absent)} (pip install {' '.join(absent)})"
    if not suits(torch_version(torch_folder())):
        return f"{torch_folder()} holds no headers of a torch from {TORCH[0]}.{TORCH[1]} on"
    return ""


def packaged_nvcc(folders: Iterable[str]) -> list[Path]:
    """Return the compilers in folders of the namespace package ``nvidia``."""
    return [path for folder in folders for path in sorted(Path(folder).glob("cu*/bin/nvcc"))]


@functools.cache
def find_nvcc() -> str | None:
    """Return the CUDA compiler: of ``CUDA_HOME``, on the PATH, in a package, in this order."""
    home = os.environ.get("CUDA_HOME")
    package = util.find_spec("nvidia")
    choices = [Path(home) / "bin/nvcc" if home else None, shutil.which("nvcc")]
    choices += packaged_nvcc(package.submodule_search_locations if package else ())
    return next((str(choice) for choice in choices if choice and Path(choice).is_file()), None)


def missing_cuda() -> str:
    """Say why the CUDA kernels are not to be built; empty if they are.

    Raises ``SystemExit`` where ``HIDA_BUILD_CUDA=1`` insists on them and there is no compiler.
    """
    wish = os.environ.get("HIDA_BUILD_CUDA")
    if wish == "0":
        return os.environ.get("HIDA_NOT_BUILT", "HIDA_BUILD_CUDA=0")
    if find_nvcc():
        return ""
    if wish == "1":
        raise SystemExit("hida: HIDA_BUILD_CUDA=1, but there is no nvcc in CUDA_HOME, on the PATH or in a package.")
    return "there is no nvcc"


def gencode() -> list[str]:
    """Return nvcc's flags for the chips that ``TORCH_CUDA_ARCH_LIST`` names."""
    flags = []
    named = (os.environ.get("TORCH_CUDA_ARCH_LIST") or "").strip()
    for name in re.split(r"[;, ]+", named) if named else listed("chips"):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(
                f"hida: TORCH_CUDA_ARCH_LIST names {name!r}; write compute capabilities, as in '8.0;9.0a;12.0+PTX'."
            )
        arch = "".join(match.groups()[:3])
        flags += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        if match[4]:
            flags += ["-gencode", f"arch=compute_{arch},code=compute_{arch}"]
    return flags
