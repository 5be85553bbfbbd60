"""bench/gpu/smoke.py on a CPU: it passes where the ops are right, and finds mistakes that are planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import smoke
from hida.ops import library

pytestmark = pytest.mark.slow  # processes of the GPU programme

ROOT = Path(__file__).resolve().parents[2]
needs_library = pytest.mark.skipif(not library.loaded, reason=library.why_not)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on a CPU; return its exit status and the results."""

    def command(*words):
        path = tmp_path / "smoke.json"
        monkeypatch.setattr(sys, "argv", ["smoke.py", "--device", "cpu", "--few", "--json", str(path), *words])
        return smoke.main(), json.loads(path.read_text(encoding="utf-8"))

    return command


@needs_library
def test_right_ops_pass(run, tmp_path, capsys):
    status, found = run()
    cases = found["cases"]
    assert (status, found["passed"], found["failed"], found["left"]) == (0, len(cases), 0, 0)
    assert (found["device"], found["stopped"], found["running"]) == ("cpu", "", None)
    assert {case["op"] for case in cases} == set(smoke.OPS)
    assert {(case["layout"], case["dtype"]) for case in cases} == {
        (layout, dtype) for layout in ("nchw", "nhwc") for dtype in ("float32", "bfloat16")
    }
    assert {"y", "dx", "dlogits", "dp1", "dgamma", "djoint", "doffset", "dweight", "dmask", "same bits"} <= {
        case["what"] for case in cases
    }
    assert all(case["ok"] for case in cases)
    assert all(0 <= case["error"] <= case["limit"] for case in cases if case["limit"] is not None)
    assert "FAILED" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json"]


@needs_library
def test_a_broken_op_is_found_and_the_others_are_not_blamed(run, monkeypatch, capsys):
    monkeypatch.setenv("HIDA_SMOKE_BREAK", "ida")
    status, found = run()
    wrong = [case for case in found["cases"] if not case["ok"]]
    assert (status, found["failed"]) == (1, len(wrong))
    assert {(case["op"], case["what"]) for case in wrong} == {("ida", "y")}
    assert all(0.04 < case["error"] < 0.06 for case in wrong)
    assert capsys.readouterr().out.count("FAILED ida") == len(wrong)


def one_wrong_number(t):
    t[-1, -1, -1, -1] += 1
    return t


def one_not_written(t):
    t[-1, -1, -1, -1] = float("nan")
    return t


@needs_library
@pytest.mark.parametrize(
    ("change", "dtypes"),
    [
        (one_wrong_number, {"float32", "bfloat16"}),
        (one_not_written, {"float32", "bfloat16"}),
        (lambda t: t * (1 + 2e-5), {"float32"}),  # below what bfloat16 can tell
        (lambda t: t * 1.01, {"float32", "bfloat16"}),
    ],
    ids=["one wrong number", "one not written", "slightly scaled", "scaled"],
)
def test_small_mistakes_are_found(monkeypatch, run, change, dtypes):
    norm = smoke.ops.instance_norm_modulate

    def wrong(*given):
        y = norm(*given)
        return y if smoke.ops.dispatch.selected() == "reference" else change(y.clone())

    monkeypatch.setattr(smoke.ops, "instance_norm_modulate", wrong)
    status, found = run("--op", "instance_norm_modulate")
    cases = [case for case in found["cases"] if case["what"] == "y"]
    assert status == 1
    assert {case["dtype"] for case in cases if not case["ok"]} == dtypes
    assert all(case["ok"] == (case["dtype"] not in dtypes) for case in cases)


@needs_library
def test_an_exception_fails_its_case_and_no_other(monkeypatch, run, capsys):
    right = smoke.ops.deform_conv2d

    def convolve(x, *given, **more):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("no kernel\nfor this")
        return right(x, *given, **more)

    monkeypatch.setattr(smoke.ops, "deform_conv2d", convolve)
    status, found = run("--op", "deform_conv2d")
    wrong = [case for case in found["cases"] if not case["ok"]]
    assert {case["dtype"] for case in wrong} == {"bfloat16"}
    assert {case["message"] for case in wrong} == {"RuntimeError: no kernel for this"}
    assert all(case["ok"] for case in found["cases"] if case["dtype"] == "float32")
    assert (status, found["left"]) == (1, 0)
    assert "RuntimeError: no kernel for this" in capsys.readouterr().out


@needs_library
def test_after_a_cuda_error_it_stops_with_what_is_known(monkeypatch, run):
    monkeypatch.setattr(smoke, "is_dead", lambda device: True)
    norm, calls = smoke.ops.instance_norm_modulate, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 20:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return norm(*given)

    monkeypatch.setattr(smoke.ops, "instance_norm_modulate", failing)
    status, found = run("--op", "instance_norm_modulate")
    assert (status, found["failed"]) == (1, 1)
    assert min(found["passed"], found["left"]) > 0
    assert "nothing works" in found["stopped"]
    assert found["running"]["op"] == "instance_norm_modulate"
    assert len(calls) == 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_fails_at_anything_is_dead():
    assert smoke.is_dead("cuda")
    assert not smoke.is_dead("cpu")


def test_a_kernel_that_hangs_ends_the_process_and_is_named(tmp_path):
    program = """
import sys, time
from pathlib import Path
from bench.gpu import smoke
smoke.HANG = 0.5
report = smoke.Report(Path(sys.argv[1]), "a GPU")
report.start(smoke.calls()[0], "nchw", "float32", "call")
time.sleep(100)"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "smoke.json"], cwd=ROOT, timeout=60, check=False)
    found = json.loads((tmp_path / "smoke.json").read_text(encoding="utf-8"))
    assert (done.returncode, found["stopped"]) == (1, "this case did not come back")
    assert found["running"]["op"] == smoke.calls()[0].op


@needs_library
def test_no_case_begins_after_its_time(run):
    status, found = run("--seconds", "-1")
    assert (status, found["cases"], found["left"] > 0) == (0, [], True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(run, capsys):
    status, found = run("--device", "cuda")
    assert (status, found["cases"], bool(found["stopped"])) == (2, [], True)
    assert "could not run" in capsys.readouterr().err
