"""The build backend: setuptools', which builds the native ops into the wheel where that is possible.

pip builds in an environment of its own, without torch. Of torch only the headers are needed, in any version from 2.11
on: those of the environment that is being installed into are used. Where that has no torch yet, pip fetches the one
file of torch's package, without what torch depends on: the file that is installed beside hida a moment later, and then
comes out of pip's cache.

What does not compile is left out: the CUDA library, or all, and the package is pure PyTorch, which ``hida info`` then
gives the reason for. ``HIDA_BUILD_NATIVE=0`` asks for that, ``=1`` makes it an error. An editable install builds
nothing unless ``HIDA_BUILD_NATIVE=1``: the libraries of ``python setup.py build_ext --inplace`` serve it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.errors import CompileError
from toolchain import TORCH, find_nvcc, missing, no_compiler, packaged_nvcc, suits, torch_folder, torch_version

TOOLS = ["ninja>=1.11", "pybind11>=2.13"]
# Asks the interpreter, free of pip's environment, where packages lie that it can import. Nothing is imported.
PROBE = """
import sys
from importlib.util import find_spec
sys.path = [path for path in sys.path if path]
for name in ("torch", "nvidia"):
    spec = find_spec(name)
    print(*(spec and spec.submodule_search_locations or ()), sep="\\t")
"""


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    """Name what the wheel's build needs: torch itself is not among it."""
    needed = build_meta.get_requires_for_build_wheel(config_settings)
    if os.environ.get("HIDA_BUILD_NATIVE") == "0" or sys.platform != "linux":
        return needed
    return [*needed, *TOOLS, *([] if _installed()[0] else ["pip"])]


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    """Name what an editable install needs: nothing more than setuptools, unless the native ops are asked for."""
    if os.environ.get("HIDA_BUILD_NATIVE") == "1":
        return get_requires_for_build_wheel(config_settings)
    return build_meta.get_requires_for_build_editable(config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    """Build the wheel with the CPU library, and the CUDA library where nvcc is, or with what of them compiles."""
    wish = os.environ.get("HIDA_BUILD_NATIVE")
    with _environment() as environment, _headers() as why_not:
        if why_not:
            environment.update(HIDA_BUILD_NATIVE="0", HIDA_NOT_BUILT=why_not)
        if wish == "1" and missing():
            raise SystemExit(f"hida: HIDA_BUILD_NATIVE=1, but {missing()}.")
        while True:
            try:
                return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
            except SystemExit as error:
                # setuptools ends with a string; what it was made of says whether another try is of use.
                if not isinstance(error.__context__, CompileError):
                    raise
                left_out = "HIDA_BUILD_CUDA" if "CUDA" in str(error) else "HIDA_BUILD_NATIVE"
                if environment.get(left_out) == "1":
                    raise
                print(f"hida: {error.__context__}; the package is built without them.", file=sys.stderr)
                environment.update({left_out: "0", "HIDA_NOT_BUILT": str(error.__context__)})


def build_editable(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    """Make the editable install; with ``HIDA_BUILD_NATIVE=1``, build the native ops in place too."""
    wish = os.environ.get("HIDA_BUILD_NATIVE")
    with _environment() as environment:
        if wish != "1":
            environment["HIDA_BUILD_NATIVE"] = "0"
            return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
        with _headers() as why_not:
            if why_not or missing():
                raise SystemExit(f"hida: HIDA_BUILD_NATIVE=1, but {why_not or missing()}.")
            return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


@contextmanager
def _environment() -> Iterator[os._Environ]:
    """Let the environment be changed for a while."""
    before = dict(os.environ)
    try:
        yield os.environ
    finally:
        os.environ.clear()
        os.environ.update(before)


def _installed() -> tuple[Path | None, Path | None]:
    """Return the folder of a torch with fitting headers and a packaged nvcc, where hida is going to be installed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False)
    torch, nvidia = [*(line.split("\t") for line in done.stdout.splitlines()), [""], [""]][:2]
    folders = [Path(folder) for folder in torch if folder and suits(torch_version(Path(folder)))]
    return next(iter(folders), None), next(iter(packaged_nvcc(filter(None, nvidia))), None)


@contextmanager
def _headers() -> Iterator[str]:
    """Set ``HIDA_TORCH`` to a folder with torch's headers; yield why there are none, or an empty string."""
    named = torch_folder()
    if os.environ.get("HIDA_BUILD_NATIVE") == "0" or sys.platform != "linux" or no_compiler():
        yield ""  # setup.py says it
        return
    if named and (os.environ.get("HIDA_TORCH") or suits(torch_version(named))):
        yield ""
        return
    torch, nvcc = _installed()
    if nvcc and not find_nvcc():
        os.environ["CUDA_HOME"] = str(nvcc.parent.parent)
        find_nvcc.cache_clear()
    if torch:
        os.environ["HIDA_TORCH"] = str(torch)
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="hida-torch-") as folder:
        why_not = _fetch(Path(folder))
        os.environ["HIDA_TORCH"] = str(Path(folder) / "torch")
        yield why_not


def _fetch(folder: Path) -> str:
    """Put the headers of the torch that pip would install into ``folder``; say why that failed, if it did."""
    version = f"torch>={TORCH[0]}.{TORCH[1]}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    print(f"hida: there is no torch here yet: fetching {version} for its headers.", file=sys.stderr)
    if subprocess.run([*command, version], check=False).returncode:
        return f"there was no torch yet, and pip could not fetch {version} for its headers"
    try:
        wheel = next(folder.glob("torch-*.whl"))
        with ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("torch/include/") or name == "torch/version.py":
                    archive.extract(name, folder)
        wheel.unlink()
    except (StopIteration, BadZipFile, OSError) as error:
        return f"there was no torch yet, and its package could not be unpacked ({error or type(error).__name__})"
    return ""
