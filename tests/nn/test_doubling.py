"""The product that doubles small feature maps on a GPU, against PyTorch's interpolation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from hida.nn.doubling import Doubling

NHWC = torch.channels_last


def interpolated(x):
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 3), (4, 3), (8, 8)])
def test_the_product_is_the_interpolation(size, layout):
    x = torch.randn(3, 6, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    grad = torch.randn(3, 6, 2 * size[0], 2 * size[1], dtype=torch.float64)
    module = Doubling()
    made, expected = module.product(x), interpolated(x)
    assert torch.allclose(made, expected, atol=1e-14)
    assert made.is_contiguous(memory_format=layout) or size == (1, 1)
    found, wanted = (torch.autograd.grad(y, x, grad)[0] for y in (made, expected))
    assert torch.allclose(found, wanted, atol=1e-14)
    assert torch.equal(module(x), expected)  # a CPU's own


def test_matrices_of_inference_and_of_tensors_without_memory_do_no_harm_to_training():
    module = Doubling()
    with torch.inference_mode():
        module.product(torch.ones(1, 2, 2, 2))
    with FakeTensorMode():
        assert module.product(torch.ones(1, 2, 2, 2)).shape == (1, 2, 4, 4)
    x = torch.ones(1, 2, 2, 2, requires_grad=True)
    copied = copy.deepcopy(module)
    assert not copied._matrices
    module.product(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 4.0))
    assert not module.state_dict()
