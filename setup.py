"""Build the native ops beside the Python package; without what that needs, the package is pure Python.

``python setup.py build_ext --inplace`` builds in place. ``HIDA_BUILD_NATIVE=0`` builds a pure package; ``MAX_JOBS``
limits the compilers that run at a time; ``CXX`` names the compiler. The CUDA kernels are built where nvcc is found
(``CUDA_HOME``, the PATH, or the package nvidia-cuda-nvcc): ``HIDA_BUILD_CUDA=0`` leaves them out, ``=1`` insists;
``TORCH_CUDA_ARCH_LIST`` ("8.0;9.0a;12.0+PTX") chooses the chips.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What every torch from 2.11 on offers, and nothing besides.
STABLE = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
KERNELS = ["info_acon", "ida", "deform_conv", "deform_conv_backward", "convolution", "winograd", "table"]
HOST = ["ops", "cpu/adaptation", "cpu/deformation", "cpu/convolutions", "cpu/choose"]
CUDA_KERNELS = [
    *("device", "info_acon", "ida", "ida_backward"),
    *("deform_conv", "deform_conv_backward", "deform_conv_gather", "deform_conv_layout", "deform_conv_tiny"),
    "deform_conv_weight",
]
CUDA_HOST = ["cuda/adaptation", "cuda/deformation", "cuda/stream"]
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
X86 = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
        *("-mprefer-vector-width=512", "-Wno-maybe-uninitialized"),  # the warning is about GCC's own header
    ],
}


def missing() -> str:
    """Say why the native ops cannot be built here; empty if they can."""
    if os.environ.get("HIDA_BUILD_NATIVE", "1") == "0":
        return "HIDA_BUILD_NATIVE=0"
    if sys.platform != "linux":
        return f"they are built on Linux only, not on {sys.platform}"
    absent = [name for name in ("torch", "pybind11", "ninja") if util.find_spec(name) is None]
    if "ninja" in absent and shutil.which("ninja"):
        absent.remove("ninja")
    if absent:
        return f"the build environment has no {', '.join(absent)} (try pip install --no-build-isolation)"
    if shutil.which(compiler()[0]) is None:
        return f"no C++ compiler {compiler()[0]!r}"
    header = Path(util.find_spec("torch").submodule_search_locations[0]) / "include/torch/csrc/stable/library.h"
    return "" if header.exists() else "this torch has no stable C++ interface (2.11 or later has)"


def find_nvcc() -> str | None:
    """Return the CUDA compiler, or None where the CUDA kernels are not to be built."""
    wish = os.environ.get("HIDA_BUILD_CUDA", "")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    package = util.find_spec("nvidia")
    packaged = [p for root in (package.submodule_search_locations if package else []) for p in Path(root).glob("cu*")]
    choices = [str(Path(home) / "bin/nvcc") if home else None, shutil.which("nvcc")]
    choices += [str(folder / "bin/nvcc") for folder in packaged]
    nvcc = next((choice for choice in choices if choice and Path(choice).is_file()), None)
    if nvcc is None:
        if wish == "1":
            raise SystemExit("hida: HIDA_BUILD_CUDA=1, but there is no nvcc in CUDA_HOME, on the PATH or in a package.")
        print("hida: there is no nvcc, so the CUDA kernels are not built; the CPU kernels are.", file=sys.stderr)
    return nvcc


def gencode() -> list[str]:
    """Return nvcc's flags for the chips that TORCH_CUDA_ARCH_LIST names."""
    flags = []
    for name in re.split(r"[;, ]+", (os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES).strip()):
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


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def say_missing() -> bool:
    reason = missing()
    if reason:
        print(f"hida: native ops are not built: {reason}.", file=sys.stderr)
    return bool(reason)


class Python(build_py):
    """Without an extension, build_ext is not asked, and this is what says why."""

    def run(self) -> None:
        say_missing()
        super().run()


class Ninja(build_ext):
    """Write one ninja file for both libraries and run it."""

    def run(self) -> None:
        if say_missing():
            return
        work = Path(self.build_temp).resolve() / "hida"
        out = ROOT / "hida" if self.inplace else Path(self.build_lib).resolve() / "hida"
        work.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(rules(out))
        ninja = shutil.which("ninja")
        command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
        jobs = os.environ.get("MAX_JOBS")
        try:
            subprocess.run([*command, "-C", str(work), *(["-j", jobs] if jobs else [])], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"hida: the native ops do not compile (ninja exit status {error.returncode}).") from None

    def get_outputs(self) -> list[str]:
        if missing():
            return []
        names = ["_ops.so", module_name(), *(["_ops_cuda.so"] if find_nvcc() else [])]
        return [str(Path(self.build_lib) / "hida" / name) for name in names]


def module_name() -> str:
    return "_C" + sysconfig.get_config_var("EXT_SUFFIX")


def rules(out: Path) -> str:
    """Return the ninja file that builds the operator library and the module ``hida._C`` into ``out``."""
    torch = Path(util.find_spec("torch").submodule_search_locations[0])
    import pybind11

    def spelled(flags: list[str]) -> str:
        return " ".join(shlex.quote(flag).replace("$", "$$").replace(":", "$:") for flag in flags)

    x86 = platform.machine() in ("x86_64", "AMD64")
    host = [*COMMON, *STABLE, "-isystem", str(torch / "include"), *(["-DHIDA_X86_TABLES"] if x86 else [])]
    module = [
        *COMMON, "-ffp-contract=off", "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include"),
        f'-DHIDA_COMPILER="{" ".join(compiler())}"', f'-DHIDA_TORCH_BUILT="{_torch_version(torch)}"',
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
    ]
    objects: list[str] = []

    def compile_one(source: str, flags: list[str], variant: str = "") -> str:
        target = f"{source.replace('/', '_')}{'.' + variant if variant else ''}.o"
        path = spelled([str(ROOT / "csrc" / f"{source}.cpp")])
        lines.extend([f"build {target}: compile {path}", f"  flags = {spelled(flags)}", f"  variant = {variant}"])
        return target

    objects += [compile_one(source, host) for source in HOST]
    for variant, flags in {"generic": [], **(X86 if x86 else {})}.items():
        objects += [compile_one(f"cpu/{source}", [*COMMON, *flags], variant) for source in KERNELS]
    # torch_cpu must be named for its symbols to be found, though Python has loaded it before.
    link = ["-Wl,--as-needed", f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed", "-lc10"]
    lines += [f"build {spelled([str(out / '_ops.so')])}: link {' '.join(objects)}", f"  flags = {spelled(link)}"]
    lines += [
        f"build {spelled([str(out / module_name())])}: link {compile_one('module', module)}",
        "  flags =",
    ]
    nvcc = find_nvcc()
    if nvcc:
        device = [
            "-std=c++17",
            "-O3",
            "-Werror",
            "all-warnings",
            "-Xcompiler",
            "-Wall,-Wextra,-fPIC,-fvisibility=hidden",
        ]
        lines += [
            f"nvcc = {spelled([nvcc])}",
            "rule cuda",
            "  command = $nvcc $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $in",
            "rule link_cuda",
            "  command = $nvcc -shared --cudart static -o $out $in $flags",
            "  description = $out",
        ]
        parts = [compile_one(source, [*host, "-DHIDA_CUDA_TENSORS"]) for source in CUDA_HOST]
        for source in CUDA_KERNELS:
            parts.append(f"cuda_{source}.cu.o")
            lines += [
                f"build {parts[-1]}: cuda {spelled([str(ROOT / 'csrc/cuda' / f'{source}.cu')])}",
                f"  flags = {spelled([*device, '--compress-mode=size', *gencode()])}",
            ]
        named = ["-Xlinker", "--no-as-needed", "-ltorch_cpu", "-Xlinker", "--as-needed", "-lc10", "-ldl"]
        lines += [
            f"build {spelled([str(out / '_ops_cuda.so')])}: link_cuda {' '.join(parts)}",
            f"  flags = {spelled(['-L' + str(torch / 'lib'), *named])}",
        ]
    return "\n".join(lines) + "\n"


def _torch_version(torch: Path) -> str:
    text = (torch / "version.py").read_text()
    return next(line.split("'")[1] for line in text.splitlines() if line.startswith("__version__"))


setup(
    ext_modules=[] if missing() else [Extension("hida._C", [])],
    cmdclass={"build_ext": Ninja, "build_py": Python},
)
