"""What the native ops are built from, and with what: torch, a C++ compiler, ninja, nvcc, and the GPUs to build for."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from importlib import util
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
behind_pip = False  # which hides what a build prints
TORCH = (2, 11)  # the oldest whose stable C++ interface has all that is used here


def wish(name: str) -> str:
    """Return what an environment variable asks for: "0", "1", or nothing."""
    value = os.environ.get(name, "").strip()
    if value not in ("", "0", "1"):
        raise SystemExit(f"hida: {name} is {value!r}; set it to 0 or 1, or leave it unset.")
    return value


def say(text: str) -> None:
    """Say what the user should know, behind pip on the terminal as well."""
    print(f"hida: {text}", file=sys.stderr, flush=True)
    if not behind_pip or sys.stderr.isatty():
        return
    try:
        terminal = os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        return  # there is none
    try:
        if os.tcgetpgrp(terminal) == os.getpgrp():  # what runs in the background keeps quiet
            os.write(terminal, f"\r\nhida: {text}\r\n".encode(errors="replace"))
    except OSError:
        pass
    finally:
        os.close(terminal)


def listed(group: str) -> list[str]:
    """Return the files (relative to csrc/) or the flags of a group of ``csrc/sources.txt``."""
    lines = (line.split() for line in (CSRC / "sources.txt").read_text(encoding="utf-8").splitlines())
    return [word for first, *words in filter(None, lines) if first == group for word in words]


def compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    named = os.environ.get("CXX", "")
    if shutil.which(named):
        return [named]  # a path may have spaces
    try:
        return shlex.split(named) or ["g++"]
    except ValueError as error:
        raise SystemExit(f"hida: CXX is {named!r}, which is no command ({error}); correct it, or unset it.") from None


def jobs() -> str:
    """Return how many compilers ``MAX_JOBS`` lets run at a time; empty if it does not say."""
    value = os.environ.get("MAX_JOBS", "").strip()
    if value and not re.fullmatch("0*[1-9][0-9]{,5}", value, re.ASCII):
        raise SystemExit(f"hida: MAX_JOBS is {value!r}; set it to a whole number above 0, or leave it unset.")
    return value


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
        text = (folder / "version.py").read_text(encoding="utf-8")
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
    if wish("HIDA_BUILD_NATIVE") == "0":
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
    wanted = wish("HIDA_BUILD_CUDA")
    if wanted == "0":
        return os.environ.get("HIDA_NOT_BUILT", "HIDA_BUILD_CUDA=0")
    if find_nvcc():
        return ""
    if wanted == "1":
        raise SystemExit("hida: HIDA_BUILD_CUDA=1, but there is no nvcc in CUDA_HOME, on the PATH or in a package.")
    return "there is no nvcc"


@functools.cache
def usable_gpus(patience: float = 30) -> tuple[list[str], str]:
    """Ask nvidia-smi for the chips of the GPUs here, which needs no torch.

    Returns:
        The chips as ``TORCH_CUDA_ARCH_LIST`` has them, each once, and, if there are none, why not.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return [], "CUDA_VISIBLE_DEVICES hides all GPUs"
    program = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if program is None:
        return [], "there is no nvidia-smi"
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        answer = child.communicate(timeout=patience)[0].decode(errors="replace")
    except OSError as error:
        return [], f"nvidia-smi does not run ({error.strerror})"
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and not waited for: a driver that hangs holds it for ever
        return [], f"nvidia-smi gave no answer in {patience:.0f} seconds"
    if child.returncode:
        return [], f"nvidia-smi fails (exit status {child.returncode})"
    found = {(int(a), int(b)) for a, b in re.findall(r"^\s*(\d+)\.(\d)\s*$", answer, re.MULTILINE)}
    oldest = min(tuple(map(int, re.match(r"(\d+)\.(\d)", chip).groups())) for chip in listed("chips"))
    usable = [f"{a}.{b}{'a' if (a, b) == (9, 0) else ''}" for a, b in sorted(found) if (a, b) >= oldest]
    if usable or not found:
        return usable, "" if usable else "nvidia-smi names no GPU"
    return [], f"the GPU's compute capability is below {oldest[0]}.{oldest[1]}"


def chips() -> list[str]:
    """Return the chips to build for: those that ``TORCH_CUDA_ARCH_LIST`` names, or all that are listed."""
    named = list(filter(None, re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))))
    if [name.lower() for name in named] != ["native"]:
        return named or listed("chips")
    found, why_not = usable_gpus()
    if not found:
        raise SystemExit(
            f"hida: TORCH_CUDA_ARCH_LIST is {named[0]!r}, but {why_not}; write compute capabilities, as in "
            "'8.0;9.0a;12.0+PTX'."
        )
    return found


def gencode() -> list[str]:
    """Return nvcc's flags for the chips to build for."""
    flags = []
    for name in chips():
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
