"""The two networks' losses where the discriminator is told, shown and asked more than the released one."""

from __future__ import annotations

import pytest
import torch
from runs import ALONE, varied

from hida.data.framing import Batch
from hida.metrics.lpips import LPIPS
from hida.training import losses
from hida.training.augmentation import Augmentation
from hida.training.objective import Objective
from hida.training.state import TrainingState

EVERYTHING = {"photo": True, "styles": 3, "scales": 2, "augment": True, "projected": True}


@pytest.fixture
def alexnet(monkeypatch):
    torch.manual_seed(7)
    network = LPIPS("alex")
    monkeypatch.setattr("hida.training.objective.load_lpips", lambda net, device: network)
    return network


def batch():
    random = torch.Generator().manual_seed(0)
    photo, depth, sketch = (torch.rand(2, channels, 256, 256, generator=random) for channels in (3, 1, 1))
    return Batch(photo * 2 - 1, depth, torch.tensor([0, 2]), sketch * 2 - 1)


def drawn_by(state, given):
    sketch, depth_hat = state.generator(given.photo, given.depth, given.style)
    return state.objective.seen(given, sketch, depth_hat)


def test_heads_add_an_adversarial_loss_of_their_own(alexnet):
    state, given = TrainingState(varied(discriminator={"projected": True, "styles": 3}), ALONE), batch()
    drawn, config = drawn_by(state, given), state.config.loss
    network = state.discriminator
    with torch.no_grad():
        features = [list(alexnet.activations(image.expand(-1, 3, -1, -1))) for image in (given.sketch, given.photo)]
        assert [f.shape[1] for f in features[0]] == [f.shape[1] for f in drawn.stages["target"]]
        d = state.objective.discriminators(network, given, drawn)
        style = torch.cat((given.style, given.style))
        both = [torch.cat(pair) for pair in zip(drawn.stages["target"], drawn.stages["sketch"], strict=True)]
        heads = network.heads(both, [torch.cat((f, f)) for f in drawn.stages["photo"]], style)
        logits = network.logits(
            torch.cat((given.depth, given.depth)), torch.cat((given.sketch, drawn.sketch)), None, style
        )
        parts = [
            torch.stack([losses.adversarial_discriminator(*maps.chunk(2), config) for maps in found]).mean()
            for found in (heads, logits)
        ]
        assert d.item() == pytest.approx(sum(parts).item(), rel=1e-5)
        g = state.objective.generators(network, given, drawn)["adversarial"]
        shares = [torch.stack([maps.chunk(2)[1].mean() for maps in found]).mean() for found in (heads, logits)]
        expected = -0.5 * shares[0] - shares[1]
        assert g.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_discriminators_loss_has_no_gradient_for_the_generator_and_the_generators_has(alexnet):
    config = varied(discriminator=EVERYTHING, loss={"weight_perceptual": 1.0})
    state, given = TrainingState(config, ALONE), batch()
    drawn = drawn_by(state, given)
    state.objective.discriminators(state.discriminator, given, drawn).backward()
    assert all(p.grad is None for p in state.generator.parameters())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in state.discriminator.heads.parameters() if p.dim() > 1
    )
    assert all(p.grad is None for p in alexnet.parameters())
    state.discriminator.requires_grad_(False)
    stem = state.generator.stem_photo.weight
    slopes = []
    for weight in (0.0, 2.0):  # of the heads' share, beside that of the patches
        object.__setattr__(state.config.loss, "weight_projected", weight)
        parts = state.objective.generators(state.discriminator, given, drawn)
        slopes.append(torch.autograd.grad(parts["adversarial"], stem, retain_graph=True)[0])
    assert (slopes[1] - slopes[0]).norm() > 0.01 * slopes[0].norm() > 0
    assert torch.autograd.grad(parts["perceptual"], stem)[0].norm() > 0


def test_real_and_drawn_are_changed_alike_and_differently_in_the_next_iteration(monkeypatch):
    state, given, seen = TrainingState(varied(discriminator={"augment": True, "photo": True}), ALONE), batch(), []
    original = state.discriminator.features
    monkeypatch.setattr(state.discriminator, "features", lambda *view: seen.append(view) or original(*view))
    for seed in range(2):
        torch.manual_seed(seed)
        drawn = drawn_by(state, given._replace(sketch=given.sketch))
        equal = drawn.__class__(given.sketch, drawn.depth_hat, given.depth, {}, drawn.augmentation)
        state.objective.discriminators(state.discriminator, given, equal)
        depth, sketch, photo, style = seen[-1]
        assert style is None
        for both in (depth, sketch, photo):
            assert torch.equal(*both.chunk(2))
        assert not torch.equal(sketch.chunk(2)[0], given.sketch)
        assert torch.equal(photo.chunk(2)[0], drawn.augmentation.moved(given.photo))
    assert not torch.equal(seen[0][1], seen[1][1])


def test_nothing_is_looked_at_or_changed_that_no_option_asks_for(monkeypatch):
    monkeypatch.setattr("hida.training.objective.load_lpips", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(Augmentation, "draw", lambda *_: pytest.fail("drew"))
    state = TrainingState(varied(), ALONE)
    drawn = drawn_by(state, batch())
    assert drawn.stages == {}
    assert drawn.augmentation is None
    assert Objective(state.config, torch.device("cpu")).names == state.losses


def test_an_iteration_with_everything_runs_again_bit_by_bit(alexnet):
    config = varied(discriminator=EVERYTHING, loss={"weight_perceptual": 2.0})
    first, second = TrainingState(config, ALONE), TrainingState(config, ALONE)
    for state in (first, second):
        for _ in range(2):
            state.step(batch(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))
