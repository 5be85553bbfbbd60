"""bench/gpu/run.sh from packed data to brought-out weights, at a tiny size on a CPU."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_set import prepared

from hida import pack
from hida.checkpoint import load_generator
from hida.errors import run_command
from hida.ops import library

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--generator.base-width", "2", "--discriminator.base-width", "1", "--train.epochs", "8", "--train.holdout", "1"]
TINY += ["--optimizer.constant-epochs", "8", "--train.threads", "1", "--device", "cpu", "--train.batch", "2"]
TINY += ["--train.log-every", "1", "--train.sample-epochs", "2"]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


@pytest.mark.slow
def test_the_whole_chain_from_packed_data_to_weights_that_are_put_together_again(tmp_path):
    prepared(tmp_path / "set")
    for split in ("train", "test"):
        assert run_command(pack.main, [str(tmp_path / "set"), str(tmp_path / f"{split}.zip"), "--split", split]) == 0
    out, runs = tmp_path / "out", tmp_path / "runs"
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "OUT": str(out),
        "RUNS": str(runs),
        "TRAIN": str(tmp_path / "train.zip"),
        "TEST": str(tmp_path / "test.zip"),
        "METRICS": "scoot fsim",
        "OMP_NUM_THREADS": "1",
    }

    def run(*words, **more):
        command = ["bash", str(ROOT / "bench/gpu/run.sh"), *words]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "stopped at iteration 1;" in run("small", *TINY, MINUTES="0.000001")  # a first piece
    assert "finished" in run("small", *TINY, MINUTES="9")
    lines = [json.loads(line) for line in (out / "small.log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "pixel" in line] == list(range(1, 17))
    assert (out / "small.sample.png").is_file()
    run("evaluate", "small")
    assert json.loads((out / "small.scores.json").read_text())["label"] == "small"
    run("sheet", "small")
    assert list((out / "sheet-small").glob("*.png"))
    run("fetch", "small", "0")
    pieces = b"".join(path.read_bytes() for path in sorted(out.glob("weights.part-*")))
    assert hashlib.sha256(pieces).hexdigest() == (out / "weights.sha256").read_text().split()[0]
    (tmp_path / "weights.safetensors").write_bytes(pieces)
    assert load_generator(tmp_path / "weights.safetensors")[1].generator.base_width == 2


@pytest.mark.slow
def test_the_training_benchmark_runs_every_method(tmp_path):
    (tmp_path / "tiny.toml").write_text("[generator]\nbase_width = 2\n[discriminator]\nbase_width = 1\n")
    command = [sys.executable, str(ROOT / "bench/train_step.py"), "--device", "cpu", "--batch", "2", "--rounds", "2"]
    command += ["--preset", str(tmp_path / "tiny.toml")]
    command += ["--methods", "released", "bf16", "ours", "--json", str(tmp_path / "step.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["released", "bf16", "ours"]
    for row in rows:
        assert row["images_per_second"] > 0
        assert row["breakdown_ms"]["convolution"] > 0


@pytest.mark.slow
def test_every_part_runs_dry_on_a_cpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "RUNS": str(tmp_path / "runs")}
    environment |= {"HIDA_BUILD_CUDA": "0", "HIDA_OPS": "auto", "OMP_NUM_THREADS": "1"}

    def run(*words):
        command = ["bash", str(ROOT / "bench/gpu/run.sh"), "--dry", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    if library.loaded:  # else there is nothing to build with
        assert "loaded" in run("build")
        assert (tmp_path / "lib/hida/_ops.so").is_file()
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
    assert "not measured" in run("results")


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
    environment |= {"RUNS": str(out), "WHEELS": str(tmp_path / "none")}
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


def test_wheels_are_fetched_for_the_other_machines_python(tmp_path):
    script(tmp_path, "python", 'echo "$@"')
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "WHEELS": str(tmp_path)}
    command = ["bash", str(ROOT / "bench/gpu/run.sh"), "wheels"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "pip download" in told
    assert "--python-version 3.12" in told
    assert all(name in told.split() for name in ("tyro", "docstring-parser", "typeguard"))


def test_the_script_tells_its_parts_and_refuses_others():
    script = str(ROOT / "bench/gpu/run.sh")
    told = subprocess.run(["bash", script, "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert all(word in told for word in ("build", "sanitize", "bench-sketch", "train NAME", "fetch NAME K", "--dry"))
    assert subprocess.run(["bash", script, "bake"], capture_output=True).returncode != 0
