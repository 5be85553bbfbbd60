"""The build backend: what it asks for, what it builds where something is missing, and what the package says then."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import termios
import time
import venv
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest

# Not imported: it would put its own distutils into the process of the tests.
if not any(int(found.version.split(".")[0]) >= 77 for found in metadata.distributions(name="setuptools")):
    pytest.skip("the build needs setuptools from 77 on", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
STABLE = "torch/include/torch/csrc/stable/library.h"
NAME = "a (b) 研究; it's $HOME & co #%41"  # a folder's name with what means something to a shell, make, ninja or a URL
SETTINGS = ("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CXX", "TORCH_CUDA_ARCH_LIST", "PYTHONPATH")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a build reads, so that nothing is written into the clone; its name is one to be wary of."""
    folder = tmp_path_factory.mktemp("tree") / NAME
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "tools/build", "hida"):
        left_out = shutil.ignore_patterns("*.so", "*.safetensors", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    (folder / "hida/assets/small.safetensors").touch()
    return folder


def plain_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("HIDA_") and k not in SETTINGS}


def call(tree, hook, *arguments, python=(sys.executable, None), status=0, terminal=None, **environment):
    """Run a hook as a front end does, in a process of its own; return what it returns, and what it prints."""
    paths = [str(tree / "tools/build"), *([str(python[1])] if python[1] else [])]
    module, name = hook.split(".")
    code = f"import json, sys, {module} as m; r = m.{name}(*json.loads(sys.argv[1])); print(json.dumps(r))"
    done = subprocess.run(
        [python[0], "-c", code, json.dumps(arguments, default=str)],
        env={**plain_environment(), "PYTHONPATH": os.pathsep.join(paths), **environment},
        cwd=tree,
        capture_output=True,
        encoding="utf-8",
        start_new_session=True,  # so that nothing is said on the terminal that the tests run in
        preexec_fn=(lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)) if terminal else None,
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
    header.write_text("#error no torch\n", encoding="utf-8")
    (folder / "torch/version.py").write_text(
        f"from typing import Optional\n__version__ = '{version}'\n", encoding="utf-8"
    )
    (folder / "torch/__init__.py").write_text(
        "raise ImportError('the build must not import torch')\n", encoding="utf-8"
    )
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
    """As a user builds it, in pip's own environment; used from another folder, it runs them. CUDA is asked for."""
    cuda = {"_ops_cuda"} if shutil.which("nvcc") or "CUDA_HOME" in os.environ else set()
    settings = {k: os.environ[k] for k in ("CUDA_HOME", "CXX") if k in os.environ}
    environment = {**plain_environment(), **settings, "TORCH_CUDA_ARCH_LIST": "7.5", "TMPDIR": str(tmp_path / NAME)}
    environment["HIDA_BUILD_CUDA"] = str(len(cuda))
    (tmp_path / NAME).mkdir()
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-v", "--no-deps", "-w", tmp_path, "."], env=environment, cwd=tree, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{python}-{python}-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        built = {name.split("/")[1].split(".")[0] for name in archive.namelist() if name.endswith(".so")}
    assert built == {"_C", "_ops"} | cuda
    site = tmp_path / f"site {NAME}"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(site), str(wheel)], env=environment, check=True)
    code = "import hida, hida.ops; print(hida.__file__, hida.ops.available()['cpu'], sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True
    )
    assert done.stdout.decode().splitlines() == [str(site / "hida/__init__.py"), "True"]


class TestWhatIsAskedFor:
    def test_torch_is_not_and_pip_only_where_torch_is_not_installed(self, tree, empty):
        needed, _ = call(tree, "backend.get_requires_for_build_wheel")
        assert [name.split(">")[0] for name in needed] == ["ninja", "pybind11"]
        needed, _ = call(tree, "backend.get_requires_for_build_wheel", python=empty)
        assert [name.split(">")[0] for name in needed] == ["ninja", "pybind11", "pip"]

    @pytest.mark.parametrize(("version", "asks"), [("2.10.1", True), ("2.11.0", False), ("3.0.0a0+git1", False)])
    def test_a_torch_that_is_too_old_counts_as_none(self, tree, empty, tmp_path, version, asks):
        a_torch(tmp_path, version)
        site = next((empty[0].parent.parent / "lib").glob("python*/site-packages"))
        (site / "torch.pth").write_text(f"{tmp_path}\n", encoding="utf-8")
        try:
            needed, _ = call(tree, "backend.get_requires_for_build_wheel", python=empty)
        finally:
            (site / "torch.pth").unlink()
        assert ("pip" in needed) == asks

    def test_nothing_for_a_pure_or_an_editable_install(self, tree):
        assert call(tree, "backend.get_requires_for_build_wheel", HIDA_BUILD_NATIVE="0")[0] == []
        assert call(tree, "backend.get_requires_for_build_editable")[0] == []
        assert "pybind11>=2.13" in call(tree, "backend.get_requires_for_build_editable", HIDA_BUILD_NATIVE="1")[0]


@pytest.fixture
def settings(tmp_path):
    """Compilers that leave empty files, nvcc's options in a log, and an nvidia-smi that answers ``GPUS``."""
    pytest.importorskip("pybind11")
    pytest.importorskip("ninja")
    cuda = tmp_path / f"{NAME} cuda"
    (tmp_path / "cuda").mkdir()
    script = '#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in -o) : > "$2" ;; -MF) echo x: > "$2" ;; esac; shift; done\n'
    smi = '#!/bin/sh\n[ "$1 $2" = "--query-gpu=compute_cap --format=csv,noheader" ] && printf "$GPUS"\n'
    contents = {
        "c++": script,
        "bin/nvcc": script.replace("\n", '\necho "$@" >> "$LOG"\n', 1),
        "broken/bin/nvcc": "#!/bin/sh\nexit 1\n",
        "tools/nvidia-smi": smi,
    }
    for path, content in contents.items():
        file = cuda / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        file.chmod(0o755)
    return {
        "HIDA_TORCH": str(a_torch(tmp_path / NAME, "2.11.0")),
        "CXX": str(cuda / "c++"),
        "CUDA_HOME": str(cuda),
        "GPUS": "9.0\n8.6\n",
        "LOG": str(tmp_path / "cuda" / "log"),
        "PATH": f"{cuda / 'tools'}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="built on Linux only")
class TestTheGpus:
    @pytest.mark.parametrize(
        ("answer", "chips"),
        [
            ("12.1\\n12.0\\n", ["12.0", "12.1"]),
            ("9.0\\r\\n", ["9.0a"]),
            ("7.0\\n7.5\\n", ["7.5"]),
            ("6.1\\n", "below 7.5"),
            ("[N/A]\\n", "names no GPU"),
            ("No devices were found\\n", "names no GPU"),
            ("9.0", ["9.0a"]),
        ],
    )
    def test_are_those_that_nvidia_smi_names(self, tree, settings, answer, chips):
        found, why_not = call(tree, "toolchain.usable_gpus", **{**settings, "GPUS": answer})[0]
        assert chips in (found, why_not[-len(chips) :])

    def test_are_none_where_they_are_hidden(self, tree, settings):
        for hidden in ("", "-1"):
            assert call(tree, "toolchain.usable_gpus", **settings, CUDA_VISIBLE_DEVICES=hidden)[0][0] == []
        assert call(tree, "toolchain.usable_gpus", **settings, CUDA_VISIBLE_DEVICES="0")[0][0] == ["8.6", "9.0a"]

    @pytest.mark.parametrize("fault", ["exec sleep 60", "sleep 60", "echo 9.0; sleep 60 & exit 0", "echo 9.0; exit 9"])
    def test_are_none_where_nvidia_smi_hangs_or_fails(self, tree, settings, fault):
        folder = Path(settings["PATH"].split(os.pathsep)[0])
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{fault}\n", encoding="utf-8")
        start = time.monotonic()
        found, why_not = call(tree, "toolchain.usable_gpus", 0.5, **settings)[0]
        assert found == []
        assert re.search("gave no answer|fails", why_not)
        assert time.monotonic() - start < 10


@pytest.mark.skipif(sys.platform != "linux", reason="built on Linux only")
class TestWhatTheWheelHolds:
    """With compilers that leave empty files."""

    def built(self, tree, folder, **environment):
        wheel, said = call(tree, "backend.build_wheel", folder, **environment)
        assert wheel.split("-")[2].startswith("cp")
        assert wheel.split("-")[4].startswith("linux_")
        with zipfile.ZipFile(folder / wheel) as archive:
            names = archive.namelist()
            text = archive.read("hida/not_built.txt").decode() if "hida/not_built.txt" in names else ""
        return {name.split("/")[1].split(".")[0] for name in names if name.endswith(".so")}, text.strip(), said

    def test_all_of_it_then_without_cuda_nothing_of_the_build_before(self, tree, tmp_path, settings):
        found, text, said = self.built(tree, tmp_path, **settings)
        assert (found, text) == ({"_C", "_ops", "_ops_cuda"}, "")
        assert re.search("^hida: compiling the CPU kernels on .*: about 1 min", said, re.MULTILINE)
        assert re.search("^hida: compiling the CUDA kernels for 8.6, 9.0a on .*: about [0-9]+ min", said, re.MULTILINE)
        found, text, said = self.built(tree, tmp_path, **{**settings, "HIDA_BUILD_CUDA": "0"})
        assert (found, text) == ({"_C", "_ops"}, "HIDA_BUILD_CUDA=0")
        assert "hida: compiling" not in said  # as they are built already

    @pytest.mark.parametrize(
        ("gpus", "environment", "chips"),
        [
            ("8.0\n9.0\n8.0\n", {}, {"80", "90a"}),
            ("9.0\n", {"TORCH_CUDA_ARCH_LIST": "8.0;12.0+PTX"}, {"80", "120"}),
            ("9.0\n", {"TORCH_CUDA_ARCH_LIST": "native"}, {"90a"}),
            ("", {}, set()),
            ("", {"TORCH_CUDA_ARCH_LIST": "8.0"}, set()),
            ("", {"HIDA_BUILD_CUDA": "1"}, {"75", "80", "86", "89", "90a", "100", "120"}),
        ],
    )
    def test_cuda_kernels_for_the_gpus_here_and_without_any_only_on_request(
        self, tree, tmp_path, settings, gpus, environment, chips
    ):
        found, text, said = self.built(tree, tmp_path, **{**settings, "GPUS": gpus, **environment})
        log = tmp_path / "cuda" / "log"
        assert set(re.findall(r"code=sm_(\w+)", log.read_text(encoding="utf-8") if log.exists() else "")) == chips
        assert ("_ops_cuda" in found) == bool(chips)
        assert ("HIDA_BUILD_CUDA=1" in text) == (not chips)
        assert text in said

    def test_build_ext_needs_no_gpu_to_build_cuda_kernels(self, tree, tmp_path, settings):
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
        environment = {**plain_environment(), **settings, "GPUS": ""}
        subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True)
        assert (tmp_path / "hida/_ops_cuda.so").exists()

    def test_an_nvcc_that_fails_leaves_the_cpu_library_unless_cuda_is_asked_for(self, tree, tmp_path, settings):
        settings["CUDA_HOME"] += "/broken"
        found, text, said = self.built(tree, tmp_path, **settings)
        assert found == {"_C", "_ops"}
        assert text.startswith("the CUDA kernels do not compile")
        assert f"hida: {text}; the package is built without them.\n" in said
        _, said = call(tree, "backend.build_wheel", tmp_path, HIDA_BUILD_CUDA="1", status=1, **settings)
        assert "the CUDA kernels do not compile" in said.splitlines()[-1]
        assert "HIDA_BUILD_CUDA=0" in said.splitlines()[-1]

    def test_what_is_no_choice_is_refused(self, tree, tmp_path, settings):
        for name, value in (("TORCH_CUDA_ARCH_LIST", "Hopper"), ("HIDA_BUILD_CUDA", "yes"), ("HIDA_BUILD_NATIVE", "2")):
            _, said = call(tree, "backend.build_wheel", tmp_path, status=1, **{**settings, name: value})
            assert re.search(f"^hida: {name} (names|is) '{value}'[;,] ?(write|set)", said.splitlines()[-1])

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            (
                "CXX",
                'g++ "',
                "hida: CXX is 'g++ \"', which is no command (No closing quotation);",
            ),
            ("MAX_JOBS", "abc", "hida: MAX_JOBS is 'abc'; set it to a whole number above 0, or leave it unset."),
            ("MAX_JOBS", "-1", "hida: MAX_JOBS is '-1'; set it to a whole number above 0, or leave it unset."),
            ("TORCH_CUDA_ARCH_LIST", "native", "hida: TORCH_CUDA_ARCH_LIST is 'native', but nvidia-smi names no GPU;"),
        ],
    )
    def test_a_setting_that_means_nothing_is_one_sentence(self, tree, tmp_path, settings, name, value, said):
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
        environment = {**plain_environment(), **settings, "GPUS": "", name: value}
        done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, encoding="utf-8")
        assert done.returncode
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith(said)
        _, printed = call(tree, "backend.build_wheel", tmp_path, status=1, **{**environment, "HIDA_BUILD_CUDA": "1"})
        assert printed.splitlines()[-1].startswith(said)

    def test_the_chips_of_the_gpus_here_can_be_asked_for_by_one_word(self, tree, settings):
        environment = {**settings, "TORCH_CUDA_ARCH_LIST": " native\n"}
        assert call(tree, "toolchain.chips", **environment)[0] == ["8.6", "9.0a"]

    def test_an_editable_install_that_insists_builds_in_place(self, tree, tmp_path, settings):
        place = shutil.copytree(tree, tmp_path / "clone")
        call(place, "backend.build_editable", tmp_path, **{**settings, "HIDA_BUILD_NATIVE": "1", "GPUS": ""})
        assert {path.name.split(".")[0] for path in place.glob("hida/*.so")} == {"_C", "_ops"}
        call(place, "backend.build_editable", tmp_path, HIDA_BUILD_NATIVE="1", **settings)
        assert {path.name.split(".")[0] for path in place.glob("hida/*.so")} == {"_C", "_ops", "_ops_cuda"}

    def test_it_is_said_on_the_terminal_as_well_because_pip_hides_what_a_build_prints(self, tree, tmp_path, settings):
        ours, theirs = os.openpty()
        call(tree, "backend.build_wheel", tmp_path, **{**settings, "CXX": "/nonexistent"}, terminal=theirs)
        os.close(theirs)
        assert (
            os.read(ours, 4096).decode().strip()
            == "hida: native ops are not built: there is no C++ compiler '/nonexistent'."
        )
        os.close(ours)

    def test_the_source_archive_holds_what_a_build_needs(self, tree, tmp_path):
        archive, _ = call(tree, "backend.build_sdist", tmp_path)
        with tarfile.open(tmp_path / archive) as opened:
            names = {name.split("/", 1)[-1] for name in opened.getnames()}
        assert {"setup.py", "pyproject.toml", "hida/assets/small.safetensors"} <= names
        for folder in ("csrc", "tools"):
            assert {str(path.relative_to(tree)) for path in (tree / folder).rglob("*.*")} <= names


class TestWithoutNativeOps:
    def test_the_licences_of_the_weights_are_in_the_metadata(self, tree, tmp_path):
        wheel, _ = call(tree, "backend.build_wheel", tmp_path, HIDA_BUILD_NATIVE="0")
        with zipfile.ZipFile(tmp_path / wheel) as archive:
            information = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            fields = message_from_bytes(archive.read(information))
            folder = information.replace("METADATA", "licenses/")
            texts = {name: archive.read(folder + name).decode() for name in fields.get_all("License-File")}
        assert fields["License-Expression"] == "MIT AND Apache-2.0 AND LicenseRef-HIDA-research-weights"
        assert texts["LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")
        for card in (ROOT / "hida/assets").glob("*.md"):
            research_only = "non-commercial" in card.read_text(encoding="utf-8")
            text = texts[f"hida/assets/{'weights' if research_only else card.stem}.LICENSE.txt"]
            assert not research_only or f"{card.stem}.safetensors" in text

    def test_on_purpose(self, tree, tmp_path):
        wheel, said = call(tree, "backend.build_wheel", tmp_path, HIDA_BUILD_NATIVE="0")
        assert wheel.endswith("-py3-none-any.whl")
        assert said.count("hida: native ops are not built: HIDA_BUILD_NATIVE=0.") == 1
        assert note(tmp_path, wheel) == "HIDA_BUILD_NATIVE=0"

    def test_no_compiler(self, tree, tmp_path):
        wheel, said = call(tree, "backend.build_wheel", tmp_path, CXX="/nonexistent")
        assert wheel.endswith("-py3-none-any.whl")
        assert said.count("hida: ") == 1
        assert note(tmp_path, wheel) == "there is no C++ compiler '/nonexistent'"
        _, said = call(tree, "backend.build_wheel", tmp_path, CXX="/nonexistent", HIDA_BUILD_NATIVE="1", status=1)
        assert said.splitlines()[-1] == "hida: HIDA_BUILD_NATIVE=1, but there is no C++ compiler '/nonexistent'."
        _, said = call(tree, "backend.build_wheel", tmp_path, CXX="/nonexistent", HIDA_BUILD_CUDA="1", status=1)
        assert said.splitlines()[-1] == "hida: HIDA_BUILD_CUDA=1, but there is no C++ compiler '/nonexistent'."

    def test_no_torch_and_none_to_be_had(self, tree, empty, tmp_path):
        wheel, said = call(
            tree, "backend.build_wheel", tmp_path, python=empty, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)
        )
        assert wheel.endswith("-py3-none-any.whl")
        assert "hida: there is no torch here yet" in said
        assert note(tmp_path, wheel).startswith("there was no torch yet, and pip could not fetch torch>=2.11")

    @pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")
    def test_never_because_something_does_not_compile(self, tree, tmp_path):
        pytest.importorskip("pybind11")
        pytest.importorskip("ninja")
        torch = str(a_torch(tmp_path, "2.11.0"))
        _, said = call(tree, "backend.build_wheel", tmp_path, HIDA_TORCH=torch, HIDA_BUILD_CUDA="0", status=1)
        assert "#error no torch" in said
        assert re.search("^hida: the CPU kernels do not compile.*HIDA_BUILD_NATIVE=0", said.splitlines()[-1])
        assert not list(tmp_path.glob("*.whl"))

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
        _, said = call(tree, "backend.build_wheel", tmp_path, python=empty, status=1, HIDA_BUILD_CUDA="0", **offline)
        assert "#error no torch" in said

    def test_an_editable_install_builds_nothing(self, tree, tmp_path):
        wheel, _ = call(tree, "backend.build_editable", tmp_path)
        assert "-py3-none-any" in wheel
        assert not list((tree / "hida").glob("*.so"))
        assert not (tree / "hida/not_built.txt").exists()


def test_build_ext_fails_loudly_where_it_cannot_build(tree):
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    for environment, status in (({"CXX": "/nonexistent"}, 1), ({"HIDA_BUILD_NATIVE": "0"}, 0)):
        done = subprocess.run(
            command, cwd=tree, env={**os.environ, **environment}, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == status, done.stderr
        assert done.stderr.count("hida: native ops are not built: ") == 1


def test_every_source_is_listed():
    groups = ("kernel ", "host ", "cuda ", "cuda_host ")
    lines = (ROOT / "csrc/sources.txt").read_text(encoding="utf-8").splitlines()
    listed = [line.split()[1] for line in lines if line.startswith(groups)]
    present = {str(path.relative_to(ROOT / "csrc")) for end in ("cpp", "cu") for path in ROOT.glob(f"csrc/**/*.{end}")}
    assert sorted(listed) == sorted(present - {"module.cpp"})
