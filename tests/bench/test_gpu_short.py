"""bench/gpu/short.sh whole at a tiny size on a CPU, plain and with what can fail failing: in time, with weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from small_set import prepared

from bench.gpu.first import LIMITS
from hida import weights
from hida.cli import pack
from hida.cli.run import run_command
from hida.ops import library
from hida.weights.checkpoint import load_generator
from hida.weights.verified import FOLDER, remembered_sha256

pytestmark = pytest.mark.slow  # processes of the GPU programme

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "bench/gpu/short.sh"
UNTIL = 0.45  # minutes from the start of "first" to the end of training
FEW = ["machine", "ops", "deform", "step", "released"]  # what a rehearsal of a failure can do without


def rehearsal(test):
    return pytest.mark.slow(pytest.mark.skipif(not library.loaded, reason=library.why_not)(test))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A pack with eight pairs and the libraries that are built here."""
    folder = tmp_path_factory.mktemp("packed")
    prepared(folder / "set")
    into = folder / "pack"
    (into / "libraries").mkdir(parents=True)
    assert run_command(pack.main, [str(folder / "set"), str(into / "train.zip"), "--split", "train"]) == 0
    for name in ("_ops.so", "_ops_cuda.so"):
        if (ROOT / "hida" / name).is_file():
            shutil.copy2(ROOT / "hida" / name, into / "libraries" / name)
    return into


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout without libraries and built-in weights, as it is on the GPU machine."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("hida", "bench", "tests", "csrc", "tools"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "small.safetensors")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


class Machine:
    """Calls parts of the programme in the checkout, and looks at what came back."""

    def __init__(self, checkout, packed, folder):
        self.checkout, self.packed, self.folder = checkout, packed, folder
        self.work = folder / "work"
        self.training = ["--train.holdout", "1", "--train.checkpoint-minutes", "0.05"]
        for path in (checkout / "hida").glob("*.so"):
            path.unlink()

    def start(self, part, *words, out="out", **environment):
        command = ["bash", SCRIPT, part, "--out", str(self.folder / out), "--work", str(self.work), *words]
        variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
        variables.pop("PYTHONPATH", None)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # Whoever runs these tests in the background has them ignore SIGINT, and what they start.
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        return subprocess.Popen(command, cwd=self.checkout, env=variables, preexec_fn=heed, **pipes)

    def call(self, part, *words, **more):
        """Return the record, and what was printed."""
        process = self.start(part, *words, **more)
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
        return json.loads((self.folder / more.get("out", "out") / f"{part}.json").read_text(encoding="utf-8")), text

    def first(self, *words, skip=FEW, **more):
        given = ["--pack", str(self.packed), "--device", "cpu", "--batch", "2", "--minutes", "2"]
        if "--until" not in words:
            given += ["--until", f"{UNTIL}"]
        return self.call("first", *given, "--skip", *skip, *words, "--", *self.training, **more)

    def status(self, record):
        return {part["name"]: part["status"] for part in record["parts"]}

    def brought_weights(self, record):
        """Put the pieces together and load them."""
        told = record["weights"]
        data = b"".join(path.read_bytes() for path in sorted((self.folder / "out2").glob("weights.part-*")))
        assert hashlib.sha256(data).hexdigest() == told["sha256"]
        path = self.folder / "weights.safetensors"
        path.write_bytes(data)
        return load_generator(path)[1]

    def wait_for_a_checkpoint(self):
        for _ in range(200):
            if list((self.work / "run/checkpoints").glob("iteration-*.safetensors")):
                return
            time.sleep(0.2)

    def attempts(self):
        return json.loads((self.work / "train-state.json").read_text(encoding="utf-8"))["attempts"]


@pytest.fixture
def machine(checkout, packed, tmp_path):
    return Machine(checkout, packed, tmp_path)


@rehearsal
def test_all_parts_in_their_order_and_weights_in_pieces(machine):
    record, text = machine.first("--until", "1.4", skip=["racecheck", "released"])
    found = machine.status(record)
    absent = [] if shutil.which("compute-sanitizer") else ["memcheck"]
    assert [name for name, status in found.items() if status != "ok"] == absent, text
    assert list(found) == ["machine", "libraries", "smoke", "tests", "memcheck", "ops", "deform", "step"]
    assert "reference" not in record
    with tarfile.open(machine.folder / "out/first.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"smoke.json", "test-gpu.xml", "ops.json", "deform.json", "train_step.json", "logs/smoke.log"} <= names
    (machine.folder / "out2").mkdir()
    (machine.folder / "out2/weights.part-07").write_bytes(b"of an earlier call")
    record, text = machine.call("second", out="out2")
    assert machine.brought_weights(record).generator.base_width == 2  # what was there is gone
    lines = [json.loads(line) for line in (machine.work / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["rate"] for line in lines if "rate" in line]
    assert rates[-1] < 0.1 * rates[0]
    assert rates == sorted(rates, reverse=True)
    # Pieces of 100 kB, of which one goes at a time.
    few = ["--piece-mib", "0.1", "--files", "1"]
    second, text = machine.call("second", *few, "--files", "3", out="out3")
    assert len(second["weights"]["brought"]) == 1
    assert " --from 1 " in second["weights"]["left"]
    whole = (machine.folder / "out3/weights.part-00").read_bytes()
    for k in range(1, second["weights"]["pieces"]):
        process = machine.start("fetch", *few, "--from", str(k), out=f"more{k}")
        assert process.wait(60) == 0
        whole += (machine.folder / f"more{k}/weights.part-{k:02d}").read_bytes()
    assert hashlib.sha256(whole).hexdigest() == second["weights"]["sha256"]
    assert machine.start("fetch", *few, "--from", "99", out="none").wait(60) == 2
    again = machine.start("first", "--device", "cpu", "--pack", str(machine.packed), "--until", "1")
    assert "holds an earlier training; bring it out, or choose another --work" in again.communicate(timeout=60)[0]
    assert again.returncode == 2


@rehearsal
def test_any_part_can_be_left_out(machine):
    """Every part is replaced by a command that does nothing; then each of them is skipped, and all."""
    nothing = [f"{name}=true" for name in LIMITS]
    for skipped in ([name] for name in LIMITS):
        record, text = machine.first("--command", *nothing, skip=skipped)
        assert "defects" not in record, text
        assert skipped[0] not in machine.status(record)
    record, text = machine.first(skip=list(LIMITS))
    assert "defects" not in record, text
    assert record["parts"] == []


@rehearsal
def test_a_defect_of_a_part_stops_no_other(machine):
    """Folders are where a log and a file are to be written: a part cannot start, and a step ends by an exception."""
    (machine.work / "logs/smoke.log").mkdir(parents=True)
    (machine.work / "tiny.toml").mkdir()
    record, text = machine.first("--command", *[f"{name}=true" for name in LIMITS], skip=["train"])
    assert len(record["defects"]) == 1, text
    assert "tiny.toml" in record["defects"][0]
    found = machine.status(record)
    assert (found["smoke"], found["tests"]) == ("skipped", "ok")


@rehearsal
def test_libraries_that_do_not_load_are_built(machine, tmp_path):
    good = f"build=cp {machine.packed}/libraries/*.so hida/"
    machine.packed = tmp_path
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries/_ops.so").write_bytes(b"no library")
    record, text = machine.first("--command", good, skip=[*FEW, "tests", "train"])
    statuses = [(part["name"], part["status"]) for part in record["parts"]]
    assert statuses[:4] == [("libraries", "failed"), ("build", "ok"), ("libraries", "ok"), ("smoke", "ok")], text
    assert "reference" not in record


@rehearsal
def test_libraries_that_neither_load_nor_build(machine, tmp_path):
    data = ["--data", str(machine.packed / "train.zip")]
    machine.packed = tmp_path / "pack"
    (machine.packed / "libraries").mkdir(parents=True)
    (machine.packed / "libraries/_ops.so").write_bytes(b"no library")
    begun = time.monotonic()
    record, text = machine.first(*data, "--command", "build=false", skip=["tests", "step", "released"])
    assert "neither load nor build" in record["reference"]
    assert "all that follows runs with the reference ops" in text
    assert machine.status(record)["ops"] == "skipped"
    record, _ = machine.call("second", out="out2")
    assert machine.brought_weights(record).generator.base_width == 2
    assert time.monotonic() - begun < 60 * UNTIL + 20


@rehearsal
def test_a_smoke_test_that_fails(machine):
    record, _ = machine.first("--until", "0.9", HIDA_SMOKE_BREAK="ida", skip=["deform", "released", "tests"])
    assert machine.status(record)["smoke"] == "failed"
    assert record["reference"]
    assert machine.status(record)["ops"] == "skipped"
    with tarfile.open(machine.folder / "out/first.tar.gz") as archive:
        rows = json.load(archive.extractfile("train_step.json"))["rows"]
    assert [row["method"] for row in rows] == ["reference"]
    record, _ = machine.call("second", out="out2")
    assert machine.brought_weights(record).generator.base_width == 2


@rehearsal
def test_native_ops_that_are_wrong_in_one_layout(machine):
    words = ["--until", "0.9"]
    record, text = machine.first(*words, HIDA_SMOKE_BREAK="ida:nhwc", skip=["deform", "released", "tests", "ops"])
    assert [part["status"] for part in record["parts"] if part["name"] == "smoke"] == ["failed", "ok"], text
    assert record["without"] == "nhwc"
    assert "reference" not in record
    with tarfile.open(machine.folder / "out/first.tar.gz") as archive:
        rows = json.load(archive.extractfile("train_step.json"))["rows"]
    assert [row["method"] for row in rows] == ["nchw"]
    assert "--train.no-channels-last" in machine.attempts()[0]["command"]
    machine.call("second", out="out2")


@rehearsal
def test_a_capture_that_fails(machine):
    machine.first(HIDA_FAIL_CAPTURE="1", skip=[*FEW, "tests", "smoke"])
    record, _ = machine.call("second", out="out2")
    assert machine.brought_weights(record).generator.base_width == 2
    assert "without" in (machine.work / "logs/train.log").read_text(encoding="utf-8")
    assert [attempt["code"] for attempt in machine.attempts()] == [0]  # it started again by itself


@rehearsal
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_training_killed_in_the_middle_goes_on(machine, number):
    machine.first("--until", "0.8", skip=[*FEW, "tests", "smoke"])  # a slow machine has time to begin again, too
    machine.wait_for_a_checkpoint()
    os.kill(machine.attempts()[-1]["pid"], number)
    record, text = machine.call("second", out="out2")
    assert machine.brought_weights(record).generator.base_width == 2
    codes = [attempt["code"] for attempt in machine.attempts()]
    assert codes == ([-number, 0] if number != signal.SIGTERM else [0]), text


@rehearsal
def test_everything_killed_leaves_the_newest_checkpoints_weights(machine):
    machine.first("--until", "3", skip=[*FEW, "tests", "smoke"])
    machine.wait_for_a_checkpoint()  # then nothing is orderly any more
    state = json.loads((machine.work / "train-state.json").read_text(encoding="utf-8"))
    os.killpg(state["supervisor"], signal.SIGKILL)
    begun = time.monotonic()
    record, text = machine.call("second", out="out2")
    assert time.monotonic() - begun < 20
    assert "newest checkpoint" in text
    assert machine.brought_weights(record).generator.base_width == 2


@rehearsal
def test_a_training_without_its_supervisor_is_found(machine):
    """Another first is refused beside it, and second stops it."""
    machine.first("--until", "9", skip=[*FEW, "tests", "smoke"])
    state = json.loads((machine.work / "train-state.json").read_text(encoding="utf-8"))
    os.kill(state["supervisor"], signal.SIGKILL)
    again = machine.start("first", "--device", "cpu", "--pack", str(machine.packed))
    text = again.communicate(timeout=60)[0]
    assert again.returncode == 2
    assert f"a training still runs in '{machine.work}' (process {state['attempts'][0]['pid']})" in text
    record, text = machine.call("second", "--minutes", "1", out="out2")
    assert "the training is told to stop" in text
    assert machine.brought_weights(record).generator.base_width == 2
    assert f"{machine.work}/run" not in commands()


@rehearsal
def test_an_interrupted_first_leaves_nothing_running(machine):
    words = ["--device", "cpu", "--pack", str(machine.packed), "--command", "tests=sleep 1234", "--skip", *FEW, "smoke"]
    process = machine.start("first", *words)
    while "sleep\x001234" not in commands():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert text.splitlines()[-1] == "short: interrupted"
    assert "sleep\x001234" not in commands()


def commands():
    """Return the command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


@rehearsal
def test_a_part_that_hangs_is_cut(machine):
    words = ["--command", "tests=trap '' INT TERM; sleep 1000", "--limit", "tests=2"]
    begun = time.monotonic()
    record, text = machine.first(*words, skip=[*FEW, "smoke", "train"])
    assert machine.status(record)["tests"] == "cut", text
    assert time.monotonic() - begun < 30
    assert "sleep\x001000" not in commands()


@rehearsal
def test_a_training_that_hangs_is_ended(machine):
    words = ["--command", "train=trap '' INT TERM; sleep 1000", "--limit", "train=2", "--until", "0.6"]
    machine.first(*words, skip=[*FEW, "tests", "smoke"])
    process = machine.start("second", "--minutes", "1", out="out2")
    text, _ = process.communicate(timeout=70)
    assert process.returncode == 1, text  # nothing was trained: there is nothing to bring
    assert "no weights and no checkpoint" in text
    assert (machine.folder / "out2/second.json").is_file()
    os.killpg(
        json.loads((machine.folder / "out/first.json").read_text(encoding="utf-8"))["train"]["supervisor"],
        signal.SIGKILL,
    )


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A file of the size of the perceptual loss's network, and a cache that remembers it as that one."""
    asset = weights.get("alexnet-features")
    path = tmp_path / asset.filename
    with path.open("wb") as file:
        file.truncate(asset.size)
    remembered_sha256(path, tmp_path)
    (stamp,) = (tmp_path / FOLDER).iterdir()
    stamp.write_text(json.dumps([*json.loads(stamp.read_text(encoding="utf-8"))[:-1], asset.sha256]), encoding="utf-8")
    monkeypatch.setenv("HIDA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path))


def test_what_travels_is_counted(call, tmp_path, network):
    def pack_command(*words):
        return call(SCRIPT, "pack", *words, "--no-wheels")

    prepared(tmp_path / "set")
    libraries = tmp_path / "built"
    libraries.mkdir()
    for name in ("_ops.so", "_ops_cuda.so"):
        (libraries / name).write_bytes(b"stands for a library")
    words = ("--data", tmp_path / "set", "--libraries", libraries, "--pack", tmp_path / "pack")
    done = pack_command(*words)
    assert done.returncode == 0, done.stderr
    assert "leave behind: hida/assets/small.safetensors" in done.stdout
    assert "bash bench/gpu/short.sh second" in done.stdout
    manifest = json.loads((tmp_path / "pack/manifest.json").read_text(encoding="utf-8"))["files"]
    assert set(manifest) == {
        *("libraries/_ops.so", "libraries/_ops_cuda.so", "train.zip"),
        f"weights/{weights.get('alexnet-features').filename}",
    }
    for name, entry in manifest.items():
        assert hashlib.sha256((tmp_path / "pack" / name).read_bytes()).hexdigest() == entry["sha256"]
    done = pack_command(*words, "--travel-mib", "3")
    assert done.returncode == 2
    assert "would travel and 3 may" in done.stderr
    assert (tmp_path / "pack/manifest.json").is_file()  # what was there stays
    (libraries / "_ops_cuda.so").unlink()
    done = pack_command(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no _ops_cuda.so" in done.stderr
    assert pack_command(*words[:-1], tmp_path / "new").returncode == 2
    assert not [path.name for path in tmp_path.iterdir() if "new" in path.name or path.name.endswith(".part")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pack", "--data", "nowhere"), "there is no 'nowhere'"),
        (("first", "--limit", "bake=3"), "give NAME=VALUE with a name of machine"),
        (("first", "--limit", "ops=soon"), "'soon' is not a number from 0.01 on"),
        (("first", "--limit", "ops=-3"), "'-3' is not a number from 0.01 on"),
        (("first", "--command", "ops="), "give NAME=VALUE"),
        (("first", "--minutes", "nan"), "'nan' is not a number from 0.01 on"),
        (("first", "--until", "-5"), "'-5' is not a number from 0.01 on"),
        (("first", "--batch", "0"), "'0' is not a whole number from 1 on"),
        (("first", "--device", "gpu"), "invalid choice: 'gpu'"),
        (("first", "--pack", "nowhere"), "there is no 'nowhere/train.zip'; make it with the part pack"),
        (("first", "--data", SCRIPT, "--preset", "none"), "there is no preset 'none'"),
        (("first", "--work", "hida"), "'hida' holds other files"),
        (("second", "--piece-mib", "0"), "'0' is not a number from 0.01 on"),
        (("second", "--out", SCRIPT), f"'{SCRIPT}': File exists"),
        (("fetch", "--from", "-1"), "'-1' is not a whole number from 0 on"),
        (("bake",), "invalid choice: 'bake'"),
    ],
)
def test_mistakes_are_told(call, tmp_path, words, said):
    own = {"pack": ["--pack", tmp_path], "bake": []}.get(words[0], ["--work", tmp_path / "work"])
    done = call(SCRIPT, words[0], *own, *words[1:])
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_without_a_first_says_so(call, tmp_path):
    done = call(SCRIPT, "second", "--out", tmp_path / "out", "--work", tmp_path / "work")
    assert done.returncode == 2
    assert "run the part first" in done.stdout
