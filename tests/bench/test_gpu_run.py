"""bench/gpu/run.sh and what it calls, at a tiny size on a CPU."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hida.ops import library

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


@pytest.mark.slow
def test_the_training_benchmark_runs_every_method(tmp_path):
    (tmp_path / "tiny.toml").write_text("[generator]\nbase_width = 2\n[discriminator]\nbase_width = 1\n")
    command = [sys.executable, str(ROOT / "bench/train_step.py"), "--device", "cpu", "--batch", "2", "--rounds", "2"]
    command += ["--preset", str(tmp_path / "tiny.toml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def rows(*methods):
        given = ["--methods", *methods, "--json", str(tmp_path / "step.json")]
        done = subprocess.run([*command, *given], env=environment, capture_output=True, text=True, timeout=600)
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
def test_every_part_runs_dry_on_a_cpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "WHEELS": str(tmp_path / "none")}
    environment |= {"HIDA_BUILD_CUDA": "0", "HIDA_OPS": "auto", "OMP_NUM_THREADS": "1"}

    def run(*words):
        command = ["bash", str(ROOT / "bench/gpu/run.sh"), "--dry", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
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
    again = run("bench-ops")  # goes on: nothing is left
    assert "ida 512@16² B1" not in again.split("goals")[0]
    text = run("results")
    assert "Checks: test-gpu " in text
    assert "| tiny, B2 | " in text


@pytest.mark.slow
@pytest.mark.skipif(not library.loaded, reason=library.why_not)
def test_the_sanitizers_program_calls_every_op():
    command = [sys.executable, str(ROOT / "bench/gpu/launches.py"), "--device", "cpu"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "all finite" in done.stdout


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("knows_filters", [True, False])
def test_a_tool_that_finds_something_keeps_no_other_from_running(tmp_path, knows_filters):
    options = "--tool --error-exitcode --print-limit" + (" --kernel-name" if knows_filters else "")
    python = script(tmp_path, "python", 'echo "$@"')
    sanitizer = f"""[ "$1" = --help ] && echo "{options}" && exit
echo "cache off: $PYTORCH_NO_CUDA_MEMORY_CACHING" "$@"
case "$*" in *racecheck*) exit 9;; esac"""
    script(tmp_path, "compute-sanitizer", sanitizer)
    out = tmp_path / "out"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(python), "OUT": str(out)}
    environment |= {"WHEELS": str(tmp_path / "none")}
    command = ["bash", str(ROOT / "bench/gpu/run.sh")]
    done = subprocess.run([*command, "sanitize"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert "racecheck: status 9" in done.stdout
    logs = {tool: (out / f"sanitize-{tool}.log").read_text() for tool in TOOLS}
    assert all("bench/gpu/launches.py" in log for log in logs.values())
    assert [tool for tool, log in logs.items() if "cache off: 1" in log] == ["memcheck", "initcheck"]
    filtered = [tool for tool, log in logs.items() if "--kernel-name kns=hida" in log]
    assert filtered == (["memcheck", "racecheck", "synccheck"] if knows_filters else [])
    wrong = subprocess.run(
        [*command, "sanitize", "bogus"], env=environment, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "no tool 'bogus'" in wrong.stderr


@pytest.mark.slow
def test_what_is_compiled_ahead_lies_in_the_cache(tmp_path):
    command = [sys.executable, str(ROOT / "bench/ops.py"), "--device", "cpu", "--op", "info_acon", "--side", "16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command += ["--ahead", "0", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("fxgraph/**/*")), done.stderr


def test_what_came_along_is_installed_where_every_part_finds_it(tmp_path):
    root, wheels = tmp_path / "checkout", tmp_path / "wheels"
    (root / "bench/gpu").mkdir(parents=True)
    (root / "bench/gpu/run.sh").write_text((ROOT / "bench/gpu/run.sh").read_text())
    wheels.mkdir()
    (wheels / "some-1-py3-none-any.whl").touch()
    script(tmp_path, "python", 'echo "$@" on $PYTHONPATH')
    environment = {
        **os.environ,
        "PYTHON": str(tmp_path / "python"),
        "WHEELS": str(wheels),
        "OUT": str(tmp_path / "out"),
    }
    command = ["bash", str(root / "bench/gpu/run.sh"), "results"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert f"--target build/site {wheels}/some-1-py3-none-any.whl" in told[0]
    assert told[1].startswith("bench/results.py ")
    assert told[1].endswith(f"{root}/build/site")


def test_the_script_tells_its_parts_and_refuses_others():
    script = str(ROOT / "bench/gpu/run.sh")
    told = subprocess.run(["bash", script, "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    parts = [
        line.split("run.sh ")[1].split()[0] for line in told.splitlines() if line.startswith("  bash bench/gpu/run.sh")
    ]
    assert parts == ["build", "test", "test-cpu", "sanitize", "bench-ops", "bench-sketch", "bench-train", "results"]
    assert "--dry" in told
    for wrong in ("bake", "train", "fetch", "test-gpu"):
        done = subprocess.run(["bash", script, wrong], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"there is no part '{wrong}'" in done.stderr


class Fake:
    """In place of a process of bench/train_step.py: answers at once, and notes what it was asked."""

    asked: list[tuple[int, str]]
    fails: dict[str, int]  # method: how often it still fails to get ready

    def __init__(self, name, arguments, environment):
        self.name, self.number = name, len({number for number, _ in self.asked}) + 1
        self.process = self
        self.asked.append((self.number, "begins"))

    def ask(self, what):
        case = json.loads(what) if str(what).startswith("{") else {}
        self.asked.append((self.number, case.get("method", what)))
        if self.fails.get(case.get("method"), 0) > 0:
            self.fails[case["method"]] -= 1
            return {"failed": "RuntimeError: as the test wants it"}
        return {"seconds": 0.25, "memory_mib": 7.0, "graph": True}

    def kill(self):
        self.asked.append((self.number, "killed"))

    def wait(self):
        pass

    def close(self):
        self.asked.append((self.number, "closed"))


@pytest.fixture
def measured(bench, monkeypatch):
    """Compare methods as on a GPU, by fake processes; return the rows, and what the processes were asked."""
    module = bench("train_step")

    def run(methods, batch=8, **fails):
        fake = type("Fake", (Fake,), {"asked": [], "fails": fails})
        monkeypatch.setattr(module, "Worker", fake)
        options = argparse.Namespace(device="cuda", preset="small", cudnn_benchmark=3, no_profile=True)
        options.rounds, options.iterations, options.seconds = 2, 20, None
        processes = module.Processes(options)
        rows = list(module.compare(methods, batch, processes, options))
        processes.end()
        return rows, fake.asked

    return run


def test_on_a_gpu_both_layouts_share_a_process_and_others_have_their_own(measured):
    rows, asked = measured(["bf16", "ours", "nchw"])
    assert [(row["method"], row["images_per_second"], row["rounds"]) for row in rows] == [
        *(("bf16", 32.0, 2), ("ours", 32.0, 2), ("nchw", 32.0, 2)),
    ]
    assert asked[:5] == [(1, "begins"), (1, "bf16"), (1, 20), (1, 20), (1, "closed")]
    assert asked[5:] == [
        *((2, "begins"), (2, "ours"), (2, 20), (2, 20), (2, "end")),
        *((2, "nchw"), (2, 20), (2, 20), (2, "end"), (2, "killed")),
    ]


def test_a_method_that_fails_says_why_and_the_next_begins_anew(measured):
    rows, asked = measured(["ours", "nchw"], ours=1)
    assert rows[0] == {"preset": "small", "method": "ours", "batch": 8, "failed": "RuntimeError: as the test wants it"}
    assert rows[1]["ms"] == 250.0
    assert asked[:5] == [(1, "begins"), (1, "ours"), (1, "killed"), (2, "begins"), (2, "nchw")]
    rows, asked = measured(["ours", "nchw"], nchw=1)  # in the process of another: tried in one of its own
    assert [row["ms"] for row in rows] == [250.0, 250.0]
    assert asked[5:9] == [(1, "nchw"), (1, "killed"), (2, "begins"), (2, "nchw")]
    rows, _ = measured(["ours", "nchw"], nchw=2)
    assert "failed" in rows[1]


def test_what_was_measured_is_in_the_file_when_the_benchmark_is_cut(bench, monkeypatch, tmp_path, capsys):
    class Cut(Fake):
        asked, fails = [], {}

        def ask(self, what):
            if "nchw" in str(what):
                raise KeyboardInterrupt
            return super().ask(what)

    module = bench("train_step")
    monkeypatch.setattr(module, "Worker", Cut)
    monkeypatch.setattr(module, "describe", lambda device: {"device": "made up", "native_ops": {}})
    monkeypatch.setattr(module, "clocks", dict)
    words = [
        "--device",
        "cuda",
        "--preset",
        "small",
        "--batch",
        "8",
        "4",
        "--methods",
        "ours",
        "nchw",
        "--no-profile",
    ]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *words, "--json", str(tmp_path / "step.json")])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert str(end.value).startswith("interrupted: ")
    assert [(r["method"], r["batch"]) for r in json.loads((tmp_path / "step.json").read_text())["rows"]] == [
        ("ours", 8)
    ]
    assert Cut.asked[-1] == (1, "killed")
    capsys.readouterr()
    monkeypatch.setattr(module, "Worker", type("Fake", (Fake,), {"asked": [], "fails": {}}))
    module.main()
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [(r["method"], r["batch"]) for r in rows] == [("ours", 8), ("nchw", 8), ("ours", 4), ("nchw", 4)]
    assert "ours" not in capsys.readouterr().out.splitlines()[2]  # the first line of the table: nchw, batch 8


def test_rounds_are_counted_or_bound_by_their_time(bench):
    goes_on = bench("train_step").goes_on
    counted, bound = (argparse.Namespace(rounds=5, seconds=seconds) for seconds in (None, 4.0))
    assert [goes_on(number, 1e9, counted) for number in (0, 4, 5)] == [True, True, False]
    assert [goes_on(number, seconds, bound) for number, seconds in ((0, 0.0), (9, 3.9), (9, 4.0))] == [
        True,
        True,
        False,
    ]
    assert [goes_on(number, 100.0, bound) for number in (2, 3)] == [True, False]  # a spread needs three
