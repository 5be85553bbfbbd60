"""The engine's iteration is the plain one: on a CPU to the bit, on a GPU through its graph."""

from __future__ import annotations

import dataclasses
from collections import deque
from pathlib import Path

import pytest
import torch
from runs import PAPER_LIKE, RELEASED, varied

from hida.data.dataset import PairTensors
from hida.data.framing import draw_plan, planned_batch
from hida.training.distributed import World
from hida.training.engine import AHEAD, FAIL_CAPTURE, WARM_UP, CaptureFailed, Engine
from hida.training.objective import LOSSES
from hida.training.schedule import batch_indices, mixed_seed
from hida.training.state import TrainingState
from hida.weights.checkpoint import CHECKPOINT, Checkpoint, CheckpointError

configurations = pytest.mark.parametrize("config", [RELEASED, PAPER_LIKE], ids=["released", "paper"])


def pairs(device, n=5):
    random = torch.Generator().manual_seed(0)
    photo, depth, sketch = (
        torch.randint(0, 256, (n, channels, 250, 250), dtype=torch.uint8, generator=random) for channels in (3, 1, 1)
    )
    return PairTensors(photo, depth, sketch, torch.arange(n) % 3, tuple(map(str, range(n)))).to(device)


def build(config, device="cpu"):
    return TrainingState(config, World(0, 1, torch.device(device)))


def train(config, device, iterations, graphs):
    state = build(config, device)
    engine = Engine(state, pairs(device), graphs)
    losses = []
    for _ in range(iterations):
        engine.step()
        losses.append(engine.losses())
    return engine, losses


def differing(a, b):
    a, b = a.tensors(), b.tensors()
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@configurations
def test_the_engine_does_what_a_plain_loop_does(config):
    engine, losses = train(config, "cpu", 4, graphs=False)
    plain, data = build(config), pairs("cpu")
    for k in range(4):
        index = batch_indices(plain.images, 2, 5, 0)
        random = torch.Generator().manual_seed(mixed_seed(0, 0, plain.images, 4))
        plan = draw_plan(torch.arange(2), data.photo.shape[-1], config.augment, random)
        values = plain.step(planned_batch(data.take(index), plan, config.augment), plain.images / 5)
        assert losses[k] == {name: value.item() for name, value in values.items()}
    assert differing(engine.state, plain) == []
    assert engine.state.counters() == plain.counters()


def test_a_teachers_sketch_is_framed_like_the_target_and_weighs_in():
    state, data = build(varied(loss={"weight_distillation": 3.0})), pairs("cpu")
    data = dataclasses.replace(data, teacher=data.sketch.clone())
    engine = Engine(state, data, graphs=False)
    engine.step()
    found = engine.losses()
    assert found["distillation"] == found["pixel"] > 0
    plain, _ = train(RELEASED, "cpu", 1, graphs=False)
    # Three times the same target more, on top of its own weight of four.
    other, _ = train(varied(loss={"weight_pixel": 7.0}), "cpu", 1, graphs=False)
    moments = [
        s.optimizers["generator"].state[s.generator.head_sketch.up.weight]["exp_avg"] for s in (state, other.state)
    ]
    torch.testing.assert_close(*moments, rtol=1e-3, atol=1e-7)
    assert differing(other.state, plain.state)


def test_losses_are_means_since_they_were_last_asked_for():
    one, single = train(RELEASED, "cpu", 3, graphs=False)
    engine = Engine(build(RELEASED), pairs("cpu"), graphs=False)
    for _ in range(3):
        engine.step()
    means = pytest.approx({name: sum(s[name] for s in single) / 3 for name in LOSSES}, rel=1e-5)
    assert engine.summed == 3
    assert engine.losses() == means
    assert engine.summed == 0
    assert set(engine.losses().values()) == {0.0}
    assert differing(engine.state, one.state) == []


def kept(engine, **changed):
    """Return a checkpoint of an engine's sums."""
    sums = {**engine.sums_of_all(), **{f"summed.{name}": value for name, value in changed.items()}}
    return Checkpoint(Path("c.safetensors"), CHECKPOINT, RELEASED, {}, sums)


@pytest.fixture(scope="module")
def summing():
    engine = Engine(build(RELEASED), pairs("cpu"), graphs=False)
    engine.step()
    engine.step()
    return engine


def test_sums_go_on_from_a_checkpoint_that_has_them(summing):
    engine = Engine(summing.state, summing.pairs, graphs=False)
    engine.resume(Checkpoint(Path("old"), CHECKPOINT, RELEASED, {}, {}))
    assert engine.summed == 0
    assert not engine.sums.any()
    address = engine.sums.data_ptr()  # which a graph has
    engine.resume(kept(summing))
    assert engine.summed == 2
    assert torch.equal(engine.sums, summing.sums)
    assert summing.sums.all()
    assert engine.sums.data_ptr() == address
    other = Engine(build(varied(loss={"weight_feature_matching": 1.0})), summing.pairs, graphs=False)
    other.resume(kept(summing))
    assert other.summed == 0  # a run that goes on with other losses has other sums


@pytest.mark.parametrize(
    "changed",
    [
        {"d": torch.tensor([1.0, 2.0])},
        {"d": torch.tensor(1.0)},
        {"d": torch.tensor([1])},
        {"pixel": torch.tensor([float("nan")])},
        {"iterations": torch.tensor(-1)},
        {"iterations": torch.tensor(3)},
        {"iterations": torch.tensor([2])},
        {"iterations": torch.tensor(2.0)},
    ],
    ids=str,
)
def test_sums_that_cannot_be_are_refused(summing, changed):
    with pytest.raises(CheckpointError, match=r"^'c.safetensors' holds .*; resume from an older checkpoint\.$"):
        Engine(summing.state, summing.pairs, graphs=False).resume(kept(summing, **changed))


def test_the_iteration_reads_nothing_but_its_buffers(monkeypatch):
    """What a graph would bake in shows when the device's part is called again without its host's part."""
    engine, _ = train(RELEASED, "cpu", 1, graphs=False)
    seen = []
    monkeypatch.setattr(engine.state, "update", lambda batch: seen.append(batch) or torch.zeros(len(LOSSES)))
    plans = [engine._host_plan() for _ in range(2)]
    assert torch.equal(*plans)
    engine.state.images += 2
    plans[1] = engine._host_plan()
    assert not torch.equal(*plans)
    address = engine.plan.data_ptr()
    for plan in (*plans, plans[0]):
        engine.plan.copy_(plan)
        engine._device_part()
    assert engine.plan.data_ptr() == address
    assert not torch.equal(seen[0].photo, seen[1].photo)
    assert all(torch.equal(a, b) for a, b in zip(seen[0][:4], seen[2][:4], strict=True))


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_no_tensor_of_the_step_is_read_back(clip, monkeypatch):
    """A graph cannot hold an .item(): neither the framing nor the update may ask for one."""
    engine, _ = train(varied(train={"clip": clip}), "cpu", 1, graphs=False)

    def refuse(*_):
        raise AssertionError("a tensor was read back")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    engine._device_part()


def test_a_failed_capture_is_raised_before_anything_has_changed(monkeypatch):
    monkeypatch.setenv(FAIL_CAPTURE, "1")
    engine, plain = (Engine(build(RELEASED), pairs("cpu"), graphs=graphs) for graphs in (True, False))
    for _ in range(WARM_UP):
        assert not engine.captures_next
        engine.step()
        plain.step()
    assert engine.captures_next
    with pytest.raises(CaptureFailed, match=r"HIDA_FAIL_CAPTURE is set\); .*--train\.no-cuda-graph"):
        engine.step()
    assert differing(engine.state, plain.state) == []
    assert engine.state.counters() == plain.state.counters()
    assert engine.losses() == plain.losses()


def test_the_reason_is_the_first_of_several_errors():
    def fail():
        try:
            raise RuntimeError("the cause\nand its trace")
        finally:
            raise RuntimeError("the end failed as well")

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert CaptureFailed(caught.value).reason == "the cause"


def test_the_host_is_a_few_iterations_ahead_at_most(monkeypatch):
    happened = []

    class Event:
        def __init__(self, blocking):
            self.number = None

        def record(self):
            self.number = sum(word == "queued" for word, _ in happened)
            happened.append(("queued", self.number))

        def synchronize(self):
            happened.append(("done", self.number))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    engine = Engine(build(RELEASED), pairs("cpu"), graphs=False)
    monkeypatch.setattr(engine, "_run", lambda: None)
    engine.queued = deque()
    for _ in range(7):
        engine.step()
    queued = [("queued", k) for k in range(7)]
    assert happened == [*queued[: AHEAD + 1], ("done", 0), queued[5], ("done", 1), queued[6], ("done", 2)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGraph:
    @pytest.fixture
    def repeatable(self):
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)

    @configurations
    def test_fp32_is_the_eager_run_to_the_bit(self, repeatable, config):
        graphed, ours = train(config, "cuda", 20, graphs=True)
        eager, theirs = train(config, "cuda", 20, graphs=False)
        assert graphed.graph is not None
        assert ours == theirs
        assert differing(graphed.state, eager.state) == []

    def test_bf16_is_the_eager_run_within_its_noise(self):
        config = varied(train={"precision": "bf16", "channels_last": True})
        graphed, ours = train(config, "cuda", 20, graphs=True)
        _, theirs = train(config, "cuda", 20, graphs=False)
        _, again = train(config, "cuda", 20, graphs=False)
        assert graphed.graph is not None
        for k in range(20):
            for name in LOSSES:
                noise = max(abs(theirs[k][name] - again[k][name]), 1e-2 * abs(theirs[k][name]), 1e-3)
                assert abs(ours[k][name] - theirs[k][name]) <= 3 * noise, (k, name)

    def test_a_resumed_graph_continues_to_the_bit(self, repeatable):
        straight, _ = train(RELEASED, "cuda", 12, graphs=True)
        first, _ = train(RELEASED, "cuda", 6, graphs=True)
        second = Engine(first.state, pairs("cuda"), graphs=True)  # warms up and captures anew, mid-run
        for _ in range(6):
            second.step()
        assert differing(straight.state, second.state) == []
