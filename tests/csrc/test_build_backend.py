"""The build backend: what it asks for, what it builds where something is missing, and what the package says then."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

# Not imported: it would put its own distutils into the process of the tests.
if not any(int(found.version.split(".")[0]) >= 77 for found in metadata.distributions(name="setuptools")):
    pytest.skip("the build needs setuptools from 77 on", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
STABLE = "torch/include/torch/csrc/stable/library.h"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a build reads, so that nothing is written into the clone."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "tools/build", "hida"):
        left_out = shutil.ignore_patterns("*.so", "*.safetensors", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    (folder / "hida/assets/small.safetensors").touch()
    return folder


def call(tree, hook, *arguments, python=(sys.executable, None), status=0, **environment):
    """Run a hook as a front end does, in a process of its own; return what it returns, and what it prints."""
    paths = [str(tree / "tools/build"), *([str(python[1])] if python[1] else [])]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HIDA_") and k not in ("CUDA_HOME", "CXX")}
    code = f"import json, sys, backend as b; r = b.{hook}(*sys.argv[1:]); print(json.dumps(r))"
    done = subprocess.run(
        [python[0], "-c", code, *map(str, arguments)],
        env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment},
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if status == 0 else None, done.stdout + done.stderr


def note(folder, wheel):
    with zipfile.ZipFile(folder / wheel) as archive:
        names = archive.namelist()
        assert not any(name.endswith(".so") for name in names)
        return archive.read("hida/not_built.txt").decode().strip()


def a_torch(folder, version):
    """A folder that looks like torch's, with a header that does not compile."""
    header = folder / STABLE
    header.parent.mkdir(parents=True)
    header.write_text("#error no torch\n")
    (folder / "torch/version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\n")
    (folder / "torch/__init__.py").write_text("raise ImportError('the build must not import torch')\n")
    return folder / "torch"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An environment without torch, in which pip builds with tools of its own: (interpreter, folder of tools)."""
    folder, tools = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("tools")
    venv.create(folder, symlinks=True)
    for name in ("setuptools", "pip", "pybind11", "ninja"):
        if not any(metadata.distributions(name=name)):
            continue
        for part in {Path(file).parts[0] for file in metadata.files(name)} - {"..", "distutils-precedence.pth"}:
            (tools / part).symlink_to(metadata.distribution(name).locate_file(part))
    return folder / "bin/python", tools


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")
def test_pips_wheel_has_the_native_ops(tree, tmp_path):
    """As a user builds it, in pip's own environment; used from another folder, it runs them."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HIDA_BUILD_NATIVE", "HIDA_BUILD_CUDA")
    }
    environment["TORCH_CUDA_ARCH_LIST"] = "7.5"
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-v", "--no-deps", "-w", str(tmp_path), str(tree)], env=environment, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{python}-{python}-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        built = {name.split("/")[1].split(".")[0] for name in archive.namelist() if name.endswith(".so")}
    cuda = {"_ops_cuda"} if shutil.which("nvcc") or "CUDA_HOME" in os.environ else set()
    assert built == {"_C", "_ops"} | cuda
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)], env=environment, check=True)
    code = "import hida, hida.ops; print(hida.__file__, hida.ops.available()['cpu'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True
    )
    assert done.stdout.decode().split() == [str(site / "hida/__init__.py"), "True"]


class TestWhatIsAskedFor:
    def test_torch_is_not_and_pip_only_where_torch_is_not_installed(self, tree, empty):
        needed, _ = call(tree, "get_requires_for_build_wheel")
        assert [name.split(">")[0] for name in needed] == ["ninja", "pybind11"]
        needed, _ = call(tree, "get_requires_for_build_wheel", python=empty)
        assert [name.split(">")[0] for name in needed] == ["ninja", "pybind11", "pip"]

    @pytest.mark.parametrize(("version", "asks"), [("2.10.1", True), ("2.11.0", False), ("3.0.0a0+git1", False)])
    def test_a_torch_that_is_too_old_counts_as_none(self, tree, empty, tmp_path, version, asks):
        a_torch(tmp_path, version)
        site = next((empty[0].parent.parent / "lib").glob("python*/site-packages"))
        (site / "torch.pth").write_text(f"{tmp_path}\n")
        try:
            needed, _ = call(tree, "get_requires_for_build_wheel", python=empty)
        finally:
            (site / "torch.pth").unlink()
        assert ("pip" in needed) == asks

    def test_nothing_for_a_pure_or_an_editable_install(self, tree):
        assert call(tree, "get_requires_for_build_wheel", HIDA_BUILD_NATIVE="0")[0] == []
        assert call(tree, "get_requires_for_build_editable")[0] == []
        assert "pybind11>=2.13" in call(tree, "get_requires_for_build_editable", HIDA_BUILD_NATIVE="1")[0]


@pytest.mark.skipif(sys.platform != "linux", reason="built on Linux only")
class TestWhatTheWheelHolds:
    """With compilers that leave empty files."""

    @pytest.fixture
    def settings(self, tmp_path):
        pytest.importorskip("pybind11")
        pytest.importorskip("ninja")
        script = (
            '#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in -o) : > "$2" ;; -MF) echo x: > "$2" ;; esac; shift; done\n'
        )
        for path, content in (("c++", script), ("bin/nvcc", script), ("broken/bin/nvcc", "#!/bin/sh\nexit 1\n")):
            file = tmp_path / "cuda" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(0o755)
        cuda = tmp_path / "cuda"
        return {"HIDA_TORCH": str(a_torch(tmp_path, "2.11.0")), "CXX": str(cuda / "c++"), "CUDA_HOME": str(cuda)}

    def built(self, tree, folder, **environment):
        wheel, _ = call(tree, "build_wheel", folder, **environment)
        assert wheel.split("-")[2].startswith("cp")
        assert wheel.split("-")[4].startswith("linux_")
        with zipfile.ZipFile(folder / wheel) as archive:
            names = archive.namelist()
            text = archive.read("hida/not_built.txt").decode() if "hida/not_built.txt" in names else ""
        return {name.split("/")[1].split(".")[0] for name in names if name.endswith(".so")}, text.strip()

    def test_all_of_it_then_without_cuda_nothing_of_the_build_before(self, tree, tmp_path, settings):
        assert self.built(tree, tmp_path, **settings) == ({"_C", "_ops", "_ops_cuda"}, "")
        assert self.built(tree, tmp_path, HIDA_BUILD_CUDA="0", **settings) == ({"_C", "_ops"}, "HIDA_BUILD_CUDA=0")

    def test_an_nvcc_that_fails_leaves_the_cpu_library(self, tree, tmp_path, settings):
        settings["CUDA_HOME"] += "/broken"
        found, text = self.built(tree, tmp_path, **settings)
        assert found == {"_C", "_ops"}
        assert text.startswith("the CUDA kernels do not compile")
        _, said = call(tree, "build_wheel", tmp_path, HIDA_BUILD_CUDA="1", status=1, **settings)
        assert "the CUDA kernels do not compile" in said

    def test_chips_that_are_none_are_refused(self, tree, tmp_path, settings):
        _, said = call(tree, "build_wheel", tmp_path, TORCH_CUDA_ARCH_LIST="Hopper", status=1, **settings)
        assert "TORCH_CUDA_ARCH_LIST names 'Hopper'" in said

    def test_an_editable_install_that_insists_builds_in_place(self, tree, tmp_path, settings):
        place = shutil.copytree(tree, tmp_path / "clone")
        call(place, "build_editable", tmp_path, HIDA_BUILD_NATIVE="1", **settings)
        assert {path.name.split(".")[0] for path in place.glob("hida/*.so")} == {"_C", "_ops", "_ops_cuda"}

    def test_the_source_archive_holds_what_a_build_needs(self, tree, tmp_path):
        archive, _ = call(tree, "build_sdist", tmp_path)
        with tarfile.open(tmp_path / archive) as opened:
            names = {name.split("/", 1)[-1] for name in opened.getnames()}
        assert {"setup.py", "pyproject.toml", "hida/assets/small.safetensors"} <= names
        for folder in ("csrc", "tools"):
            assert {str(path.relative_to(tree)) for path in (tree / folder).rglob("*.*")} <= names


class TestWithoutNativeOps:
    def test_on_purpose(self, tree, tmp_path):
        wheel, said = call(tree, "build_wheel", tmp_path, HIDA_BUILD_NATIVE="0")
        assert wheel.endswith("-py3-none-any.whl")
        assert said.count("hida: native ops are not built: HIDA_BUILD_NATIVE=0.") == 1
        assert note(tmp_path, wheel) == "HIDA_BUILD_NATIVE=0"

    def test_no_compiler(self, tree, tmp_path):
        wheel, said = call(tree, "build_wheel", tmp_path, CXX="/nonexistent")
        assert wheel.endswith("-py3-none-any.whl")
        assert said.count("hida: ") == 1
        assert note(tmp_path, wheel) == "there is no C++ compiler '/nonexistent'"
        _, said = call(tree, "build_wheel", tmp_path, CXX="/nonexistent", HIDA_BUILD_NATIVE="1", status=1)
        assert said.splitlines()[-1] == "hida: HIDA_BUILD_NATIVE=1, but there is no C++ compiler '/nonexistent'."

    def test_no_torch_and_none_to_be_had(self, tree, empty, tmp_path):
        wheel, said = call(tree, "build_wheel", tmp_path, python=empty, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
        assert wheel.endswith("-py3-none-any.whl")
        assert "hida: there is no torch here yet" in said
        assert note(tmp_path, wheel).startswith("there was no torch yet, and pip could not fetch torch>=2.11")

    @pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")
    def test_a_compiler_that_fails(self, tree, tmp_path):
        pytest.importorskip("pybind11")
        pytest.importorskip("ninja")
        torch = str(a_torch(tmp_path, "2.11.0"))
        wheel, said = call(tree, "build_wheel", tmp_path, HIDA_TORCH=torch, HIDA_BUILD_CUDA="0")
        assert wheel.endswith("-py3-none-any.whl")
        assert "#error no torch" in said
        assert note(tmp_path, wheel).startswith("the CPU kernels do not compile")
        _, said = call(
            tree, "build_wheel", tmp_path, HIDA_TORCH=torch, HIDA_BUILD_CUDA="0", HIDA_BUILD_NATIVE="1", status=1
        )
        assert "the CPU kernels do not compile" in said

    @pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")
    def test_headers_are_fetched_where_there_is_no_torch(self, tree, empty, tmp_path):
        """The torch that is fetched does not compile, which shows that it was used."""
        pytest.importorskip("pybind11")
        pytest.importorskip("ninja")
        a_torch(tmp_path / "unpacked", "2.12.0")
        with zipfile.ZipFile(tmp_path / "torch-2.12.0-py3-none-any.whl", "w") as archive:
            for path in (tmp_path / "unpacked").rglob("*.*"):
                archive.write(path, path.relative_to(tmp_path / "unpacked"))
            information = "Metadata-Version: 2.1\nName: torch\nVersion: 2.12.0\nRequires-Dist: not-to-be-fetched\n"
            archive.writestr("torch-2.12.0.dist-info/METADATA", information)
            archive.writestr("torch-2.12.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
        wheel, said = call(tree, "build_wheel", tmp_path, python=empty, HIDA_BUILD_CUDA="0", **offline)
        assert "#error no torch" in said
        assert note(tmp_path, wheel).startswith("the CPU kernels do not compile")

    def test_an_editable_install_builds_nothing(self, tree, tmp_path):
        wheel, _ = call(tree, "build_editable", tmp_path)
        assert "-py3-none-any" in wheel
        assert not list((tree / "hida").glob("*.so"))
        assert not (tree / "hida/not_built.txt").exists()


def test_build_ext_fails_loudly_where_it_cannot_build(tree):
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    for environment, status in (({"CXX": "/nonexistent"}, 1), ({"HIDA_BUILD_NATIVE": "0"}, 0)):
        done = subprocess.run(command, cwd=tree, env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert done.stderr.count("hida: native ops are not built: ") == 1


def test_every_source_is_listed():
    groups = ("kernel ", "host ", "cuda ", "cuda_host ")
    lines = (ROOT / "csrc/sources.txt").read_text().splitlines()
    listed = [line.split()[1] for line in lines if line.startswith(groups)]
    present = {str(path.relative_to(ROOT / "csrc")) for end in ("cpp", "cu") for path in ROOT.glob(f"csrc/**/*.{end}")}
    assert sorted(listed) == sorted(present - {"module.cpp"})
