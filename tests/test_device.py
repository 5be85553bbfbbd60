"""The convolution algorithms that cuDNN tries are bounded."""

from __future__ import annotations

import pytest
import torch

from hida.device import tune


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
