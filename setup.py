"""Build the native ops beside the Python package; without what that needs, the package is pure Python.

``python setup.py build_ext --inplace`` builds in place, with the torch that is installed. ``pip install .`` builds them
into the wheel: ``tools/build/backend.py``. ``HIDA_BUILD_NATIVE=0`` builds a pure package, ``=1`` insists on the native
ops; ``MAX_JOBS`` limits the compilers that run at a time; ``CXX`` names the compiler; ``HIDA_TORCH`` the folder of a
torch whose headers to use. The CUDA kernels are built where nvcc is found (``CUDA_HOME``, the PATH, or the package
nvidia-cuda-nvcc; pip builds them for the GPUs that are here only): ``HIDA_BUILD_CUDA=0`` leaves them out, ``=1``
insists; ``TORCH_CUDA_ARCH_LIST`` ("8.0;9.0a;12.0+PTX", or "native": the GPUs that are here) chooses the chips. Files,
compiler flags and chips are listed in ``csrc/sources.txt``.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools/build"))
from toolchain import (  # noqa: E402
    chips,
    compiler,
    find_nvcc,
    gencode,
    jobs,
    listed,
    missing,
    missing_cuda,
    say,
    torch_folder,
    torch_version,
    wish,
)

CPU_LIBRARY, CUDA_LIBRARY, MODULE = "_ops.so", "_ops_cuda.so", "_C" + sysconfig.get_config_var("EXT_SUFFIX")
# How long a step of ninja takes on a core of 2025, on average; a CUDA file for one chip.
CPU_SECONDS, CUDA_SECONDS = 2, 5


class Python(build_py):
    """Say, here and in the package, what is not built: without an extension, build_ext is not asked."""

    def run(self) -> None:
        if missing():
            say(f"native ops are not built: {missing()}.")
        super().run()
        if not self.editable_mode:
            note = Path(self.build_lib) / "hida/not_built.txt"  # hida.ops.library reads it
            note.unlink(missing_ok=True)
            if reason := missing() or missing_cuda():
                note.write_text(reason + "\n", encoding="ascii", errors="backslashreplace")


class Ninja(build_ext):
    """Write one ninja file for both libraries and run it."""

    def run(self) -> None:
        if missing():
            if wish("HIDA_BUILD_NATIVE") != "0":
                raise SystemExit(f"hida: native ops are not built: {missing()}.")
            print(f"hida: native ops are not built: {missing()}.", file=sys.stderr)
            return
        work = Path(self.build_temp).resolve() / "hida"
        out = ROOT / "hida" if self.inplace else Path(self.build_lib).resolve() / "hida"
        for folder in (work / "temporary", out):
            folder.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_bytes(os.fsencode(rules(work)))
        self._build(work, out, "CPU kernels", CPU_SECONDS, CPU_LIBRARY, MODULE)
        if not missing_cuda():
            what = f"CUDA kernels for {', '.join(chips())}"
            self._build(work, out, what, CUDA_SECONDS * len(chips()), CUDA_LIBRARY)
            return
        left_out = f"the CUDA kernels are not built, the CPU kernels are: {missing_cuda()}."
        if find_nvcc() and "HIDA_NOT_BUILT" in os.environ:  # the user has not asked for that
            say(left_out)
        else:
            print(f"hida: {left_out}", file=sys.stderr)
        if not self.inplace:
            (out / CUDA_LIBRARY).unlink(missing_ok=True)  # of an earlier build: the wheel takes all that lies here

    def _build(self, work: Path, out: Path, what: str, seconds: float, *targets: str) -> None:
        """Build targets in ``work`` and copy them to ``out``; a step takes a core so many seconds."""
        ninja = shutil.which("ninja")
        most = jobs()
        command = [*([ninja] if ninja else [sys.executable, "-m", "ninja"]), *(["-j", most] if most else []), *targets]
        environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
        if not re.fullmatch(r"[\w./+-]+", tempfile.gettempdir(), re.ASCII):
            environment["TMPDIR"] = "temporary"  # nvcc passes the folder's name on to a shell
        dry = subprocess.run([*command, "-n"], cwd=work, env=environment, capture_output=True, check=False)
        if steps := re.search(rb"\[\d+/(\d+)\]", dry.stdout):
            cores = len(os.sched_getaffinity(0))
            cores = min(cores, int(most)) if most else cores
            minutes = max(1, round(int(steps[1]) * seconds / cores / 60))
            say(f"compiling the {what} on {cores} core{'s'[: cores > 1]}: about {minutes} min ...")
        try:
            subprocess.run(command, cwd=work, env=environment, check=True)
        except subprocess.CalledProcessError as error:
            what = what.split(" for ")[0]
            raise CompileError(f"the {what} do not compile (ninja exit status {error.returncode})") from None
        for name in targets:
            if not ((out / name).is_file() and filecmp.cmp(work / name, out / name, shallow=False)):
                part = shutil.copy2(work / name, out / f"{name}.part")
                os.replace(part, out / name)  # whoever has loaded the library keeps it

    def get_outputs(self) -> list[str]:
        if missing():
            return []
        names = [CPU_LIBRARY, MODULE, *([] if missing_cuda() else [CUDA_LIBRARY])]
        return [str(Path(self.build_lib) / "hida" / name) for name in names]


def link_to(path: Path, work: Path, name: str, key: str = "") -> str:
    """Return what to call a folder in a command that runs in ``work``: a symbolic link's name.

    So no command and no list of headers contains the names of a user's folders, with spaces, quotes and whatever else
    means something to a shell, to make, to ninja or to nvcc. The link's name changes with ``key`` (by default the
    path), so that what was compiled with another folder is compiled again.
    """
    link = work / f"{name}-{hashlib.sha256(os.fsencode(key or path)).hexdigest()[:8]}"
    for old in work.glob(f"{name}-????????"):
        old.unlink()
    try:
        link.symlink_to(path.resolve())
    except OSError:  # a file system without links
        return str(path.resolve())
    return link.name


def rules(work: Path) -> str:
    """Return the ninja file that builds, in ``work``, the operator libraries and the module ``hida._C``."""
    torch = torch_folder()
    import pybind11

    def spelled(flags: list[str]) -> str:
        return " ".join(shlex.quote(flag).replace("$", "$$") for flag in flags)

    def path(name: str) -> str:
        return re.sub(r"([$ :])", r"$\1", name)

    csrc = link_to(ROOT / "csrc", work, "csrc", "csrc")
    torch_include = link_to(torch / "include", work, "torch", torch_version(torch))
    pybind = link_to(Path(pybind11.get_include()), work, "pybind11")
    python = link_to(Path(sysconfig.get_path("include")), work, "python")
    called = " ".join(compiler()).replace("\\", "\\\\").replace('"', '\\"')
    common = listed("flags_cxx")
    host = [*common, *listed("flags_torch"), "-isystem", torch_include]
    module = [
        *common, "-ffp-contract=off", "-isystem", pybind, "-isystem", python,
        f'-DHIDA_COMPILER="{called}"', f'-DHIDA_TORCH_BUILT="{torch_version(torch)}"',
    ]  # fmt: skip
    lines = [
        f"cxx = {spelled(compiler())}",
        "rule compile",
        "  command = $cxx $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in $variant",
        "rule link",
        "  command = $cxx -shared -o $out $in $flags",
        "  description = $out",
        # An operator library must name libtorch_cpu.so for its symbols to be found, though Python has loaded it before.
        # An empty library of that name is enough to link with: no more of torch is needed than its headers.
        "rule name",
        "  command = $cxx -shared -x c++ /dev/null -o $out -Wl,-soname,$out",
        "build libtorch_cpu.so: name",
    ]

    def compile_one(source: str, flags: list[str], variant: str = "") -> str:
        target = f"{source.replace('/', '_')}{'.' + variant if variant else ''}.o"
        lines.append(f"build {target}: compile {path(f'{csrc}/{source}')}")
        lines.extend([f"  flags = {spelled(flags)}", f"  variant = {variant}"])
        return target

    def link(name: str, rule: str, objects: list[str], flags: list[str], needs: str = "") -> None:
        lines.append(f"build {name}: {rule} {' '.join(objects)}{needs}")
        lines.append(f"  flags = {spelled(flags)}")

    objects = [compile_one(source, host) for source in listed("host")]
    for variant in ["generic", *(["avx2", "avx512"] if platform.machine() in ("x86_64", "AMD64") else [])]:
        flags = [*common, *listed(f"flags_{variant}")]
        objects += [compile_one(source, flags, variant) for source in listed("kernel")]
    named = ["-Wl,--no-as-needed", "-L.", "-ltorch_cpu", "-Wl,--as-needed"]
    link(CPU_LIBRARY, "link", objects, named, " | libtorch_cpu.so")
    link(MODULE, "link", [compile_one("module.cpp", module)], [])
    if not missing_cuda():
        nvcc = Path(find_nvcc())
        lines += [
            f"nvcc = {spelled([link_to(nvcc.parent, work, 'nvcc') + '/' + nvcc.name])}",
            "rule cuda",
            "  command = $nvcc $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $in",
            "rule link_cuda",
            "  command = $nvcc -shared --cudart static -o $out $in $flags",
            "  description = $out",
        ]
        parts = [compile_one(source, [*host, "-DHIDA_CUDA_TENSORS"]) for source in listed("cuda_host")]
        for source in listed("cuda"):
            parts.append(f"{source.replace('/', '_')}.o")
            lines += [
                f"build {parts[-1]}: cuda {path(f'{csrc}/{source}')}",
                f"  flags = {spelled([*listed('flags_nvcc'), '--compress-mode=size', *gencode()])}",
            ]
        named = ["-Xlinker", "--no-as-needed,-L.,-ltorch_cpu,--as-needed", "-ldl"]  # apart, nvcc would reorder them
        link(CUDA_LIBRARY, "link_cuda", parts, named, " | libtorch_cpu.so")
    return "\n".join(lines) + "\n"


setup(
    ext_modules=[] if missing() else [Extension("hida._C", [])],
    cmdclass={"build_ext": Ninja, "build_py": Python},
)
