"""bench/gpu/run.sh and what it calls, at a tiny size on a CPU; processes that fail, and runs that are cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from bench import runner, train_step, workers
from bench.gpu.first import TINY_PRESET
from hida.ops import library

ROOT = Path(__file__).resolve().parents[2]
RUN = "bench/gpu/run.sh"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


@pytest.mark.slow
def test_the_training_benchmark_runs_every_method(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_PRESET)
    words = ["--device", "cpu", "--batch", "2", "--rounds", "2", "--preset", tmp_path / "tiny.toml"]

    def rows(*methods):
        done = call("bench/train_step.py", *words, "--methods", *methods, "--json", tmp_path / "step.json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "step.json").read_text())["rows"]

    first = rows("released", "ours")
    assert [row["method"] for row in first] == ["released", "ours"]
    found = rows("released", "bf16", "ours", "nchw")  # goes on: what is there stays
    assert found[:2] == first
    assert [row["method"] for row in found[2:]] == ["bf16", "nchw"]
    for row in found:
        assert row["images_per_second"] == pytest.approx(2e3 / row["ms"])
        assert row["rounds"] == 2
        assert row["breakdown_ms"]["convolution"] > 0


@pytest.mark.slow
def test_every_part_runs_dry_on_a_cpu(call, tmp_path):
    environment = {"OUT": str(tmp_path), "WHEELS": str(tmp_path / "none"), "HIDA_BUILD_CUDA": "0", "HIDA_OPS": "auto"}

    def run(*words):
        done = call(RUN, "--dry", *words, timeout=1800, **environment)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    assert " passed" in run("test")
    assert (tmp_path / "test-gpu.xml").is_file()
    told = run("sanitize")
    for tool in TOOLS:
        assert f"compute-sanitizer --tool {tool}" in told
    run("bench-ops")
    run("bench-sketch")
    run("bench-train")
    rows = {name: json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("ops", "deform", "sketch")}
    for name, found in rows.items():
        assert all("failed" not in row for row in found if row["method"] != "torchvision"), name
        methods = {row["method"] for row in found}
        assert {"reference", *(["native"] if library.loaded else [])} <= methods
    assert all(row["difference"] <= 1e-4 for row in rows["sketch"] if row["difference"] is not None)
    shares = next(row["shares_ms"] for row in rows["sketch"] if row["method"] == "reference" and "shares_ms" in row)
    assert all(shares[kind] > 0 for kind in ("deform", "ida", "info_acon", "convolution"))
    again = run("bench-ops")  # goes on: nothing is left
    assert "ida 512@16² B1" not in again.split("goals")[0]
    text = run("results")
    assert "Checks: test-gpu " in text
    assert "| tiny, B2 | " in text


@pytest.mark.slow
@pytest.mark.skipif(not library.loaded, reason=library.why_not)
def test_the_sanitizers_program_calls_every_op(call):
    done = call("bench/gpu/launches.py", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "410 calls, forward and backward, all finite" in done.stdout


COMMANDS = ("ops", "deform", "network", "train_step", "results", "gpu/smoke", "gpu/launches", "gpu/trace", "gpu/short")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_as_a_script_anywhere_and_as_a_module(call, tmp_path, name):
    done = call(f"bench/{name}.py", "--help", cwd=tmp_path)
    module = [sys.executable, "-m", f"bench.{name.replace('/', '.')}", "--help"]
    for told in (done, subprocess.run(module, cwd=ROOT, capture_output=True, text=True, check=False)):
        assert told.returncode == 0, told.stderr
        assert told.stdout.startswith("usage: ")


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("knows_filters", [True, False])
def test_a_tool_that_finds_something_keeps_no_other_from_running(call, tmp_path, knows_filters):
    options = "--tool --error-exitcode --print-limit" + (" --kernel-name" if knows_filters else "")
    python = script(tmp_path, "python", 'echo "$@"')
    sanitizer = f"""[ "$1" = --help ] && echo "{options}" && exit
echo "cache off: $PYTORCH_NO_CUDA_MEMORY_CACHING" "$@"
case "$*" in *racecheck*) exit 9;; esac"""
    script(tmp_path, "compute-sanitizer", sanitizer)
    out, path = tmp_path / "out", f"{tmp_path}:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHON": str(python), "OUT": str(out), "WHEELS": str(tmp_path / "none")}
    done = call(RUN, "sanitize", **environment)
    assert done.returncode == 9
    assert "racecheck: status 9" in done.stdout
    logs = {tool: (out / f"sanitize-{tool}.log").read_text() for tool in TOOLS}
    assert all("bench/gpu/launches.py" in log for log in logs.values())
    assert [tool for tool, log in logs.items() if "cache off: 1" in log] == ["memcheck", "initcheck"]
    filtered = [tool for tool, log in logs.items() if "--kernel-name kns=hida" in log]
    assert filtered == (["memcheck", "racecheck", "synccheck"] if knows_filters else [])
    wrong = call(RUN, "sanitize", "bogus", **environment)
    assert wrong.returncode == 2
    assert "no tool 'bogus'" in wrong.stderr


@pytest.mark.slow
def test_what_is_compiled_ahead_is_in_the_cache(call, tmp_path):
    words = ["--device", "cpu", "--op", "info_acon", "--side", "16", "--ahead", "0", "1"]
    done = call("bench/ops.py", *words, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("fxgraph/**/*")), done.stderr


def test_what_came_along_is_installed_where_every_part_finds_it(call, tmp_path):
    root, wheels = tmp_path / "checkout", tmp_path / "wheels"
    (root / "bench/gpu").mkdir(parents=True)
    (root / RUN).write_text((ROOT / RUN).read_text())
    wheels.mkdir()
    (wheels / "some-1-py3-none-any.whl").touch()
    python = script(tmp_path, "python", 'echo "$@" on $PYTHONPATH')
    environment = {"PYTHON": str(python), "WHEELS": str(wheels), "OUT": str(tmp_path / "out")}
    told = call(root / RUN, "results", **environment).stdout.splitlines()
    assert f"--target build/site {wheels}/some-1-py3-none-any.whl" in told[0]
    assert told[1].startswith("bench/results.py ")
    assert told[1].endswith(f"{root}/build/site")


def test_the_script_tells_its_parts_and_refuses_others(call):
    told = call(RUN, "help").stdout.splitlines()
    parts = [line.split("run.sh ")[1].split()[0] for line in told if line.startswith("  bash bench/gpu/run.sh")]
    assert parts == ["build", "test", "test-cpu", "sanitize", "bench-ops", "bench-sketch", "bench-train", "results"]
    assert any("--dry" in line for line in told)
    for wrong in ("bake", "train", "fetch", "test-gpu"):
        done = call(RUN, wrong)
        assert done.returncode == 2
        assert f"there is no part '{wrong}'" in done.stderr


class Fake:
    """In place of a process of bench/train_step.py: answers at once, and notes what it was asked."""

    asked: list[tuple[int, str]]
    fails: dict[str, int]  # method: how often it still fails to get ready
    cut = ""  # a method during which the benchmark is interrupted

    def __init__(self, work, **environment):
        self.number = len({number for number, _ in self.asked}) + 1
        self.asked.append((self.number, "begins"))

    def ask(self, what):
        method = what["method"] if isinstance(what, dict) else ""
        if method and method == self.cut:
            raise KeyboardInterrupt
        self.asked.append((self.number, method or what))
        if self.fails.get(method, 0) > 0:
            self.fails[method] -= 1
            raise RuntimeError("RuntimeError: as the test wants it")
        return {"seconds": 0.25, "memory_mib": 7.0, "graph": True}

    def kill(self):
        self.asked.append((self.number, "killed"))

    def close(self):
        self.asked.append((self.number, "closed"))


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run bench/train_step.py as on a GPU, by fake processes; return its rows, and what the processes were asked."""
    monkeypatch.setattr(runner, "describe", lambda device: {"device": "made up"})
    monkeypatch.setattr(runner, "clocks", dict)
    path = tmp_path / "step.json"

    def run(*methods, batch=(8,), cut="", **fails):
        fake = type("Fake", (Fake,), {"asked": [], "fails": fails, "cut": cut})
        monkeypatch.setattr(train_step, "Worker", fake)
        words = ["--device", "cuda", "--preset", "small", "--no-profile", "--rounds", "2", "--json", path]
        words += ["--batch", *batch, "--methods", *methods]
        monkeypatch.setattr(sys, "argv", ["train_step.py", *map(str, words)])
        ended = ""
        try:
            train_step.main()
        except SystemExit as end:
            ended = str(end)
        assert ended.startswith("interrupted: ") == bool(cut)
        return json.loads(path.read_text())["rows"], fake.asked

    return run


def test_on_a_gpu_both_layouts_share_a_process_and_others_have_their_own(command):
    rows, asked = command("bf16", "ours", "nchw")
    assert [(row["method"], row["images_per_second"], row["rounds"]) for row in rows] == [
        *(("bf16", 32.0, 2), ("ours", 32.0, 2), ("nchw", 32.0, 2)),
    ]
    assert asked[:5] == [(1, "begins"), (1, "bf16"), (1, 20), (1, 20), (1, "closed")]
    assert asked[5:] == [
        *((2, "begins"), (2, "ours"), (2, 20), (2, 20), (2, "end")),
        *((2, "nchw"), (2, 20), (2, 20), (2, "end"), (2, "killed")),
    ]


def test_a_method_that_fails_says_why_and_the_next_begins_anew(command):
    rows, asked = command("ours", "nchw", ours=1)
    assert rows[0] == {"preset": "small", "method": "ours", "batch": 8, "failed": "RuntimeError: as the test wants it"}
    assert rows[1]["ms"] == 250.0
    assert asked[:5] == [(1, "begins"), (1, "ours"), (1, "killed"), (2, "begins"), (2, "nchw")]


def test_what_fails_in_the_process_of_another_is_tried_in_one_of_its_own(command):
    rows, asked = command("ours", "nchw", nchw=1)
    assert [row["ms"] for row in rows] == [250.0, 250.0]
    assert asked[5:9] == [(1, "nchw"), (1, "killed"), (2, "begins"), (2, "nchw")]


def test_what_fails_there_too_has_failed(command):
    rows, _ = command("ours", "nchw", nchw=2)
    assert "failed" in rows[1]


def test_what_was_measured_is_in_the_file_when_the_benchmark_is_cut(command):
    rows, asked = command("ours", "nchw", batch=(8, 4), cut="nchw")
    assert [(row["method"], row["batch"]) for row in rows] == [("ours", 8)]
    assert asked[-1] == (1, "killed")
    rows, asked = command("ours", "nchw", batch=(8, 4))
    assert [(r["method"], r["batch"]) for r in rows] == [("ours", 8), ("nchw", 8), ("ours", 4), ("nchw", 4)]
    assert asked[:2] == [(1, "begins"), (1, "nchw")]  # goes on behind the one that is there


def test_rounds_are_counted_or_bound_by_their_time():
    counted, bound = (Namespace(rounds=5, seconds=seconds) for seconds in (None, 4.0))
    goes_on = workers.goes_on
    assert [goes_on(number, 1e9, counted) for number in (0, 4, 5)] == [True, True, False]
    times = ((0, 0.0), (9, 3.9), (9, 4.0))
    assert [goes_on(number, seconds, bound) for number, seconds in times] == [True, True, False]
    assert [goes_on(number, 100.0, bound) for number in (2, 3)] == [True, False]  # a spread needs three


@pytest.mark.parametrize("code", ["raise MemoryError('made up')", "import os; os._exit(3)"])
def test_a_process_says_why_it_failed_or_that_it_ended(monkeypatch, code):
    program = f"from bench.workers import answer\ndef reply(what):\n    {code}\nanswer(reply)"
    monkeypatch.setattr(sys, "argv", ["-c", program])
    worker = workers.Worker("it", PYTHONPATH=str(ROOT))
    said = "MemoryError: made up" if "raise" in code else "it ended with status 3"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=said):
            worker.ask(1)
    worker.kill()
