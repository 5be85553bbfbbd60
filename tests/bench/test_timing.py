"""The benchmarks' measuring: errors, rotation, what is refused a time; the GPU's path with a stand-in for CUDA."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch

from hida.ops.ida import ida_reference
from hida.ops.info_acon import info_acon_reference


def test_the_exact_result_is_the_same_few_images_at_a_time(bench):
    timing = bench("timing")
    torch.manual_seed(0)
    inputs = [torch.randn(5, 3, 4, 6) for _ in range(4)] + [torch.randn(1, 3, 1, 1) for _ in range(2)]
    given = timing.Buffers(inputs, torch.randn(5, 3, 4, 6))
    whole = timing.exact(ida_reference, given, {0, 1, 2, 3}, 10**9)
    parts = timing.exact(ida_reference, given, {0, 1, 2, 3}, 2 * 3 * 4 * 6)
    plain = [t.double().requires_grad_() for t in inputs]
    y = ida_reference(*plain)
    direct = [y, *torch.autograd.grad(y, plain, given.upstream.double())]
    for a, b, c in zip(whole, parts, direct, strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, c)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_error_is_that_of_the_worst_output_and_nan_is_the_worst(bench):
    relative_error = bench("timing").relative_error
    right = [torch.ones(4, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)]
    assert relative_error([torch.ones(4), torch.full((4,), 2.2)], right) == pytest.approx(0.1, rel=1e-5)
    assert relative_error([torch.ones(4), torch.tensor([2.0, 2.0, 2.0, math.nan])], right) == math.inf


def test_every_method_gets_every_set_of_buffers_in_turn(bench):
    timing = bench("timing")
    sets = [timing.Buffers([torch.full((2,), float(k), requires_grad=True)], torch.ones(2)) for k in range(3)]
    seen: dict[str, list[float]] = {"a": [], "b": []}

    def method(name):
        def function(x):
            seen[name].append(float(x.detach()[0]))
            return 2 * x

        return function

    times = timing.on_processor({name: (method(name), sets) for name in seen}, 0.0)
    assert seen["a"] == seen["b"]
    assert set(seen["a"]) == {0.0, 1.0, 2.0}
    for directions in times.values():
        assert {d: len(t) for d, t in directions.items()} == dict.fromkeys(("fwd", "bwd", "fwd+bwd"), 7)
        assert all(b <= w for b, w in zip(directions["bwd"], directions["fwd+bwd"], strict=True))


def test_what_is_wrong_gets_no_time(bench, capsys):
    report = bench("report").Report("a test", {}, {"copy": 1.0}, None)
    case = {"op": "ida", "dtype": "float32"}
    times = {direction: [1.0, 2.0, 3.0] for direction in ("fwd", "bwd", "fwd+bwd")}
    report.add(case, "ida", "reference", times, 1e-6)
    report.add(case, "ida", "native", times, 2e-4)
    assert [row.get("median_ms") for row in report.rows] == [2.0] * 3 + [None] * 3
    assert "wrong, no time" in capsys.readouterr().out


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
    properties = SimpleNamespace(L2_cache_size=4096)
    stubs = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda s: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "graph": lambda graph, stream=None, pool=None: contextlib.nullcontext(),
        "Event": Event,
        "get_device_properties": lambda device: properties,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 10**6,
        "reset_peak_memory_stats": lambda: None,
    }
    for name, value in stubs.items():
        monkeypatch.setattr(torch.cuda, name, value)
    Graph.replays = Event.clock = 0


def test_a_gpu_is_timed_by_events_around_graphs_of_all_sets(bench, stand_in):
    timing = bench("timing")
    sets = [timing.Buffers([torch.randn(2, 3, requires_grad=True)], torch.ones(2, 3)) for _ in range(4)]
    launched, captured = timing.on_gpu(lambda x: x.sin(), sets, 0.0)
    assert Graph.replays == 3 * 7
    # The stand-in's clock ticks once an event: a span of neighbours is a tick, shared by four calls.
    assert captured == {"fwd": [0.25] * 7, "bwd": [0.25] * 7, "fwd+bwd": [0.5] * 7}
    assert len(launched["fwd"]) == 5


def test_without_a_graph_the_launched_times_remain(bench, stand_in, monkeypatch):
    def refuse(graph, stream=None, pool=None):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    timing = bench("timing")
    sets = [timing.Buffers([torch.randn(2, requires_grad=True)], torch.ones(2))] * 2
    launched, captured = timing.on_gpu(lambda x: x.sin(), sets, 0.0)
    assert captured == "operation not permitted when stream is capturing"
    assert launched["bwd"]


@pytest.mark.parametrize("name", ["ops", "deform"])
def test_the_gpu_path_measures_every_method_of_a_case(bench, stand_in, name):
    cases, runner = bench("cases"), bench("runner")
    module = bench(name)
    subject = module.Adaptation() if name == "ops" else module.Deformable()
    report = bench("report").Report("a test", {"capability": "9.0"}, {"copy": 1e6, "float32": 1e6}, None)
    case = cases.Case(subject.kinds[0], 4, 4, 4, 2, "float32", "nhwc")
    options = SimpleNamespace(without=["compile", "max-autotune"], seconds=0.0)
    runner.on_device(subject, case, torch.device("cpu"), {"copy": 1e6, "float32": 1e6}, report, options)
    failed = {row["method"]: row["failed"] for row in report.rows if "failed" in row}
    assert set(failed) <= {"torchvision"}, failed
    assert {"reference", "floor"} <= {row["method"] for row in report.rows}
    for row in report.rows:
        if "error" in row:
            assert row["error"] <= 1e-5
            assert row["median_ms"] > 0
            assert row["launched_ms"] > 0
    assert runner.is_done(report.rows, case, "gpu")


def test_cases_come_in_the_order_of_their_worth_and_filters_choose(bench, monkeypatch):
    cases, ops = bench("cases"), bench("ops")
    subject = ops.Adaptation()
    parse = cases.parser("", subject).parse_args
    full = cases.chosen(subject, parse(["--device", "cuda"]))
    assert len(full) == len(set(full)) == 3 * 5 * 3 * 3 * 2
    assert (full[0].op, full[0].batch, full[0].dtype, full[0].layout) == ("ida", 16, "bfloat16", "nchw")
    few = cases.chosen(subject, parse(["--device", "cuda", "--op", "info_acon", "--side", "256", "--batch", "4"]))
    assert {(c.op, c.side, c.batch) for c in few} == {("info_acon", 256, 4)}
    assert len(cases.chosen(subject, parse(["--device", "cuda", "--quick"]))) == 3 * 2 * 2
    assert {c.side for c in cases.chosen(subject, parse(["--device", "cpu"]))} == {16, 32, 64, 128}


def test_products_are_rounded_only_where_that_is_asked_for(bench, monkeypatch):
    import os

    machine = bench("machine")
    with machine.arithmetic("tf32"):
        assert torch.backends.cudnn.allow_tf32
        assert os.environ["HIDA_TF32"] == "1"
        with machine.arithmetic("float32"):
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32
        assert os.environ["HIDA_TF32"] == "1"


def test_buffers_fill_the_cache_three_times(bench, stand_in):
    cases, ops = bench("cases"), bench("ops")
    case = cases.Case("info_acon", 4, 4, 8, 1, "float32", "nhwc")
    made = cases.buffers_of(ops.Adaptation(), case, torch.device("cpu"))
    assert sum(b.bytes() for b in made) >= 3 * 4096
    assert len({t.data_ptr() for b in made for t in b.inputs}) == len(made) * 4
    assert made[0].inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert info_acon_reference(*made[0].inputs).shape == made[0].upstream.shape


def test_a_device_that_broke_ends_the_run_and_keeps_what_there_is(bench, stand_in, tmp_path, monkeypatch):
    cases, runner, ops = bench("cases"), bench("runner"), bench("ops")
    report = bench("report").Report("a test", {"capability": "9.0"}, {"copy": 1e6}, tmp_path / "ops.json")

    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(runner, "on_gpu", broken)
    case = cases.Case("ida", 4, 4, 4, 2, "float32", "nchw")
    options = SimpleNamespace(without=["compile", "max-autotune"], seconds=0.0)
    with pytest.raises(SystemExit, match="illegal memory access"):
        runner.on_device(ops.Adaptation(), case, torch.device("cpu"), {"copy": 1e6}, report, options)
    assert runner.is_done(bench("report").rows_of(tmp_path / "ops.json"), case, "gpu")
