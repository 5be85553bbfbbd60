"""Instance normalisation with a per-pixel affine map (SPADE modulation)."""

from __future__ import annotations

import torch
from torch import Tensor

from hida.ops import checks


def instance_norm_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise each (n, c) plane, then scale by ``1 + γ``, shift by ``β`` and add a residual.

    ::

        y = (1 + γ)·(x − μ)/√(var + eps) + β (+ residual)

    ``μ`` and ``var`` are taken over H×W; ``var`` is biased. A plane of one element has variance 0,
    so that ``y = β (+ residual)`` there.

    Args:
        x: (N, C, H, W), any floating dtype.
        gamma, beta: (N, C, H, W); slices of a larger tensor are fine.
        residual: (N, C, H, W) or None.
        eps: added to the variance, > 0.

    Returns:
        (N, C, H, W) in the dtype of ``x``; computed in float32 (float64 for float64 input).

    Raises:
        OpError: if a shape, dtype or device does not fit, or ``eps`` is not positive.

    Source: HIDA (ICCV 2023), Eq. 4; Park et al., "Semantic Image Synthesis with SPADE", CVPR 2019, Eq. 1.
    """
    require_instance_norm_modulate(x, gamma, beta, residual, eps)
    return instance_norm_modulate_reference(x, gamma, beta, residual, eps)


def instance_norm_modulate_reference(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Compute :func:`instance_norm_modulate` with plain PyTorch."""
    dtype = checks.accumulation_dtype(x, gamma, beta, residual)
    value = x.to(dtype)
    centred = value - value.mean((2, 3), keepdim=True)
    scale = torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + eps)
    result = (1 + gamma.to(dtype)) * (centred * scale) + beta.to(dtype)
    if residual is not None:
        result = result + residual.to(dtype)
    return result.to(x.dtype)


def require_instance_norm_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, eps: float, name: str = "x"
) -> None:
    """Check the arguments of :func:`instance_norm_modulate`, whose caller calls the first one ``name``."""
    checks.require_image(name, x)
    checks.require_shape("gamma", gamma, checks.shape(x))
    checks.require_shape("beta", beta, checks.shape(x))
    if residual is not None:
        checks.require_shape("residual", residual, checks.shape(x))
    checks.require_device(name, x, gamma=gamma, beta=beta, residual=residual)
    if not eps > 0:
        raise checks.OpError(f"eps must be positive; it is {eps}.")
