"""Heads on a fixed network's features."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hida.config import DiscriminatorConfig
from hida.metrics.lpips import LPIPS
from hida.models import build_discriminator
from hida.models.projected import CHANNELS, FeatureHeads
from hida.ops import OpError


def stages(n=2, seed=0):
    torch.manual_seed(seed)
    return list(LPIPS("alex").activations(torch.rand(n, 3, 96, 64) * 2 - 1))


def test_the_channels_are_those_of_the_network():
    assert {stage: x.shape[1] for stage, x in enumerate(stages()) if stage in CHANNELS} == CHANNELS


def test_a_head_per_stage_written_out():
    heads, sketch, photo = FeatureHeads(3).double(), stages(), stages(seed=1)
    sketch, photo = ([x.double() for x in side] for side in (sketch, photo))
    found = heads(sketch, photo, torch.tensor([2, 0]))
    for logits, head, stage in zip(found, heads.heads, CHANNELS, strict=True):
        height, width = sketch[stage].shape[2:]
        planes = functional.one_hot(torch.tensor([2, 0]), 3).double()[:, :, None, None].expand(-1, -1, height, width)
        first, second, last = (layer for layer in head if isinstance(layer, torch.nn.Conv2d))
        x = first(torch.cat((sketch[stage], photo[stage], planes), 1))
        x = second(functional.instance_norm(functional.leaky_relu(x, 0.2)))
        x = last(functional.leaky_relu(functional.instance_norm(functional.leaky_relu(x, 0.2)), 0.2))
        assert logits.shape == (2, 1, height, width)
        torch.testing.assert_close(logits, x)


def test_heads_that_are_told_no_style_need_none():
    found = FeatureHeads(0)(stages(), stages(seed=1), None)
    assert len(found) == len(CHANNELS)
    with pytest.raises(OpError, match="told the style"):
        FeatureHeads(3)(stages(), stages(seed=1), None)


def test_a_discriminator_has_heads_only_if_it_is_asked_for_them():
    assert build_discriminator(DiscriminatorConfig(base_width=2)).heads is None
    assert isinstance(build_discriminator(DiscriminatorConfig(base_width=2, projected=True)).heads, FeatureHeads)
