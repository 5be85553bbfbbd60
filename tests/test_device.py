"""Devices that are not here are refused; the convolution algorithms that cuDNN tries are bounded."""

from __future__ import annotations

import pytest
import torch

from hida.device import choose_device, to_channels_last, tune
from hida.errors import HidaError
from hida.nn import DOG, Upsample


def test_a_device_is_one_of_those_that_are_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    for name in ("cuda:2", "meta", "gpu"):
        with pytest.raises(HidaError, match=f"there is no device '{name}'"):
            choose_device(name)


@pytest.fixture
def cudnn(monkeypatch):
    """Settings that go back afterwards, with or without a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    return torch.backends.cudnn


@pytest.mark.parametrize(("given", "on", "limit"), [((), True, 10), ((3,), True, 3), ((0,), False, 10)], ids=str)
def test_they_are_tried_up_to_the_limit(cudnn, given, on, limit):
    tune("cuda", *given)
    assert (cudnn.benchmark, cudnn.benchmark_limit) == (on, limit)


def test_none_is_tried_where_results_must_repeat(cudnn):
    torch.use_deterministic_algorithms(True)
    try:
        tune("cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    assert cudnn.benchmark is False


def test_a_cpu_has_none(cudnn):
    tune("cpu", 3)
    assert (cudnn.benchmark, cudnn.benchmark_limit) == (False, 10)


def test_convolutions_alone_are_rearranged_and_keep_their_values():
    network = torch.nn.Sequential(DOG(4, 6), Upsample(6, 3))
    before = {name: p.clone() for name, p in network.named_parameters()}
    assert to_channels_last(network) is network
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name])
        if p.dim() == 4:
            assert p.is_contiguous() == (name == "0.weight"), name
            assert p.is_contiguous(memory_format=torch.channels_last) != (name == "0.weight"), name
