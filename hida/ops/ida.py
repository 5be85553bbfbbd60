"""The decoder block's whole adaptation in one pass: InfoACON, instance norm, DySPADE modulation, residual."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from hida.ops import checks
from hida.ops.info_acon import info_acon_reference, require_info_acon
from hida.ops.instance_norm_modulate import instance_norm_modulate_reference, require_instance_norm_modulate

Residual = Literal["activated", "input", "none"]


def ida(
    h: Tensor,
    logits: Tensor,
    gamma: Tensor,
    beta: Tensor,
    p1: Tensor,
    p2: Tensor,
    residual: Residual = "activated",
    eps: float = 1e-5,
) -> Tensor:
    """Activate, normalise and modulate a decoder's feature map (informative dynamic adaptation).

    ::

        f = info_acon(h, logits, p1, p2)
        k = (1 + γ)·(f − μ)/√(var + eps) + β + r,   μ and var of f per (n, c) over H×W
        r = f ("activated", the released code), h ("input", the paper's Eq. 4) or 0 ("none")

    Args:
        h: (N, C, H, W), any floating dtype.
        logits: (N, C, H, W), or one of the smaller shapes that :func:`hida.ops.info_acon` takes.
        gamma, beta: (N, C, H, W); with ``logits`` they may be channel slices of one 3C-channel tensor.
        p1, p2: (1, C, 1, 1).
        residual: ``"activated"``, ``"input"`` or ``"none"``.
        eps: added to the variance, > 0.

    Returns:
        (N, C, H, W) in the dtype of ``h``; computed in float32 (float64 for float64 input) without
        rounding ``f`` in between.

    Raises:
        OpError: if a shape, dtype or device does not fit, or ``residual`` or ``eps`` is unknown.

    Source: HIDA (ICCV 2023), Eq. 1–4.
    """
    require_info_acon(h, logits, p1, p2, "h")
    require_instance_norm_modulate(h, gamma, beta, None, eps, "h")
    if residual not in get_args(Residual):
        raise checks.OpError(f"residual must be one of {', '.join(get_args(Residual))}; it is {residual!r}.")
    return ida_reference(h, logits, gamma, beta, p1, p2, residual, eps)


def ida_reference(
    h: Tensor,
    logits: Tensor,
    gamma: Tensor,
    beta: Tensor,
    p1: Tensor,
    p2: Tensor,
    residual: Residual = "activated",
    eps: float = 1e-5,
) -> Tensor:
    """Compute :func:`ida` with plain PyTorch."""
    dtype = checks.accumulation_dtype(h, logits, gamma, beta, p1, p2)
    value = h.to(dtype)
    activated = info_acon_reference(value, logits, p1, p2)
    added = {"activated": activated, "input": value, "none": None}[residual]
    return instance_norm_modulate_reference(activated, gamma, beta, added, eps).to(h.dtype)
