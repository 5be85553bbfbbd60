"""The build backend: setuptools', which builds the native ops into the wheel where that is possible.

pip builds in an environment of its own, without torch. Of torch only the headers are needed, in any version from 2.11
on: those of the environment that is being installed into are used. Where that has no torch yet, pip fetches the one
file of torch's package, without what torch depends on: the file that is installed beside hida a moment later, and then
comes out of pip's cache.

Where there is no compiler the package is pure PyTorch, which is said here and by ``hida info``; what does not compile
is an error. ``HIDA_BUILD_NATIVE=0`` asks for a pure package, ``=1`` makes a missing tool an error. CUDA kernels are
built for the GPUs that are here, and where there are none only if ``HIDA_BUILD_CUDA=1`` asks for them; if they do not
compile and were not asked for, they are left out. An editable install builds nothing unless one of the two is 1: the
libraries of ``python setup.py build_ext --inplace`` serve it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import toolchain
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.errors import CompileError
from toolchain import (
    TORCH,
    find_nvcc,
    jobs,
    missing,
    no_compiler,
    packaged_nvcc,
    say,
    suits,
    torch_folder,
    torch_version,
    usable_gpus,
    wish,
)

toolchain.behind_pip = True
TOOLS = ["ninja>=1.11", "pybind11>=2.13"]
# Asks the interpreter, free of pip's environment, where packages lie that it can import. Nothing is imported.
PROBE = """
import json, sys
from importlib.util import find_spec
sys.path = [path for path in sys.path if path]
specs = [find_spec(name) for name in ("torch", "nvidia")]
print(json.dumps([list(spec and spec.submodule_search_locations or ()) for spec in specs]))
"""


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    """Name what the wheel's build needs: torch itself is not among it."""
    needed = build_meta.get_requires_for_build_wheel(config_settings)
    if wish("HIDA_BUILD_NATIVE") == "0" or sys.platform != "linux":
        return needed
    return [*needed, *TOOLS, *([] if _installed()[0] else ["pip"])]


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    """Name what an editable install needs: nothing more than setuptools, unless the native ops are asked for."""
    if _insists():
        return get_requires_for_build_wheel(config_settings)
    return build_meta.get_requires_for_build_editable(config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    """Build the wheel with the CPU library, and with the CUDA library where a GPU is or where that is asked for."""
    insists = _insists()
    with _environment() as environment, _headers() as why_not:
        if why_not and not insists:
            environment.update(HIDA_BUILD_NATIVE="0", HIDA_NOT_BUILT=why_not)
        if insists and (why_not or missing()):
            raise SystemExit(f"hida: {insists}=1, but {why_not or missing()}.")
        _choose_cuda()
        while True:
            try:
                return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
            except SystemExit as error:
                # setuptools ends with a string; what it was made of says whether another try is of use.
                cause = error.__context__
                if not isinstance(cause, CompileError):
                    raise
                if "CUDA" not in str(cause):
                    raise SystemExit(f"hida: {cause}; HIDA_BUILD_NATIVE=0 installs the package without them.") from None
                if insists == "HIDA_BUILD_CUDA":
                    raise SystemExit(f"hida: {cause}; HIDA_BUILD_CUDA=0 installs the package without them.") from None
                say(f"{cause}; the package is built without them.")
                environment.update(HIDA_BUILD_CUDA="0", HIDA_NOT_BUILT=str(cause))


def build_editable(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    """Make the editable install; with ``HIDA_BUILD_NATIVE=1``, build the native ops in place too."""
    insists = _insists()
    with _environment() as environment:
        if not insists:
            environment["HIDA_BUILD_NATIVE"] = "0"
            return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
        with _headers() as why_not:
            if why_not or missing():
                raise SystemExit(f"hida: {insists}=1, but {why_not or missing()}.")
            _choose_cuda()
            return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _insists() -> str:
    """Return the variable that makes it an error if the native ops cannot be built."""
    return next((name for name in ("HIDA_BUILD_CUDA", "HIDA_BUILD_NATIVE") if wish(name) == "1"), "")


def _choose_cuda() -> None:
    """Set what setup.py reads so that CUDA kernels are built for the GPUs here, and without any only on request."""
    if missing() or wish("HIDA_BUILD_CUDA") == "0" or not find_nvcc():
        return  # setup.py says it
    chips, why_not = usable_gpus()
    if chips:
        named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(chips) if named.lower() in ("", "native") else named
    elif not wish("HIDA_BUILD_CUDA"):
        os.environ["HIDA_BUILD_CUDA"] = "0"
        os.environ["HIDA_NOT_BUILT"] = (
            f"the build found no usable GPU ({why_not}); with HIDA_BUILD_CUDA=1 pip builds them all the same"
        )


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
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    torch, nvidia = ([], []) if done.returncode else json.loads(done.stdout.splitlines()[-1])
    folders = [Path(folder) for folder in torch if suits(torch_version(Path(folder)))]
    return next(iter(folders), None), next(iter(packaged_nvcc(nvidia)), None)


@contextmanager
def _headers() -> Iterator[str]:
    """Set ``HIDA_TORCH`` to a folder with torch's headers; yield why there are none, or an empty string."""
    named = torch_folder()
    if wish("HIDA_BUILD_NATIVE") == "0" or sys.platform != "linux" or no_compiler():
        yield ""  # setup.py says it
        return
    jobs()  # what is wrong is said before anything is fetched
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
    say(f"there is no torch here yet: fetching {version} for its headers.")
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
