"""The benchmarks' measuring: errors, rotation, what is refused a time; the GPU's path with a stand-in for CUDA."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from bench import cases, machine, network, ops, runner, timing
from bench.deform import Deformable
from bench.gpu.first import TINY_PRESET
from hida.ops import library
from hida.ops.ida import ida_reference
from hida.ops.info_acon import info_acon_reference

DIRECTIONS = ("fwd", "bwd", "fwd+bwd")


def run_of(function, buffers):
    return timing.Run(function, buffers, function, {0})


def small_sets(count):
    return [timing.Buffers([torch.full((2,), float(k), requires_grad=True)], torch.ones(2)) for k in range(count)]


def test_the_exact_result_is_the_same_few_images_at_a_time():
    torch.manual_seed(0)
    inputs = [torch.randn(5, 3, 4, 6) for _ in range(4)] + [torch.randn(1, 3, 1, 1) for _ in range(2)]
    given = timing.Buffers(inputs, torch.randn(5, 3, 4, 6))
    run = timing.Run(ida_reference, [given], ida_reference, {0, 1, 2, 3})
    whole, parts = timing.exact(run, 10**9), timing.exact(run, 2 * 3 * 4 * 6)
    plain = [t.double().requires_grad_() for t in inputs]
    y = ida_reference(*plain)
    direct = [y, *torch.autograd.grad(y, plain, given.upstream.double())]
    for a, b, c in zip(whole, parts, direct, strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, c)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_error_is_that_of_the_worst_output_and_nan_is_the_worst():
    right = [torch.ones(4, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)]
    assert timing.relative_error([torch.ones(4), torch.full((4,), 2.2)], right) == pytest.approx(0.1, rel=1e-5)
    assert timing.relative_error([torch.ones(4), torch.tensor([2.0, 2.0, 2.0, math.nan])], right) == math.inf


def test_every_method_gets_every_set_of_operands_in_turn():
    sets = small_sets(3)
    seen: dict[str, list[float]] = {"a": [], "b": []}

    def method(name):
        def function(x):
            seen[name].append(float(x.detach()[0]))
            return 2 * x

        return function

    times = timing.on_cpu({name: run_of(method(name), sets) for name in seen}, 0.0)
    assert seen["a"] == seen["b"]
    assert set(seen["a"]) == {0.0, 1.0, 2.0}
    for directions in times.values():
        assert {d: len(t) for d, t in directions.items()} == dict.fromkeys(DIRECTIONS, 7)
        assert all(b <= w for b, w in zip(directions["bwd"], directions["fwd+bwd"], strict=True))


@pytest.fixture
def report(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "describe", lambda device: {"device": "made up"})
    return runner.Report(Namespace(json=tmp_path / "ops.json", gpu=False, device="none"), "a test", {})


def test_what_is_wrong_gets_no_time(report, capsys):
    case = cases.Case("ida", 4, 4, 4, 1, "float32", "nchw").key("gpu")
    times = {direction: [1.0, 2.0, 3.0] for direction in DIRECTIONS}
    for method, error in (("reference", 1e-6), ("native", 2e-4), ("compile", 2e-4), ("max-autotune", 3e-3)):
        cases.add(report, case, method, times, error)
    assert [row.get("median_ms") for row in report.rows] == [2.0] * 3 + [None] * 3 + [2.0] * 3 + [None] * 3
    lines = capsys.readouterr().out.splitlines()
    assert ["wrong, no time" in line for line in lines] == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3
    assert lines[6].endswith("1.00× reference")


class Graph:
    """Counts replays; what is "captured" runs at once."""

    replays = 0

    def pool(self):
        return 0

    def replay(self):
        Graph.replays += 1


class Event:
    clock = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.clock += 1
        self.at = Event.clock

    def elapsed_time(self, other):
        return float(other.at - self.at)


@pytest.fixture
def stand_in(monkeypatch):
    """CUDA's API for tensors on the CPU: no device, no time, every call."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stubs = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda s: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "graph": lambda graph, stream=None, pool=None: contextlib.nullcontext(),
        "Event": Event,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=4096),
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 10**6,
        "reset_peak_memory_stats": lambda: None,
    }
    for name, value in stubs.items():
        monkeypatch.setattr(torch.cuda, name, value)
    Graph.replays = Event.clock = 0


def test_a_gpu_is_timed_by_events_around_graphs_of_all_sets(stand_in):
    launched, captured = timing.on_gpu(run_of(torch.sin, small_sets(4)), 0.0)
    assert Graph.replays == 3 * 7
    # The stand-in's clock ticks once an event: a span of neighbours is a tick, shared by four calls.
    assert captured == {"fwd": [0.25] * 7, "bwd": [0.25] * 7, "fwd+bwd": [0.5] * 7}
    assert len(launched["fwd"]) == 5


def test_the_ceilings_of_a_gpu_are_medians_of_rounds_that_wait(stand_in):
    calls = []
    assert machine._median(lambda: calls.append(1), gpu=True) == 1.0
    assert len(calls) == 13


def test_without_a_graph_the_launched_times_remain(stand_in, monkeypatch):
    def refuse(graph, stream=None, pool=None):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    launched, captured = timing.on_gpu(run_of(torch.sin, small_sets(2)), 0.0)
    assert (captured, bool(launched["bwd"])) == ("operation not permitted when stream is capturing", True)


OPTIONS = Namespace(without=["compile", "max-autotune"], seconds=0.0, device=torch.device("cpu"))


@pytest.mark.parametrize("subject", [ops.Adaptation(), Deformable()], ids=["ops", "deform"])
def test_the_gpu_path_measures_every_method_of_a_case(stand_in, report, subject):
    case = cases.Case(subject.kinds[0], 4, 4, 4, 2, "float32", "nhwc")
    cases.on_device(subject, case, report, OPTIONS)
    failed = {row["method"]: row["failed"] for row in report.rows if "failed" in row}
    assert set(failed) <= {"torchvision"}, failed
    measured = [row for row in report.rows if "failed" not in row]
    assert "reference" in {row["method"] for row in measured}
    for row in measured:
        assert row["error"] <= 1e-5
        assert row["median_ms"] > 0
        assert row["launched_ms"] > 0
    assert cases.is_done(case, "gpu", report.rows)
    floors = subject.floors(case, {"copy": 1e6, "float32": 1e6})
    assert floors["fwd+bwd"]["bytes"] == floors["fwd"]["bytes"] + floors["bwd"]["bytes"] > 0


@pytest.mark.skipif(not library.loaded, reason=library.why_not)
def test_a_graph_of_the_network_is_replayed(stand_in, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY_PRESET, encoding="utf-8")
    case = {"piece": "generator", "direction": "fwd", "batch": 1, "dtype": "bfloat16", "layout": "nhwc"}
    options = Namespace(preset=str(tmp_path / "tiny.toml"), device=torch.device("cpu"), keep_memory=False)
    subject = network.Subject({"case": case, "method": "native+graph"}, options)
    assert Graph.replays == 0
    sketch = subject.step()[0]
    assert (Graph.replays, sketch.shape) == (1, subject.right.shape)
    assert 0 < subject.told()["difference"] < 0.1  # bfloat16


def test_cases_come_in_the_order_of_their_worth_and_filters_choose(monkeypatch):
    subject = ops.Adaptation()

    def chosen(*words):
        monkeypatch.setattr(sys, "argv", ["ops.py", "--device", *words])
        return subject.chosen(cases.options_of(subject, ""))

    full = chosen("cuda")
    assert len(full) == len(set(full)) == 3 * 5 * 3 * 3 * 2
    assert (full[0].op, full[0].batch, full[0].dtype, full[0].layout) == ("ida", 16, "bfloat16", "nchw")
    few = chosen("cuda", "--op", "info_acon", "--side", "256", "--batch", "4")
    assert {(c.op, c.side, c.batch) for c in few} == {("info_acon", 256, 4)}
    assert len(chosen("cuda", "--quick")) == 3 * 2 * 2
    assert {c.side for c in chosen("cpu")} == {16, 32, 64, 128}


def test_products_are_rounded_only_where_that_is_asked_for():
    with machine.arithmetic("tf32"):
        assert torch.backends.cudnn.allow_tf32
        assert os.environ["HIDA_TF32"] == "1"
        with machine.arithmetic("float32"):
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32
        assert os.environ["HIDA_TF32"] == "1"


def test_operands_fill_the_cache_three_times(stand_in):
    case = cases.Case("info_acon", 4, 4, 8, 1, "float32", "nhwc")
    made = ops.Adaptation().buffers(case, torch.device("cpu"))
    assert sum(b.bytes() for b in made) >= 3 * 4096
    assert len({t.data_ptr() for b in made for t in b.inputs}) == len(made) * 4
    assert made[0].inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert info_acon_reference(*made[0].inputs).shape == made[0].upstream.shape


def test_a_device_that_broke_ends_the_run_and_keeps_what_there_is(stand_in, report, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(cases, "on_gpu", broken)
    case = cases.Case("ida", 4, 4, 4, 2, "float32", "nchw")
    with pytest.raises(SystemExit, match="illegal memory access"):
        cases.on_device(ops.Adaptation(), case, report, OPTIONS)
    assert cases.is_done(case, "gpu", json.loads(report.path.read_text(encoding="utf-8"))["rows"])


def test_what_has_no_time_any_more_is_left_to_the_next_run(report, capsys):
    options = Namespace(begun=0.0, minutes=0.0)
    runner.go_through([1, 2], report.add, report, options)
    assert report.rows == []
    assert "2 of 2 cases are not measured yet: the same command goes on with them" in capsys.readouterr().out


def test_a_run_that_is_cut_keeps_what_was_measured_and_goes_on_behind_it(report):
    def measure(method):
        if method == "b":
            raise KeyboardInterrupt
        report.add({"preset": "small", "batch": 1, "method": method, "ms": 1.0})

    with pytest.raises(SystemExit, match="interrupted: "):
        runner.go_through(["a", "b"], measure, report, Namespace(begun=0.0, minutes=math.inf))
    content = json.loads(report.path.read_text(encoding="utf-8"))
    assert [row["method"] for row in content["rows"]] == ["a"]
    again = runner.Report(Namespace(json=report.path, gpu=False, device="none"), "again", {"preset": "small"})
    assert again.rows == content["rows"]
    assert again.head["machines"] == [{"device": "made up"}, {"device": "made up", "preset": "small"}]
