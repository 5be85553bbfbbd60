"""bench/gpu/smoke.py on a CPU: it passes where the ops are right, and finds mistakes that are planted."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bench.gpu import smoke
from hida.ops import library

OPS = {"info_acon", "instance_norm_modulate", "ida", "deform_conv2d"}

needs_library = pytest.mark.skipif(not library.loaded, reason=library.why_not)


@pytest.fixture
def tried(call, tmp_path):
    """Run the script; return the process and the results."""

    def run(*words, **environment):
        done = call("bench/gpu/smoke.py", "--json", tmp_path / "smoke.json", *words, **environment)
        return done, json.loads((tmp_path / "smoke.json").read_text())

    return run


def run(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["smoke.py", "--device", "cpu", "--few", *words])
    return smoke.main()


@needs_library
def test_right_ops_pass(tried, tmp_path):
    done, found = tried("--device", "cpu", "--few")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = found["cases"]
    assert (found["passed"], found["failed"], found["left"]) == (len(cases), 0, 0)
    assert (found["device"], found["stopped"], found["running"]) == ("cpu", "", None)
    assert {case["op"] for case in cases} == OPS
    assert {(case["layout"], case["dtype"]) for case in cases} == {
        (layout, dtype) for layout in ("nchw", "nhwc") for dtype in ("float32", "bfloat16")
    }
    assert {"y", "dx", "dlogits", "dp1", "dgamma", "djoint", "doffset", "dweight", "dmask", "same bits"} <= {
        case["what"] for case in cases
    }
    assert all(case["ok"] and case["seconds"] >= 0 for case in cases)
    assert all(0 <= case["error"] <= case["limit"] for case in cases if case["limit"] is not None)
    assert "FAILED" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smoke.json"]


@needs_library
def test_a_broken_op_is_found_and_the_others_are_not_blamed(tried):
    done, found = tried("--device", "cpu", "--few", HIDA_SMOKE_BREAK="ida")
    assert done.returncode == 1
    wrong = [case for case in found["cases"] if not case["ok"]]
    assert found["failed"] == len(wrong) > 0
    assert {(case["op"], case["what"]) for case in wrong} == {("ida", "y")}
    assert all(0.04 < case["error"] < 0.06 for case in wrong)
    assert done.stdout.count("FAILED ida") == len(wrong)


def spoiled(change):
    """Let an op's result, or its gradient for x, go through ``change``."""

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return change(t.clone())

        @staticmethod
        def backward(ctx, grad):
            return grad

    return Spoil.apply


def one_wrong_number(t):
    t.view(-1)[-1] += 1
    return t


def one_not_written(t):
    t.view(-1)[-1] = float("nan")
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
def test_small_mistakes_are_found(monkeypatch, tmp_path, change, dtypes):
    norm, path = smoke.ops.instance_norm_modulate, tmp_path / "smoke.json"

    def wrong(*given):
        y = norm(*given)
        return y if smoke.ops.dispatch.selected() == "reference" else spoiled(change)(y)

    monkeypatch.setattr(smoke.ops, "instance_norm_modulate", wrong)
    assert run(monkeypatch, "--op", "instance_norm_modulate", "--json", str(path)) == 1
    cases = [case for case in json.loads(path.read_text())["cases"] if case["what"] == "y"]
    assert {case["dtype"] for case in cases if not case["ok"]} == dtypes
    assert all(case["ok"] == (case["dtype"] not in dtypes) for case in cases)


@needs_library
def test_an_exception_fails_its_case_and_no_other(monkeypatch, tmp_path, capsys):
    right, path = smoke.ops.deform_conv2d, tmp_path / "smoke.json"

    def convolve(x, *given, **more):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("no kernel\nfor this")
        return right(x, *given, **more)

    monkeypatch.setattr(smoke.ops, "deform_conv2d", convolve)
    assert run(monkeypatch, "--op", "deform_conv2d", "--json", str(path)) == 1
    found = json.loads(path.read_text())
    wrong = [case for case in found["cases"] if not case["ok"]]
    assert {case["dtype"] for case in wrong} == {"bfloat16"}
    assert {case["message"] for case in wrong} == {"RuntimeError: no kernel for this"}
    assert all(case["ok"] for case in found["cases"] if case["dtype"] == "float32")
    assert found["left"] == 0
    assert "RuntimeError: no kernel for this" in capsys.readouterr().out


@needs_library
def test_after_a_cuda_error_it_stops_with_what_is_known(monkeypatch, tmp_path):
    path = tmp_path / "smoke.json"
    monkeypatch.setattr(smoke, "is_dead", lambda error, device: "illegal memory access" in str(error))
    norm, calls = smoke.ops.instance_norm_modulate, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 20:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return norm(*given)

    monkeypatch.setattr(smoke.ops, "instance_norm_modulate", failing)
    assert run(monkeypatch, "--op", "instance_norm_modulate", "--json", str(path)) == 1
    found = json.loads(path.read_text())
    assert found["failed"] == 1
    assert found["passed"] > 0
    assert found["left"] > 0
    assert "nothing works" in found["stopped"]
    assert found["running"]["op"] == "instance_norm_modulate"
    assert len(calls) == 20


def test_which_errors_are_the_end():
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert smoke.is_dead(error, "cuda")
    assert not smoke.is_dead(error, "cpu")


def test_a_kernel_that_hangs_is_named(monkeypatch, tmp_path):
    class Ended(Exception):
        pass

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(smoke, "HANG", -1)
    monkeypatch.setattr(smoke.os, "_exit", end)
    report = smoke.Report(tmp_path / "smoke.json", "a GPU")
    report.start(smoke.calls()[0], "nchw", "float32")
    with pytest.raises(Ended, match="1"):
        smoke.watch(report)
    found = json.loads((tmp_path / "smoke.json").read_text())
    assert found["stopped"] == "a kernel hangs"
    assert [case["op"] for case in found["cases"]] == [found["running"]["op"]]


@needs_library
def test_no_case_begins_after_its_time(monkeypatch, tmp_path):
    path = tmp_path / "smoke.json"
    assert run(monkeypatch, "--seconds", "-1", "--json", str(path)) == 0
    found = json.loads(path.read_text())
    assert found["cases"] == []
    assert found["left"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tried):
    done, found = tried()
    assert done.returncode == 2
    assert "could not run" in done.stderr
    assert found["cases"] == []
    assert found["stopped"]


def test_an_unknown_op_to_break_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--break", "bogus")
    assert "there is no op 'bogus'" in capsys.readouterr().err
