"""Build the native ops beside the Python package; without what that needs, the package is pure Python.

``python setup.py build_ext --inplace`` builds in place, with the torch that is installed. ``pip install .`` builds them
into the wheel: ``tools/build/backend.py``. ``HIDA_BUILD_NATIVE=0`` builds a pure package, ``=1`` insists on the native
ops; ``MAX_JOBS`` limits the compilers that run at a time; ``CXX`` names the compiler; ``HIDA_TORCH`` the folder of a
torch whose headers to use. The CUDA kernels are built where nvcc is found (``CUDA_HOME``, the PATH, or the package
nvidia-cuda-nvcc): ``HIDA_BUILD_CUDA=0`` leaves them out, ``=1`` insists; ``TORCH_CUDA_ARCH_LIST`` ("8.0;9.0a;12.0+PTX")
chooses the chips. Files, compiler flags and chips are listed in ``csrc/sources.txt``.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools/build"))
from toolchain import (  # noqa: E402
    compiler,
    find_nvcc,
    gencode,
    listed,
    missing,
    missing_cuda,
    torch_folder,
    torch_version,
)

CPU_LIBRARY, CUDA_LIBRARY, MODULE = "_ops.so", "_ops_cuda.so", "_C" + sysconfig.get_config_var("EXT_SUFFIX")


class Python(build_py):
    """Say, here and in the package, what is not built: without an extension, build_ext is not asked."""

    def run(self) -> None:
        if missing():
            print(f"hida: native ops are not built: {missing()}.", file=sys.stderr)
        super().run()
        if not self.editable_mode:
            note = Path(self.build_lib) / "hida/not_built.txt"  # hida.ops.library reads it
            note.unlink(missing_ok=True)
            if reason := missing() or missing_cuda():
                note.write_text(reason + "\n")


class Ninja(build_ext):
    """Write one ninja file for both libraries and run it."""

    def run(self) -> None:
        if missing():
            message = f"hida: native ops are not built: {missing()}."
            if os.environ.get("HIDA_BUILD_NATIVE") != "0":
                raise SystemExit(message)
            print(message, file=sys.stderr)
            return
        work = Path(self.build_temp).resolve() / "hida"
        out = ROOT / "hida" if self.inplace else Path(self.build_lib).resolve() / "hida"
        work.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(rules(out))
        self._ninja(work, "CPU kernels", out / CPU_LIBRARY, out / MODULE)
        if not missing_cuda():
            self._ninja(work, "CUDA kernels", out / CUDA_LIBRARY)
            return
        print(f"hida: the CUDA kernels are not built, the CPU kernels are: {missing_cuda()}.", file=sys.stderr)
        if not self.inplace:
            (out / CUDA_LIBRARY).unlink(missing_ok=True)  # of an earlier build: the wheel takes all that lies here

    def _ninja(self, work: Path, what: str, *targets: Path) -> None:
        ninja = shutil.which("ninja")
        jobs = os.environ.get("MAX_JOBS")
        command = [*([ninja] if ninja else [sys.executable, "-m", "ninja"]), "-C", str(work)]
        try:
            subprocess.run([*command, *(["-j", jobs] if jobs else []), *map(str, targets)], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"the {what} do not compile (ninja exit status {error.returncode})") from None

    def get_outputs(self) -> list[str]:
        if missing():
            return []
        names = [CPU_LIBRARY, MODULE, *([] if missing_cuda() else [CUDA_LIBRARY])]
        return [str(Path(self.build_lib) / "hida" / name) for name in names]


def rules(out: Path) -> str:
    """Return the ninja file that builds the operator libraries and the module ``hida._C`` into ``out``."""
    torch = torch_folder()
    import pybind11

    def spelled(flags: list[str]) -> str:
        return " ".join(shlex.quote(flag).replace("$", "$$").replace(":", "$:") for flag in flags)

    common = listed("flags_cxx")
    host = [*common, *listed("flags_torch"), "-isystem", str(torch / "include")]
    module = [
        *common, "-ffp-contract=off", "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include"),
        f'-DHIDA_COMPILER="{" ".join(compiler())}"', f'-DHIDA_TORCH_BUILT="{torch_version(torch)}"',
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
        path = spelled([str(ROOT / "csrc" / source)])
        lines.extend([f"build {target}: compile {path}", f"  flags = {spelled(flags)}", f"  variant = {variant}"])
        return target

    def link(name: str, rule: str, objects: list[str], flags: list[str], needs: str = "") -> None:
        lines.append(f"build {spelled([str(out / name)])}: {rule} {' '.join(objects)}{needs}")
        lines.append(f"  flags = {spelled(flags)}")

    objects = [compile_one(source, host) for source in listed("host")]
    for variant in ["generic", *(["avx2", "avx512"] if platform.machine() in ("x86_64", "AMD64") else [])]:
        flags = [*common, *listed(f"flags_{variant}")]
        objects += [compile_one(source, flags, variant) for source in listed("kernel")]
    named = ["-Wl,--no-as-needed", "-L.", "-ltorch_cpu", "-Wl,--as-needed"]
    link(CPU_LIBRARY, "link", objects, named, " | libtorch_cpu.so")
    link(MODULE, "link", [compile_one("module.cpp", module)], [])
    if not missing_cuda():
        lines += [
            f"nvcc = {spelled([find_nvcc()])}",
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
                f"build {parts[-1]}: cuda {spelled([str(ROOT / 'csrc' / source)])}",
                f"  flags = {spelled([*listed('flags_nvcc'), '--compress-mode=size', *gencode()])}",
            ]
        named = ["-Xlinker", "--no-as-needed,-L.,-ltorch_cpu,--as-needed", "-ldl"]  # apart, nvcc would reorder them
        link(CUDA_LIBRARY, "link_cuda", parts, named, " | libtorch_cpu.so")
    return "\n".join(lines) + "\n"


setup(
    ext_modules=[] if missing() else [Extension("hida._C", [])],
    cmdclass={"build_ext": Ninja, "build_py": Python},
)
