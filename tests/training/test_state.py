"""One iteration, the averaged generator, and a state that comes back exactly."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from runs import ALONE, PAPER_LIKE, RELEASED, varied

from hida import ops
from hida.config import from_dict
from hida.data.framing import Batch
from hida.errors import HidaError
from hida.metrics.lpips import LPIPS, load_lpips
from hida.training import losses
from hida.training.distributed import World
from hida.training.objective import LOSSES
from hida.training.state import TrainingState
from hida.weights.checkpoint import CHECKPOINT, Checkpoint, CheckpointError


def batch(seed=0):
    random = torch.Generator().manual_seed(seed)
    photo, depth, sketch = (torch.rand(2, channels, 256, 256, generator=random) for channels in (3, 1, 1))
    return Batch(photo * 2 - 1, depth, torch.tensor([0, 2]), sketch * 2 - 1)


def snapshot(state):
    return Checkpoint(
        Path("c.safetensors"),
        CHECKPOINT,
        from_dict(state.config.to_dict()),
        state.counters(),
        {name: tensor.detach().clone().contiguous() for name, tensor in state.tensors().items()},
    )


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


def test_the_seed_decides_the_start():
    first, again = TrainingState(RELEASED, ALONE), TrainingState(RELEASED, ALONE)
    other = TrainingState(varied(train={"seed": 1}), ALONE)
    assert_same(first.tensors(), again.tensors())
    assert not torch.equal(first.generator.stem_photo.weight, other.generator.stem_photo.weight)
    assert_same(first.generator.state_dict(), first.ema.state_dict())


def test_every_iteration_of_every_process_has_random_numbers_of_its_own():
    state, drawn = TrainingState(RELEASED, ALONE), []
    for rank, images in ((0, 0), (0, 2), (1, 0), (0, 0)):
        state.world, state.images = World(rank, 2, torch.device("cpu")), images
        state.begin(0.0)
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 3
    assert drawn[0] == drawn[3]


def test_both_networks_learn_from_the_gradients_of_all_processes(monkeypatch):
    averaged = []

    def average(world, parameters):
        averaged.append([p for p in parameters if p.grad is not None])
        for parameter in averaged[-1]:
            parameter.grad.zero_()

    monkeypatch.setattr(World, "average_gradients", average)
    config = varied(optimizer={"weight_decay": 0.0})
    state = TrainingState(config, ALONE)
    before = snapshot(state).tensors
    state.step(batch(), 0.0)
    assert [len(parameters) for parameters in averaged] == [
        len(list(network.parameters())) for network in (state.discriminator, state.generator)
    ]
    assert_same({name: before[name] for name in before}, {name: state.tensors()[name] for name in before})


TELLING = varied(discriminator={"photo": True, "styles": 3})


@pytest.mark.parametrize("config", [RELEASED, PAPER_LIKE, TELLING], ids=["released", "paper", "telling"])
def test_a_step_reports_the_losses_of_its_networks(config):
    config = varied(config, generator={"dropout": 0.0})
    state, given = TrainingState(config, ALONE), batch()
    with torch.no_grad():
        sketch, depth_hat = state.generator(given.photo, given.depth, given.style)
        seen = given.depth if config.loss.fake_depth == "given" else depth_hat
        told = (given.photo, given.style) if config.discriminator.photo else ()
        real = state.discriminator(given.depth, given.sketch, *told)
        fake = state.discriminator(seen, sketch, *told)
        expected = {
            "d": losses.adversarial_discriminator(real, fake, config.loss),
            "pixel": (sketch - given.sketch).abs().mean(),
            "texture": losses.textural(sketch, given.photo, given.sketch, config.loss),
            "geometry": losses.geometric(depth_hat, given.depth, config.loss),
        }
    parts = state.step(given, 0.0)
    with torch.no_grad():  # the generator meets the discriminator that has just learned
        expected["adversarial"] = losses.adversarial_generator(state.discriminator(seen, sketch, *told), config.loss)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert not any(value.requires_grad for value in parts.values())
    assert (state.iteration, state.images) == (1, 2)


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_the_gradients_of_an_iteration_in_nhwc(device, monkeypatch):
    """Both networks, all that a recipe may switch on, against NCHW on a CPU with PyTorch's own ops."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    perceiver = LPIPS("alex")
    monkeypatch.setattr("hida.training.objective.load_lpips", lambda net, where: copy.deepcopy(perceiver).to(where))
    # Random numbers of a GPU are others than a CPU's.
    monkeypatch.setattr(losses, "shifted", lambda *images: [image[:, :, 1:-2, 2:-1] for image in images])
    found = []
    for where, layout in (("cpu", False), (device, True)):
        config = varied(
            generator={"dropout": 0.0},
            discriminator={"scales": 2, "photo": True, "styles": 3, "projected": True},
            loss={"weight_feature_matching": 2.0, "weight_perceptual": 1.0},
            train={"channels_last": layout},
        )
        with ops.backend("auto" if layout else "reference"):
            state = TrainingState(config, World(0, 1, torch.device(where)))
            gradients: list[torch.Tensor] = []

            def update(name, network, loss, gradients=gradients):
                slopes = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
                gradients.append(torch.cat([slope.flatten() for slope in slopes]).double().cpu())

            monkeypatch.setattr(state, "_update", update)
            state.update(Batch(*(None if t is None else t.to(where) for t in batch())))
        found.append(gradients)
    for right, other in zip(*found, strict=True):
        assert right.norm() > 0
        assert (other - right).norm() <= 2e-3 * right.norm()


def test_every_scale_of_the_discriminator_has_the_same_say():
    config = varied(discriminator={"scales": 2}, generator={"dropout": 0.0})
    state, given = TrainingState(config, ALONE), batch()
    with torch.no_grad():
        sketch, _ = state.generator(given.photo, given.depth, given.style)
        real, fake = (state.discriminator.logits(given.depth, s) for s in (given.sketch, sketch))
        d = [losses.adversarial_discriminator(r, f, config.loss) for r, f in zip(real, fake, strict=True)]
    before = [p.detach().clone() for p in state.discriminator.coarser.parameters()]
    assert state.step(given, 0.0)["d"].item() == pytest.approx((d[0] + d[1]).item() / 2, rel=1e-4)
    after = list(state.discriminator.coarser.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) / 2


class Perceiver(torch.nn.Module):
    """Two stages in AlexNet's place: what it is given, and a number per picture."""

    def activations(self, image):
        yield image
        yield image.mean((1, 2, 3), keepdim=True)

    def distance(self, a, b):
        return sum((x - y).square().mean((1, 2, 3)) for x, y in zip(a, b, strict=True))


def test_the_generators_loss_weighs_its_parts_further_ones_too(monkeypatch):
    monkeypatch.setattr("hida.training.objective.load_lpips", lambda net, device: Perceiver())
    further = {"weight_feature_matching": 10, "weight_perceptual": 3}
    config = varied(loss=further, generator={"dropout": 0.0})
    state, given, totals = TrainingState(config, ALONE), batch(), {}
    monkeypatch.setattr(state, "_update", lambda name, network, loss: totals.__setitem__(name, loss.item()))
    parts = state.step(given, 0.0)
    with torch.no_grad():
        sketch, _ = state.generator(given.photo, given.depth, given.style)
        drawn, target = (state.discriminator.features(given.depth, s)[0][:-1] for s in (sketch, given.sketch))
        means = [(a - b).abs().mean().item() for a, b in zip(drawn, target, strict=True)]
        square = (sketch - given.sketch).square().mean().item()
        square += (sketch.mean((1, 2, 3)) - given.sketch.mean((1, 2, 3))).square().mean().item()
    assert list(parts) == [*LOSSES, "feature_matching", "perceptual"]
    assert parts["feature_matching"].item() == pytest.approx(sum(means) / len(means), rel=1e-4)
    assert parts["perceptual"].item() == pytest.approx(square, rel=2e-2)  # three of 256 rows and columns are left out
    expected = sum(parts[name] * weight for name, weight in zip(list(parts)[1:], (1, 4, 1, 4, 10, 3), strict=True))
    assert totals["generator"] == pytest.approx(expected.item(), rel=1e-5)
    assert totals["discriminator"] == pytest.approx(parts["d"].item(), rel=1e-6)


def test_a_perceptual_loss_without_its_network_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path))
    monkeypatch.setenv("HIDA_WEIGHTS", "")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    load_lpips.cache_clear()
    with pytest.raises(HidaError, match="alexnet-features"):
        TrainingState(varied(loss={"weight_perceptual": 1.0}), ALONE)


def test_the_generators_step_leaves_no_gradient_in_the_discriminator():
    state = TrainingState(RELEASED, ALONE)
    state.step(batch(), 0.0)
    for network in (state.generator, state.discriminator):
        assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_both_networks_learn_at_their_scheduled_rate(factor):
    state = TrainingState(varied(optimizer={"discriminator_rate": factor}), ALONE)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    state.step(batch(), 2.5)
    for part, rate in (("generator", 1e-4), ("discriminator", factor * 1e-4)):
        assert [group["lr"].item() for group in state.optimizers[part].param_groups] == [pytest.approx(rate)]
        moved = {n: (t - before[n]).abs().max() for n, t in state.tensors().items() if n.startswith(f"{part}.")}
        # Adam's first step has the size of the rate; decay adds a hundredth of the weight to it.
        assert max(moved.values()) <= rate * 1.1
        assert sum(value > 0.5 * rate for value in moved.values()) > len(moved) / 2


def test_in_a_head_start_the_discriminator_alone_learns():
    state = TrainingState(varied(optimizer={"head_start": 1}), ALONE)
    for epoch, learning in ((0.0, {"discriminator"}), (0.5, {"discriminator"}), (1.0, {"discriminator", "generator"})):
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        state.step(batch(), epoch)
        moved = {name.split(".")[0] for name, t in state.tensors().items() if not torch.equal(t, before.get(name, t))}
        assert moved & {"discriminator", "generator"} == learning
        assert ("ema" in moved) == ("generator" in learning)


@pytest.mark.parametrize("ema", [0.5, 0.0])
def test_the_average_follows_and_is_warmed_up(ema):
    state = TrainingState(varied(train={"ema": ema}), ALONE)
    expected = {name: p.clone() for name, p in state.ema.named_parameters()}
    for iteration in (1, 2):
        state.step(batch(iteration), 0.0)
        decay = min(ema, iteration / (10 + iteration))
        for name, p in state.generator.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
    for name, p in state.ema.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=1e-5, atol=1e-7)
    assert not state.ema.training
    assert not any(p.requires_grad for p in state.ema.parameters())


def test_drawing_is_the_average_without_dropout_and_disturbs_nothing():
    state, given = TrainingState(RELEASED, ALONE), batch()
    first, again = state.draw(given), state.draw(given)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].dtype == torch.float32
    other = TrainingState(RELEASED, ALONE)
    other.step(given, 0.0)
    state.step(given, 0.0)
    assert_same(state.tensors(), other.tensors())


@pytest.mark.parametrize(
    "changes", [{}, {"channels_last": True}, {"ema": 0.0, "clip": 0.5}, {"precision": "bf16"}], ids=str
)
def test_a_restored_state_continues_bit_for_bit(changes):
    config = varied(train=changes)
    straight = TrainingState(config, ALONE)
    for k in range(4):
        straight.step(batch(k), k / 2)
        if k == 1:
            middle = snapshot(straight)
    resumed = TrainingState(varied(config, train={"seed": 0}), ALONE)
    resumed.restore(middle)
    assert_same({n: t.contiguous() for n, t in resumed.tensors().items()}, middle.tensors)
    for k in (2, 3):
        resumed.step(batch(k), k / 2)
    assert_same(resumed.tensors(), straight.tensors())
    assert resumed.counters() == straight.counters()


def test_clipping_bounds_the_gradient(monkeypatch):
    state, norms = TrainingState(varied(train={"clip": 1e-3}), ALONE), []
    for name, network in (("generator", state.generator), ("discriminator", state.discriminator)):
        original = state.optimizers[name].step

        def step(*given, original=original, network=network, **more):
            norms.append(sum(p.grad.square().sum() for p in network.parameters()).sqrt().item())
            return original(*given, **more)

        monkeypatch.setattr(state.optimizers[name], "step", step)
    state.step(batch(), 0.0)
    assert norms == [pytest.approx(1e-3, rel=1e-2)] * 2


def test_another_network_or_number_of_processes_is_refused():
    state = TrainingState(RELEASED, ALONE)
    taken = snapshot(state)
    wide = TrainingState(varied(generator={"base_width": 4}), ALONE)
    with pytest.raises(CheckpointError, match=r"c\.safetensors' holds another generator .*base_width is 2, not"):
        wide.restore(taken)
    with pytest.raises(CheckpointError, match=r"written by 2 process\(es\) and this run has 1"):
        state.restore(dataclasses.replace(taken, state={**taken.state, "processes": 2}))


COUNTERS = {
    "iteration": [None, "5", [5], True, -1, 5.0, 2**62, 10**400, {}],
    "images": [None, "5", [5], True, -1, 2**62],
    "processes": [None, "1", [1], True, 0],
    "elapsed": ["0", [0], True, -1.0, math.inf, math.nan, 10**400],
    "scaler": [3, "x", [1], {"scale": "x"}, {"scale": [1]}, {"scale": 10**400}, True],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in COUNTERS.items() for value in values],
    ids=lambda value: str(value)[:20],
)
def test_damaged_counters_are_refused(name, value):
    state = TrainingState(RELEASED, ALONE)
    taken = snapshot(state)
    with pytest.raises(CheckpointError, match=rf"c\.safetensors' has damaged counters .*{name}"):
        state.restore(dataclasses.replace(taken, state={**taken.state, name: value}))


@pytest.mark.parametrize("name", ["iteration", "images", "processes"])
def test_a_missing_counter_is_named(name):
    state = TrainingState(RELEASED, ALONE)
    taken = snapshot(state)
    del taken.state[name]
    with pytest.raises(CheckpointError, match=f"damaged counters .*{name} is absent"):
        state.restore(taken)


def test_moments_of_another_shape_or_that_are_missing_are_refused():
    state = TrainingState(RELEASED, ALONE)
    state.step(batch(), 0.0)
    name = "optimizer_generator.exp_avg.stem_photo.bias"
    for change in ({name: torch.zeros(3)}, {f"{name}.more": torch.zeros(2)}, {name: torch.zeros(2).long()}):
        taken = snapshot(state)
        taken.tensors.update(change)
        with pytest.raises(CheckpointError, match="another state of the generator's optimiser"):
            state.restore(taken)
    taken = snapshot(state)
    del taken.tensors[name]
    with pytest.raises(CheckpointError, match="another state of the generator's optimiser"):
        state.restore(taken)


def test_a_checkpoint_with_missing_tensors_is_refused():
    state = TrainingState(RELEASED, ALONE)
    taken = snapshot(state)
    del taken.tensors["ema.stem_photo.bias"]
    with pytest.raises(CheckpointError, match=r"stem_photo\.bias is absent"):
        state.restore(taken)
