"""Build the CUDA operators for a CPU: the same .cu and operator files, with the headers of this folder for CUDA's.

``python tests/emulation/build.py [--sanitize]`` prints where the library is. Loading it with ``torch.ops.load_library``
defines ``torch.ops.hida_emulation.*``, with the schemas of ``torch.ops.hida``, on CPU tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
INCLUDE = Path(torch.__file__).parent / "include"


def listed(group: str) -> list[str]:
    """Return the files or the flags of a group of ``csrc/sources.txt``."""
    lines = (line.split() for line in (CSRC / "sources.txt").read_text(encoding="utf-8").splitlines())
    return [word for first, *words in filter(None, lines) if first == group for word in words]


# What runs the kernels.
EMULATION = [HERE / "cuda.cpp", HERE / "fibers.cpp", HERE / "runtime.cpp"]
# What stands for the real device and its streams is here.
REPLACED = ("cuda/device.cu", "operators/stream_cuda.cpp")
FLAGS = [
    *("-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"),
    *("-Dhida=hida_emulation", "-DHIDA_EMULATE_CUDA", "-DHIDA_CUDA_TENSORS", f"-I{HERE}", f"-I{CSRC}"),
    *listed("flags_torch"),
]
PLAIN = ["-O2"]
SANITIZE = ["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def sources() -> list[Path]:
    """Return every source of the emulated library."""
    cuda = [CSRC / name for name in (*listed("cuda"), *listed("cuda_host")) if name not in REPLACED]
    return [CSRC / "operators/schemas.cpp", *cuda, *EMULATION, HERE / "device.cpp"]


def compiler() -> list[str]:
    """Return the command of the C++ compiler."""
    return shlex.split(os.environ.get("CXX", "g++"))


def stable_headers() -> bool:
    """Say whether this torch has the headers of the stable interface."""
    return (INCLUDE / "torch/csrc/stable/library.h").exists()


def runtime(name: str) -> str | None:
    """Return the file of a library of the compiler's own, such as libasan.so."""
    done = subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, encoding="utf-8", check=False)
    path = Path(done.stdout.strip())
    return str(path.resolve()) if path.is_absolute() else None


def build(sanitize: bool = False) -> Path:
    """Compile what has changed and return the path of the library.

    Raises:
        RuntimeError: with the compiler's own words, if something does not compile.
    """
    folder = ROOT / "build" / "emulation" / ("sanitized" if sanitize else "plain")
    folder.mkdir(parents=True, exist_ok=True)
    variant = SANITIZE if sanitize else PLAIN
    flags = [*FLAGS, *variant, "-isystem", str(INCLUDE)]
    headers = sorted((*CSRC.rglob("*.h"), *HERE.glob("*.h")))
    common = hashlib.sha256("\0".join([*compiler(), *flags, torch.__version__]).encode())
    for header in headers:
        common.update(header.read_bytes())

    def compile_one(source: Path) -> Path:
        key = common.copy()
        key.update(source.read_bytes())
        target = folder / f"{source.parent.name}_{source.stem}.{key.hexdigest()[:16]}.o"
        if not target.exists():
            for old in folder.glob(f"{source.parent.name}_{source.stem}.*.o"):
                old.unlink(missing_ok=True)
            _run([*compiler(), *flags, "-x", "c++", "-c", str(source)], target)
        return target

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(compile_one, sources()))
    name = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:16]
    library = folder / f"emulation.{name}.so"
    if not library.exists():
        for old in folder.glob("emulation.*.so"):
            old.unlink(missing_ok=True)
        torch_cpu = [f"-L{Path(torch.__file__).parent / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
        _run([*compiler(), "-shared", *variant, *map(str, objects), *torch_cpu], library)
    return library


def _run(command: list[str], target: Path) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}")
    done = subprocess.run([*command, "-o", str(part)], capture_output=True, encoding="utf-8", check=False)
    if done.returncode or done.stderr:
        part.unlink(missing_ok=True)
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    part.replace(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    print(build(parser.parse_args().sanitize))
