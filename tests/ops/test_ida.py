"""ida against the two formulas written out in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hida.ops import OpError, ida

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
NAMES = ("h", "logits", "gamma", "beta", "p1", "p2")
LOGITS = {"pixel and channel": (2, 3, 4, 5), "pixel": (2, 1, 4, 5), "channel": (2, 3, 1, 1), "shared": (1, 3, 1, 1)}


def arguments(shape=(2, 3, 4, 5), dtype=torch.float64, logits=None):
    generator = torch.Generator().manual_seed(3)
    slope = (1, shape[1], 1, 1)
    shapes = (shape, logits or shape, shape, shape, slope, slope)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def by_hand(h, logits, gamma, beta, p1, p2, residual, eps=1e-5):
    h, logits, gamma, beta, p1, p2 = (t.double().numpy() for t in (h, logits, gamma, beta, p1, p2))
    theta = 1 / (1 + np.exp(-logits))
    f = (p1 - p2) * h / (1 + np.exp(-theta * (p1 - p2) * h)) + p2 * h
    spread = np.sqrt(f.var(axis=(2, 3), keepdims=True) + eps)
    k = (1 + gamma) * (f - f.mean(axis=(2, 3), keepdims=True)) / spread + beta
    return torch.from_numpy(k + {"activated": f, "input": h, "none": 0 * h}[residual])


@pytest.mark.parametrize("residual", ["activated", "input", "none"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_formula_with_every_residual_and_dtype(residual, dtype):
    inputs = arguments(dtype=dtype)
    y = ida(*inputs, residual)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), by_hand(*inputs, residual), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", LOGITS.values(), ids=LOGITS.keys())
def test_every_shape_of_logits(shape):
    inputs = arguments(logits=shape)
    torch.testing.assert_close(ida(*inputs, eps=0.1), by_hand(*inputs, "activated", 0.1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", ["activated", "input", "none"])
def test_first_and_second_derivatives(residual):
    inputs = [t.requires_grad_() for t in arguments((2, 2, 2, 2))]
    assert torch.autograd.gradcheck(lambda *given: ida(*given, residual), inputs)
    assert torch.autograd.gradgradcheck(lambda *given: ida(*given, residual), inputs)


def test_slices_of_one_tensor_and_layouts():
    h, logits, gamma, beta, p1, p2 = arguments()
    expected = ida(h, logits, gamma, beta, p1, p2)
    for layout in (torch.contiguous_format, torch.channels_last):
        joint = torch.cat((logits, gamma, beta), 1).to(memory_format=layout)
        y = ida(h.to(memory_format=layout), *joint.chunk(3, 1), p1, p2)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 1, 1)])
def test_an_empty_batch_and_planes_of_one_element(shape):
    inputs = [t.requires_grad_() for t in arguments(shape)]
    y = ida(*inputs)
    torch.testing.assert_close(y, by_hand(*(t.detach() for t in inputs), "activated"))
    y.sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("h", torch.ones(3, 4, 5)),
        ("logits", torch.ones(2, 2, 4, 5)),
        ("gamma", torch.ones(2, 3, 4, 1)),
        ("beta", torch.ones(2, 3, 4, 5, dtype=torch.bool)),
        ("gamma", torch.ones(2, 3, 4, 5, device="meta")),
        ("p1", torch.ones(2, 3, 1, 1)),
        ("residual", "all"),
        ("eps", 0.0),
    ],
)
def test_a_wrong_argument_is_named(name, value):
    given = dict(zip(NAMES, arguments(), strict=True))
    with pytest.raises(OpError, match=rf"^{name} (must|is on)"):
        ida(**{**given, name: value})


@pytest.mark.slow
def test_compiles_as_one_graph_with_its_backward():
    inputs = [t.requires_grad_() for t in arguments(dtype=torch.float32)]
    compiled = torch.compile(ida, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), ida(*inputs))
    fused = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    plain = torch.autograd.grad(ida(*inputs).square().sum(), inputs)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
