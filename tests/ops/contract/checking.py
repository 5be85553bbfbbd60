"""Calling an op of a back end, and comparing it with the oracle."""

from __future__ import annotations

import oracle
import torch
from operands import upstream_of
from torch import Tensor

OUTPUTS = ("y", "x", "offset", "weight", "bias", "mask")


def function(ops, name, **options):
    """Return one of ``operands.NAMES`` as a function of its tensors; ``ops``: of a back end, or the oracle."""
    if name == "info_acon":
        return ops.info_acon
    if name.startswith("ida"):
        return lambda *given: ops.ida(*given, name.removeprefix("ida "), **options)
    return lambda *given: ops.instance_norm_modulate(*given, **options)


def deform(ops, steps):
    """Return deform_conv2d as a function of (x, offset, weight, bias, mask)."""
    return lambda x, offset, weight, bias, mask: ops.deform_conv2d(x, offset, weight, bias, *steps, mask)


def outcome(call, tensors, needed=None, upstream=None) -> list[Tensor | None]:
    """Return the result, and the gradients of the tensors for an upstream gradient that is not constant."""
    given = [
        None if t is None else t.detach().requires_grad_(needed is None or needed[i]) for i, t in enumerate(tensors)
    ]
    y = call(*given)
    wanted = [t for t in given if t is not None and t.requires_grad]
    made = iter(torch.autograd.grad(y, wanted, upstream_of(y) if upstream is None else upstream) if wanted else ())
    return [y.detach(), *(next(made) if t is not None and t.requires_grad else None for t in given)]


def exact_outcome(call, tensors, dtype=torch.float64, upstream=None) -> list[Tensor | None]:
    """Return the outcome of an oracle at tensors of any dtype; ``upstream``: in the dtype of the first."""

    def rounded(y):  # the gradient that the back end gets
        return upstream_of(y.to(tensors[0].dtype)) if upstream is None else upstream

    given = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    y = call(*given)
    made = iter(torch.autograd.grad(y, [t for t in given if t is not None], rounded(y.detach()).to(dtype)))
    return [y.detach(), *(None if t is None else next(made) for t in given)]


def relative_error(found, exact) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def assert_near(found, exact, limits, plain=None, more=None, names=None):
    """Compare each output with its own limit, or thrice the error of the ``plain`` computation if that is larger.

    ``more``: what is added to each limit.
    """
    for i, (a, b, limit) in enumerate(zip(found, exact, limits, strict=True)):
        assert (a is None) == (b is None)
        if a is None:
            continue
        assert a.shape == b.shape
        allowed = limit if plain is None else max(limit, 3 * relative_error(plain[i], b))
        allowed += more[i] if more else 0
        error = relative_error(a, b)
        assert error <= allowed, f"{names[i] if names else f'output {i}'}: relative error {error:.2e} > {allowed:.2e}"


def assert_same(found, others):
    for i, (a, b) in enumerate(zip(found, others, strict=True)):
        assert (a is None) == (b is None), f"output {i}"
        assert a is None or torch.equal(a, b), f"output {i}"


def check(backend, name, given, **options):
    """Check result and gradients of an adaptation op, their shapes and their dtypes."""
    found = outcome(function(backend.ops, name, **options), given)
    assert [t.dtype for t in found] == [given[0].dtype, *(t.dtype for t in given)]
    call = function(oracle, name, **options)
    exact = exact_outcome(call, given)
    wide = any(t.dtype == torch.float64 for t in given)
    plain = None if wide else exact_outcome(call, given, torch.float32)
    terms = float((exact[1] * given[0].double()).abs().sum())
    limits = [backend.limit("adaptation", t.dtype, wide) for t in found]
    if backend.kind == "cuda" and given[0].dtype == torch.float32 and not wide and given[0].shape[2:].numel() <= 64:
        # A norm over a few pixels that are nearly alike makes much of what is little: thrice what it makes of errors as
        # the chip's own exp2 and 1/x have them.
        with oracle.chips_own():
            own = exact_outcome(call, given)
        limits = [max(limit, 3 * relative_error(a, b)) for limit, a, b in zip(limits, own, exact, strict=True)]
    more = [0.0] * len(found)
    for i, t in enumerate(exact):
        if t.shape != given[0].shape:
            limit = backend.limit("adaptation", found[i].dtype, wide)
            more[i] = limit * backend.sums(terms / float(t.norm().clamp_min(1e-30)))
    assert_near(found, exact, limits, plain, more)
    return found


def check_deformation(backend, tensors, steps, limit=0.0):
    """Check result and gradients of deform_conv2d, their shapes and their dtypes."""
    found = outcome(deform(backend.ops, steps), tensors)
    given = [t for t in tensors if t is not None]
    assert [t.dtype for t in found if t is not None] == [given[0].dtype, *(t.dtype for t in given)]
    wide = any(t.dtype == torch.float64 for t in given)
    if backend.name in ("emulated", "cuda") and not wide:
        limit = max(limit, backend.limit("deformation", given[0].dtype))  # products are of that dtype
    limits = [0 if t is None else max(limit, backend.limit("deformation", t.dtype, wide)) for t in found]
    assert_near(found, exact_outcome(deform(oracle, steps), tensors), limits, names=OUTPUTS)
    return found
