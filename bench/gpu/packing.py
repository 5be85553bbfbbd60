"""What must travel to a GPU machine without a network, in one folder: libraries, packed pairs, networks, wheels."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from hida.files import write_json

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("_ops.so", "_ops_cuda.so")
STAYS = ("hida/assets/small.safetensors",)
"""tracked files that a training from random weights does not need"""
NETWORKS = ("alexnet-features",)
"""what the perceptual loss needs, by its name in hida weights"""
WHEELS = ("tyro", "docstring-parser", "typeguard")
PYTHON = "3.12"
MIB = 1 << 20


class Mistake(Exception):
    """Something that the user can mend."""


def pack(options) -> None:
    """Fill the folder, write manifest.json into it, and say what travels; Mistake above ``--travel-mib``."""
    into: Path = options.pack
    if into.exists() and not (into / "manifest.json").exists() and any(into.iterdir()):
        raise Mistake(f"'{into}' holds other files; choose another folder with --pack.")
    if not options.data.exists():
        raise Mistake(f"there is no '{options.data}'; prepare FS2K with hida prepare and give its folder by --data.")
    new = into.with_name(f".{into.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        _libraries(options, new / "libraries")
        _data(options.data, new / "train.zip")
        _networks(new / "weights")
        if not options.no_wheels:
            _wheels(new / "wheels", options.wheels, options.python_version)
        files = {p.relative_to(new): p for p in sorted(new.rglob("*")) if p.is_file()}
        listed = {str(name): {"bytes": p.stat().st_size, "sha256": sha256(p)} for name, p in files.items()}
        write_json(new / "manifest.json", {"files": listed})
        sources = sum(size for _, size in tracked())
        total = sources + sum(entry["bytes"] for entry in listed.values())
        if total > options.travel_mib * MIB:  # what was packed before stays, as where this could not be filled
            most = f"{total / MIB:.1f} MiB would travel and {options.travel_mib:g} may"
            raise Mistake(f"{most}; leave files out of the checkout or raise --travel-mib.")
        shutil.rmtree(into, ignore_errors=True)
        new.rename(into)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    for name, entry in listed.items():
        print(f"{entry['bytes'] / MIB:8.2f} MiB  {into / name}")
    print(f"{sources / MIB:8.2f} MiB  the checkout without {', '.join(STAYS)}")
    print(f"{total / MIB:8.2f} MiB  travel, of {options.travel_mib:g} at most")
    print(f"leave behind: {' '.join(STAYS)}; then, on the GPU machine, in this order:")
    named = "" if into == Path("gpu-pack") else f" --pack {shlex.quote(str(into))}"
    print(f"    bash bench/gpu/short.sh first{named}\n    bash bench/gpu/short.sh second")


def tracked() -> list[tuple[str, int]]:
    """Return the checkout's tracked files that travel, with their bytes."""
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "-z"]
        names = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        raise Mistake(f"git does not list the files of '{ROOT}'; pack from a clone.") from None
    return [(n, (ROOT / n).stat().st_size) for n in names if n and n not in STAYS and (ROOT / n).is_file()]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _libraries(options, into: Path) -> None:
    """Copy the libraries of ``--libraries``, or build them for ``--arch``."""
    into.mkdir()
    source = options.libraries
    if source is None:
        built = options.pack.parent / f".{options.pack.name}-build"
        environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": options.arch, "HIDA_BUILD_CUDA": "1"}
        command = ["setup.py", "build_ext", "--build-lib", str(built.resolve()), "--build-temp", str(built.resolve())]
        _run([sys.executable, *command], "the native ops could not be built", environment)
        source = built / "hida"
    for name in LIBRARIES:
        if not (source / name).is_file():
            raise Mistake(f"'{source}' has no {name}; build it with python setup.py build_ext where nvcc is.")
        shutil.copy2(source / name, into / name)


def _data(data: Path, out: Path) -> None:
    """Pack the training pairs; a file that is packed already travels as it is."""
    if data.is_file():
        shutil.copy2(data, out)
        return
    command = [sys.executable, "-m", "hida", "pack", str(data), str(out), "--split", "train"]
    _run(command, f"'{data}' could not be packed")


def _networks(into: Path) -> None:
    into.mkdir()
    program = "import sys; from hida import weights; print(*(weights.find(n) for n in sys.argv[1:]), sep='\\n')"
    found = _run([sys.executable, "-c", program, *NETWORKS], "run hida weights fetch metrics first")
    for line in found.splitlines():
        shutil.copy2(line, into / Path(line).name)


def _wheels(into: Path, names: list[str], version: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    _run([*command, "--python-version", version, "-d", str(into), *names], "the wheels could not be fetched")


def _run(command: list[str], why: str, environment: dict[str, str] | None = None) -> str:
    environment = {**(environment or os.environ), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Mistake(f"{why} ({last}).")
    return done.stdout
