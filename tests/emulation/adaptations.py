"""What the tests of the emulated adaptation share: a call of each op and both directions, and what is right."""

from __future__ import annotations

import torch
from operands import ADAPTATION_LIMITS as LIMITS
from operands import randoms, relative_error
from torch import Tensor

from hida.ops.library import sum_to

NAMES = ("info_acon", "instance_norm_modulate", "with residual", "ida none", "ida activated", "ida input")
RESIDUALS = {"ida none": 0, "ida activated": 1, "ida input": 2}
EPS = 1e-5


def upstream(shape, dtype, layout=torch.contiguous_format) -> Tensor:
    return randoms(shape, dtype=dtype, layout=layout, seed=2)[0]


def plain(name, tensors, dtype) -> Tensor:
    """The op as its contract has it, of PyTorch's own functions."""
    given = [t.to(dtype) for t in tensors]
    x = given[0]
    f = x
    if name.startswith("i") and name != "instance_norm_modulate":
        logits, p1, p2 = given[1], given[-2], given[-1]
        f = (p1 - p2) * x * torch.sigmoid(torch.sigmoid(logits) * (p1 - p2) * x) + p2 * x
        if name == "info_acon":
            return f
    gamma, beta = given[2:4] if name in RESIDUALS else given[1:3]
    variance, mean = torch.var_mean(f, (2, 3), correction=0, keepdim=True)
    normal = (f - mean) / torch.sqrt(variance + EPS)
    y = (1 + gamma) * normal + beta
    return y + {"with residual": given[-1], "ida activated": f, "ida input": x}.get(name, torch.zeros(()))


def expected(name, tensors, grad, dtype=torch.float64) -> list[Tensor]:
    given = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = plain(name, given, dtype)
    y.backward(grad.to(dtype))
    return [y.detach(), *(t.grad for t in given)]


def statistics(emulated, name, tensors) -> tuple[Tensor, ...]:
    """The result, and what else the forward operator returns."""
    if name == "info_acon":
        return (emulated.ops.info_acon(*tensors),)
    if name in RESIDUALS:
        return emulated.ops.ida(*tensors, RESIDUALS[name], EPS)
    x, gamma, beta, *residual = tensors
    return emulated.ops.instance_norm_modulate(x, gamma, beta, residual[0] if residual else None, EPS)


def gradients(emulated, name, tensors, grad, *kept, needed=None) -> dict[int, Tensor]:
    """The gradients that the backward operator returns, by the number of the operand."""
    e, needed = emulated.ops, [True] * len(tensors) if needed is None else needed
    which = {"info_acon": (0, 1, 2, 3), **dict.fromkeys(RESIDUALS, (0, 1, 2, 4, 5))}.get(name, (0, 1))
    wanted = sum(1 << bit for bit, i in enumerate(which) if needed[i])
    if name == "info_acon":
        made = e.info_acon_backward(grad, *tensors, wanted)
    elif name in RESIDUALS:
        x, logits, gamma, _, p1, p2 = tensors
        made = e.ida_backward(grad, x, logits, gamma, p1, p2, *kept, RESIDUALS[name], wanted)
    else:
        made = e.instance_norm_modulate_backward(grad, *tensors[:2], *kept, wanted)
    pairs = list(zip(made, which, strict=True))
    assert all(g.shape == (0,) for g, i in pairs if not needed[i])
    return {i: sum_to(g, tensors[i]) for g, i in pairs if needed[i]}


def launched(emulated) -> tuple[int, int, bool]:
    launches = emulated.launches()
    return launches.count, launches.cluster, launches.shared > 0


def found(emulated, name, tensors, grad, needed=None) -> list[Tensor | None]:
    """The result, and the gradients of all operands (those of β and the residual are the upstream one itself)."""
    needed = [True] * len(tensors) if needed is None else needed
    y, *kept = statistics(emulated, name, tensors)
    made = gradients(emulated, name, tensors, grad, *kept, needed=needed)
    through = {} if name == "info_acon" else {3: grad} if name in RESIDUALS else {2: grad, 3: grad}
    return [y, *(made.get(i, through.get(i)) if needed[i] else None for i in range(len(tensors)))]


def assert_near(outputs, exact, limit, eager=None):
    """Within ``limit``, or thrice the error of the plain computation in float32 where that is worse.

    Sums over planes, in which thousands of numbers of both signs cancel, may lose some digits more.
    """
    for i, (a, b) in enumerate(zip(outputs, exact, strict=True)):
        if a is None:
            continue
        assert a.shape == b.shape
        limit_here = max(limit, LIMITS[a.dtype]) if a.shape == outputs[0].shape else 10 * limit
        bound = limit_here if eager is None else max(limit_here, 3 * relative_error(eager[i], b))
        error = relative_error(a, b)
        assert error <= bound, f"output {i}: relative error {error:.2e} > {bound:.2e}"


def assert_stays_in_its_plane(outputs, eager, value):
    """What is not finite, or nearly so, at the second plane of the first image is nowhere else."""
    if value != 3e38:
        assert torch.equal(outputs[0].isfinite(), eager.isfinite())
    elsewhere = torch.ones(eager.shape, dtype=torch.bool)
    elsewhere[0, 1] = False
    for t in (outputs[0], *(g for g in outputs[1:] if g.shape == eager.shape)):
        assert t[elsewhere].isfinite().all()


def check(emulated, name, tensors, limit=None):
    dtype = tensors[0].dtype
    layout = torch.channels_last if tensors[0].stride(1) == 1 else torch.contiguous_format
    grad = upstream(tensors[0].shape, dtype, layout)
    outputs = found(emulated, name, tensors, grad)
    assert outputs[0].dtype == dtype
    assert all(a.dtype == t.dtype for a, t in zip(outputs[1:], tensors, strict=True) if a is not grad)
    eager = expected(name, tensors, grad, torch.float32) if dtype != torch.float64 else None
    assert_near(outputs, expected(name, tensors, grad), limit or LIMITS[dtype], eager)
