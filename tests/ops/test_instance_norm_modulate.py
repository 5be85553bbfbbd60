"""instance_norm_modulate against a loop over planes in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hida.ops import OpError, instance_norm_modulate

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def arguments(shape=(2, 3, 4, 5), dtype=torch.float64, offset=0.0):
    generator = torch.Generator().manual_seed(2)
    x, gamma, beta, residual = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)
    )
    return x + offset, gamma, beta, residual


def by_hand(x, gamma, beta, residual=None, eps=1e-5):
    x, gamma, beta = (t.double().numpy() for t in (x, gamma, beta))
    result = np.zeros_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            plane = x[n, c]
            variance = np.mean((plane - plane.mean()) ** 2)
            result[n, c] = (1 + gamma[n, c]) * (plane - plane.mean()) / np.sqrt(variance + eps) + beta[n, c]
    return torch.from_numpy(result) + (0 if residual is None else residual.double())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_the_formula_in_every_dtype(dtype, eps):
    x, gamma, beta, residual = arguments(dtype=dtype)
    for added in (None, residual):
        y = instance_norm_modulate(x, gamma, beta, added, eps)
        assert y.dtype == dtype
        exact = by_hand(x, gamma, beta, added, eps)
        torch.testing.assert_close(y.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_large_mean_does_not_cost_the_variance():
    # E[x²] − μ² in float32 would lose every digit of a unit variance beside a mean of 10⁴.
    x, gamma, beta, _ = arguments((1, 2, 16, 16), torch.float32, offset=1e4)
    torch.testing.assert_close(
        instance_norm_modulate(x, gamma, beta).double(), by_hand(x, gamma, beta), rtol=0, atol=1e-2
    )


def test_flat_planes_and_planes_of_one_element_give_beta():
    _, gamma, beta, residual = arguments((2, 3, 1, 1))
    y = instance_norm_modulate(torch.full((2, 3, 1, 1), 7.0).double(), gamma, beta, residual)
    torch.testing.assert_close(y, beta + residual, rtol=0, atol=1e-12)
    _, gamma, beta, _ = arguments()
    x = torch.full((2, 3, 4, 5), 7.0, dtype=torch.float64, requires_grad=True)
    y = instance_norm_modulate(x, gamma, beta)
    torch.testing.assert_close(y, beta, rtol=0, atol=1e-12)
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_first_and_second_derivatives():
    x, gamma, beta, residual = (t.requires_grad_() for t in arguments((2, 2, 2, 3)))
    assert torch.autograd.gradcheck(instance_norm_modulate, (x, gamma, beta, residual))
    assert torch.autograd.gradgradcheck(instance_norm_modulate, (x, gamma, beta, residual))


def test_layouts_and_slices_do_not_matter():
    x, gamma, beta, _ = arguments()
    expected = instance_norm_modulate(x, gamma, beta)
    wide = torch.cat((x, gamma, beta), 1)
    last = torch.channels_last
    torch.testing.assert_close(instance_norm_modulate(wide[:, :3], wide[:, 3:6], wide[:, 6:]), expected)
    y = instance_norm_modulate(x.to(memory_format=last), gamma.to(memory_format=last), beta.to(memory_format=last))
    torch.testing.assert_close(y, expected)


def test_an_empty_batch():
    x, gamma, beta, _ = arguments((0, 3, 4, 5))
    assert instance_norm_modulate(x.requires_grad_(), gamma, beta).shape == (0, 3, 4, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.ones(2, 3)),
        ("gamma", torch.ones(2, 3, 1, 1)),
        ("beta", torch.ones(1, 3, 4, 5)),
        ("beta", torch.ones(2, 3, 4, 5, device="meta")),
        ("residual", torch.ones(2, 3, 4, 6)),
        ("residual", torch.ones(2, 3, 4, 5, dtype=torch.uint8)),
        ("eps", 0.0),
        ("eps", -1e-5),
        ("eps", float("nan")),
    ],
)
def test_a_wrong_argument_is_named(name, value):
    given = dict(zip(("x", "gamma", "beta", "residual"), arguments(), strict=True))
    with pytest.raises(OpError, match=rf"^{name} (must|is on)"):
        instance_norm_modulate(**{**given, name: value})


@pytest.mark.slow
def test_compiles_as_one_graph():
    inputs = arguments(dtype=torch.float32)
    compiled = torch.compile(instance_norm_modulate, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), instance_norm_modulate(*inputs))
