"""Weights that are cast together give what autocast gives, to the bit."""

from __future__ import annotations

import pytest
import torch
from runs import ALONE, varied
from test_state import batch

from hida.models import build_generator
from hida.nn import DOG
from hida.training.half import HalfWeights
from hida.training.state import TrainingState

CONFIG = varied(
    discriminator={"scales": 2},
    loss={"weight_feature_matching": 1.0, "fake_depth": "reconstructed"},
    train={"clip": 0.5},
)


def trained(precision):
    state = TrainingState(varied(CONFIG, train={"precision": precision}), ALONE)
    losses = [state.step(batch(k), 0.0) for k in range(2)]
    return state, losses


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_training_is_that_of_autocast_to_the_bit(precision, monkeypatch):
    plain, expected = trained(precision)
    assert not plain.weights["generator"].places
    monkeypatch.setattr("hida.training.state.DEVICES", {"cpu"})
    state, losses = trained(precision)
    assert len(state.weights["generator"].places) > 100
    assert len(state.weights["discriminator"].places) == 20
    assert losses == expected
    found, wanted = state.tensors(), plain.tensors()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert state.scaler.state_dict() == plain.scaler.state_dict()


@pytest.fixture
def generator():
    return build_generator(CONFIG).to(memory_format=torch.channels_last)


def test_inside_the_weights_of_convolutions_are_half_and_outside_nothing_has_changed(generator):
    before = dict(generator.named_parameters())
    weights = HalfWeights(generator, torch.bfloat16)
    addresses = [t.data_ptr() for t in weights.half]
    exact = {name for name, _ in generator.named_parameters() if name.endswith((".p1", ".p2"))}
    for name, module in generator.named_modules():
        if isinstance(module, DOG):
            exact |= {f"{name}.{own}" for own in ("weight", "bias", "offset_mask.weight", "offset_mask.bias")}
    for _ in range(2):
        with weights:
            inside = dict(generator.named_parameters())
            assert {name for name in before if inside[name] is before[name]} == exact
            for name in before.keys() - exact:
                assert torch.equal(inside[name], before[name].bfloat16()), name
                assert inside[name].stride() == before[name].stride()
        assert all(p is before[name] for name, p in generator.named_parameters())
        with torch.no_grad():
            before["stem_photo.weight"].mul_(2)
    assert addresses == [t.data_ptr() for t in weights.half]


def test_an_error_inside_leaves_the_weights_in_place(generator):
    before, weights = list(generator.parameters()), HalfWeights(generator, torch.float16)
    with pytest.raises(ValueError, match="inside"), weights:
        raise ValueError("inside")
    assert all(a is b for a, b in zip(before, generator.parameters(), strict=True))


def test_gradients_are_handed_over_in_the_weights_own_precision_and_layout():
    layer = torch.nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
    weights = HalfWeights(layer, torch.bfloat16)
    for factor in (1.0, 2.0):  # none is left over
        with weights:
            (factor * layer.weight).sum().backward()
        assert layer.weight.grad is None
        weights.hand_over_gradients()
        assert torch.equal(layer.weight.grad, torch.full((2, 3, 3, 3), factor))
        assert layer.weight.grad.stride() == layer.weight.stride()
        assert layer.bias.grad is None
        layer.zero_grad()
