"""The benchmarks' commands at a tiny size on a CPU; processes that fail, and runs that are cut."""

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

pytestmark = pytest.mark.slow  # processes of benchmarks

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--seconds", "0.02", "--without", "compile")
COMMANDS = ("ops", "deform", "network", "train_step", "results", "gpu/smoke", "gpu/launches", "gpu/short")


@pytest.mark.slow
def test_every_benchmark_runs_goes_on_and_has_its_tables(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_PRESET, encoding="utf-8")
    tiny = ("--preset", tmp_path / "tiny.toml", "--rounds", "2")

    def rows(name, *words, script=None):
        path = tmp_path / f"{name}.json"
        done = call(f"bench/{script or name}.py", "--device", "cpu", "--json", path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(path.read_text(encoding="utf-8"))["rows"]
        assert all("failed" not in row for row in found if row["method"] != "torchvision"), name
        assert {"reference", *(["native", "ours"] if library.loaded else [])} & {row["method"] for row in found}
        return found

    first = rows("ops", "--op", "ida", "--side", "16", *FEW)
    assert {row["case"]["memory"] for row in first} == {"fresh", "kept"}
    assert rows("ops", "--op", "ida", "--side", "16", *FEW) == first  # goes on: nothing is left
    rows("deform", "--side", "2", "--memory", "kept", *FEW)
    methods = ("--methods", "reference", *(["native"] if library.loaded else []))
    found = rows("sketch", *tiny, *methods, script="network")
    assert all(row["difference"] <= 1e-4 for row in found)
    assert all(found[0]["shares_ms"][kind] > 0 for kind in ("deform", "ida", "info_acon", "convolution"))
    first = rows("train_step", *tiny, "--batch", "2", "--methods", "released", "ours")
    assert [row["method"] for row in first] == ["released", "ours"]
    found = rows("train_step", *tiny, "--batch", "2", "--methods", "released", "bf16", "ours", "nchw")
    assert found[:2] == first
    assert [row["method"] for row in found[2:]] == ["bf16", "nchw"]
    traced = call("bench/train_step.py", "--device", "cpu", *tiny[:2], "--batch", "2", "--methods", "ours", "--kernels")
    assert (traced.returncode, "convolution" in traced.stdout) == (0, True), traced.stderr
    for row in found:
        assert row["images_per_second"] == pytest.approx(2e3 / row["ms"])
        assert (row["rounds"], row["breakdown_ms"]["convolution"] > 0) == (2, True)
    assert "tiny B2 |" in call("bench/results.py", tmp_path).stdout


@pytest.mark.slow
@pytest.mark.skipif(not library.loaded, reason=library.why_not)
def test_the_sanitizers_program_calls_every_op(call):
    done = call("bench/gpu/launches.py", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "434 calls, forward and backward, all finite" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_as_a_script_anywhere_and_as_a_module(call, tmp_path, name):
    done = call(f"bench/{name}.py", "--help", cwd=tmp_path)
    module = [sys.executable, "-m", f"bench.{name.replace('/', '.')}", "--help"]
    for told in (done, subprocess.run(module, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)):
        assert told.returncode == 0, told.stderr
        assert told.stdout.startswith("usage: ")


@pytest.mark.slow
def test_what_is_compiled_ahead_is_in_the_cache(call, tmp_path):
    words = ["--device", "cpu", "--op", "info_acon", "--side", "16", "--ahead", "0", "1"]
    done = call("bench/ops.py", *words, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("fxgraph/**/*")), done.stderr


class Fake:
    """In place of a process: answers at once, and notes what it was asked."""

    asked: list[tuple[int, str]]
    fails: dict[str, int]  # method: how often it still fails to get ready
    cut = ""  # a method during which the benchmark is interrupted

    def __init__(self):
        self.number = len({number for number, _ in self.asked}) + 1
        self.asked.append((self.number, "begins"))

    def call(self, function, *given):
        if function is not workers.prepare:
            self.asked.append((self.number, function.__name__))
            return {"memory_mib": 7.0, "graph": True} if function is workers.ask else 0.25
        method = given[1]["method"]
        if method == self.cut:
            raise KeyboardInterrupt
        self.asked.append((self.number, method))
        if self.fails.get(method, 0) > 0:
            self.fails[method] -= 1
            raise RuntimeError("RuntimeError: as the test wants it")
        return None

    def end(self):
        self.asked.append((self.number, "ended"))


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run bench/train_step.py by fake processes; return its rows, and what the processes were asked."""
    monkeypatch.setattr(runner, "describe", lambda device: {"device": "made up"})
    monkeypatch.setattr(runner, "clocks", dict)
    path = tmp_path / "step.json"

    def run(*methods, batch=(8,), cut="", device="cuda", **fails):
        fake = type("Fake", (Fake,), {"asked": [], "fails": fails, "cut": cut})
        monkeypatch.setattr(workers, "Worker", fake)
        words = ["--device", device, "--preset", "small", "--rounds", "2", "--json", path, "--batch", *batch]
        monkeypatch.setattr(sys, "argv", ["train_step.py", *map(str, [*words, "--methods", *methods])])
        ended = ""
        try:
            train_step.main()
        except SystemExit as end:
            ended = str(end)
        assert ended.startswith("interrupted: ") == bool(cut)
        return json.loads(path.read_text(encoding="utf-8"))["rows"], fake.asked

    return run


ROUNDS = ["seconds_of", "seconds_of", "ask", "ask"]


def test_on_a_gpu_one_process_serves_all_methods_one_after_the_other(command):
    rows, asked = command("bf16", "ours")
    assert [(row["method"], row["images_per_second"], row["rounds"]) for row in rows] == [
        *(("bf16", 32.0, 2), ("ours", 32.0, 2)),
    ]
    assert asked == [(1, what) for what in ("begins", "bf16", *ROUNDS, "ours", *ROUNDS, "ended")]


def test_on_a_cpu_each_method_has_a_process_for_a_case_and_they_take_turns(command):
    _, asked = command("bf16", "ours", device="cpu")
    assert asked[:8] == [
        *((1, "begins"), (1, "bf16"), (2, "begins"), (2, "ours")),
        *((1, "seconds_of"), (2, "seconds_of")) * 2,
    ]
    assert asked[8:] == [(number, what) for number in (1, 2) for what in ("ask", "ask", "ended")]


def test_a_method_that_fails_says_why_and_the_next_begins_anew(command):
    rows, asked = command("ours", "nchw", ours=1)
    assert rows[0] == {"preset": "small", "method": "ours", "batch": 8, "failed": "RuntimeError: as the test wants it"}
    assert rows[1]["ms"] == 250.0
    assert asked[:5] == [(1, "begins"), (1, "ours"), (1, "ended"), (2, "begins"), (2, "nchw")]


@pytest.mark.parametrize("times", [1, 2])
def test_what_fails_behind_another_is_tried_once_more_in_a_new_process(command, times):
    rows, asked = command("ours", "nchw", nchw=times)
    assert ["failed" in row for row in rows] == [False, times == 2]
    assert asked[6:10] == [(1, "nchw"), (1, "ended"), (2, "begins"), (2, "nchw")]


def test_what_was_measured_is_in_the_file_when_the_benchmark_is_cut(command):
    rows, asked = command("ours", "nchw", batch=(8, 4), cut="nchw")
    assert [(row["method"], row["batch"]) for row in rows] == [("ours", 8)]
    assert asked[-1] == (1, "ended")
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


def test_a_process_says_why_it_failed_or_that_it_ended():
    worker = workers.Worker()
    assert worker.call(os.getpid) == worker.process.pid
    with pytest.raises(RuntimeError, match="ValueError: invalid literal"):
        worker.call(int, "three")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ended with status 3"):
            worker.call(os._exit, 3)
    worker.end()
