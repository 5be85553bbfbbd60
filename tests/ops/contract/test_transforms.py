"""Derivatives that are not a plain backward: forward mode, and the transforms of torch.func, for every op."""

from __future__ import annotations

import functools
import re

import oracle
import pytest
import torch
from backends import back_ends
from checking import deform, function, outcome
from operands import NAMES, NHWC, adaptation, deformation, upstream_of
from torch import func
from torch.autograd import forward_ad

from hida.ops import library

# Under a transform the native ops take the reference, which therefore needs no run of its own beside them.
BACKENDS = ("cpu" if library.loaded else "reference", "cuda")
DEFORMED = ("deform_conv2d", "deform_conv2d without a mask", "deform_conv2d without a bias")
ops = pytest.mark.parametrize("name", [*NAMES, *DEFORMED])
some_ops = pytest.mark.parametrize("name", ["info_acon", "with residual", "ida activated", DEFORMED[0]])


def case(name, device, dtype=torch.float64):
    """Return a function of (ops, *tensors) and the tensors."""
    if name not in DEFORMED:
        return lambda module, *given: function(module, name)(*given), adaptation(
            name, (2, 3, 2, 3), dtype=dtype, device=device
        )
    tensors, steps = deformation("pairs", dtype, name != DEFORMED[1], batch=1, size=(3, 3), device=device)
    # Finite differences need points away from the pixels, where the slope jumps.
    tensors[1] = tensors[1].floor() + 0.25 + 0.5 * (tensors[1] - tensors[1].floor())
    biased, masked = name != DEFORMED[2], name != DEFORMED[1]

    def call(module, x, offset, weight, *others):
        bias, mask = others[0] if biased else None, others[-1] if masked else None
        return deform(module, steps)(x, offset, weight, bias, mask)

    return call, [*tensors[:3], *tensors[3:4][: int(biased)], *tensors[4:][: int(masked)]]


def tangents(tensors):
    return [torch.cos(t * 3 + 1) for t in tensors]


def dual_outcome(call, tensors, directions, chosen):
    """Return the result and its tangent, with duals in the ``chosen`` places."""
    with forward_ad.dual_level():
        given = [
            forward_ad.make_dual(t, d) if i in chosen else t
            for i, (t, d) in enumerate(zip(tensors, directions, strict=True))
        ]
        return [*forward_ad.unpack_dual(call(*given))]


def exact_tangent(call, tensors, directions, chosen):
    moved = [d if i in chosen else torch.zeros_like(d) for i, d in enumerate(directions)]
    return func.jvp(functools.partial(call, oracle), tuple(tensors), tuple(moved))


@pytest.mark.parametrize("mode", ["plain", "no_grad", "with gradients", "jvp", "autocast", "one level of vmap"])
@ops
@back_ends(*BACKENDS)
def test_forward_mode_with_each_argument_and_with_all(backend, name, mode):
    call, tensors = case(name, backend.device)
    directions = tangents(tensors)
    for chosen in [*((i,) for i in range(len(tensors))), range(len(tensors))]:
        given = [t.detach().requires_grad_(mode == "with gradients") for t in tensors]
        if mode == "jvp":
            places = {i: given[i] for i in chosen}

            def some(*moved, places=places, given=given):
                full = {**dict(enumerate(given)), **dict(zip(places, moved, strict=True))}
                return call(backend.ops, *full.values())

            found = func.jvp(some, tuple(places.values()), tuple(directions[i] for i in chosen))
        elif mode == "one level of vmap":
            found = func.vmap(lambda *d, given=given: func.jvp(functools.partial(call, backend.ops), tuple(given), d))(
                *(torch.stack([d if i in chosen else 0 * d] * 2) for i, d in enumerate(directions))
            )
            found = [t[1] for t in found]
        else:
            with torch.set_grad_enabled(mode != "no_grad"), torch.autocast(backend.device, enabled=mode == "autocast"):
                found = dual_outcome(functools.partial(call, backend.ops), given, directions, chosen)
        for a, b in zip(found, exact_tangent(call, tensors, directions, chosen), strict=True):
            assert a is not None
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@some_ops
@back_ends(*BACKENDS)
def test_forward_mode_in_other_dtypes_and_layouts(backend, name, dtype):
    call, tensors = case(name, backend.device, dtype)
    directions = tangents(tensors)
    last = [t.contiguous(memory_format=NHWC) if t.dim() == 4 else t for t in tensors]
    exact = exact_tangent(call, [t.double() for t in tensors], [d.double() for d in directions], range(len(tensors)))
    for given in (tensors, last):
        found = dual_outcome(functools.partial(call, backend.ops), given, directions, range(len(tensors)))
        for a, b in zip(found, exact, strict=True):
            assert a.dtype == dtype
            assert (a.double() - b).norm() <= max(backend.limit("adaptation", dtype), 2e-6) * b.norm()


@pytest.mark.filterwarnings("ignore:.*performance drop")  # of PyTorch's own batched derivatives
@ops
@back_ends(*BACKENDS)
def test_finite_differences_agree_with_every_kind_of_derivative(backend, name):
    call, tensors = case(name, backend.device)
    inputs = [t.requires_grad_() for t in tensors]
    kind = {"check_batched_grad": True, "fast_mode": True}
    one = functools.partial(call, backend.ops)
    assert torch.autograd.gradcheck(one, inputs, check_forward_ad=True, check_batched_forward_grad=True, **kind)
    twice = name not in DEFORMED or backend.name == "reference"
    kind["check_batched_grad"] = kind["check_undefined_grad"] = kind["check_rev_over_rev"] = twice
    assert torch.autograd.gradgradcheck(one, inputs, check_fwd_over_rev=True, **kind)


def summed(f, v):
    return lambda x: (f(x) * v).sum()


TRANSFORMS = {
    "grad": lambda f, x, v, w: func.grad(summed(f, w))(x),
    "vjp": lambda f, x, v, w: func.vjp(f, x)[1](w)[0],
    "jvp of vjp": lambda f, x, v, w: func.jvp(func.vjp(f, x)[1], (w,), (w.cos(),))[1][0],
    "jacrev": lambda f, x, v, w: func.jacrev(f)(x),
    "jacfwd": lambda f, x, v, w: func.jacfwd(f)(x),
    "hessian": lambda f, x, v, w: func.hessian(summed(f, w))(x),
    "jacrev of jacfwd": lambda f, x, v, w: func.jacrev(func.jacfwd(summed(f, w)))(x),
    "forward over reverse": lambda f, x, v, w: func.jvp(func.grad(summed(f, w)), (x,), (v,))[1],
    "reverse over forward": lambda f, x, v, w: func.grad(lambda x: (func.jvp(f, (x,), (v,))[1] * w).sum())(x),
    "forward over forward": lambda f, x, v, w: func.jvp(lambda x: func.jvp(f, (x,), (v,))[1], (x,), (v.sin(),))[1],
    "vmap": lambda f, x, v, w: func.vmap(f)(torch.stack([x, v])),
    "vmap of grad": lambda f, x, v, w: func.vmap(func.grad(summed(f, w)))(torch.stack([x, v])),
    "vmap along the last": lambda f, x, v, w: func.vmap(f, in_dims=-1)(torch.stack([x, v], -1)),
    "linearize": lambda f, x, v, w: func.linearize(f, x)[1](v),
    "no transform of this": lambda f, x, v, w: func.vmap(lambda s: s * f(x))(w.flatten()[:2]),
    "vectorised jacobian": lambda f, x, v, w: torch.autograd.functional.jacobian(f, x, vectorize=True),
    "jacobian by forward mode": lambda f, x, v, w: torch.autograd.functional.jacobian(
        f, x, vectorize=True, strategy="forward-mode"
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@some_ops
@back_ends(*BACKENDS)
def test_transforms_agree_with_those_of_the_formula(backend, name, transform):
    call, tensors = case(name, backend.device)
    for place in (0, len(tensors) - 1):
        x = tensors[place]
        w = upstream_of(call(oracle, *tensors))

        def f(module, x, place=place):
            return call(module, *tensors[:place], x, *tensors[place + 1 :])

        found, exact = (
            TRANSFORMS[transform](functools.partial(f, m), x, torch.cos(x * 3), w) for m in (backend.ops, oracle)
        )
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kept", [False, True])
@ops
@back_ends(*BACKENDS)
def test_a_gradient_that_is_dual_keeps_its_tangent(backend, name, kept):
    call, tensors = case(name, backend.device)
    results = []
    for module in (backend.ops, oracle):
        given = [t.detach().requires_grad_() for t in tensors]
        y = call(module, *given)  # the graph is made outside of forward mode
        upstream = upstream_of(y.detach())
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(upstream, upstream.sin())
            made = torch.autograd.grad(y, given, dual, create_graph=kept)
            results.append([part for t in made for part in forward_ad.unpack_dual(t)])
            assert kept or not any(t.requires_grad for t in made)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@some_ops
@back_ends(*BACKENDS)
def test_in_inference_mode_there_is_no_tangent_and_the_value_is_right(backend, name):
    call, tensors = case(name, backend.device)
    with torch.inference_mode():
        y, tangent = dual_outcome(functools.partial(call, backend.ops), tensors, tangents(tensors), [0])
    assert tangent is None
    torch.testing.assert_close(y, call(oracle, *tensors), rtol=1e-10, atol=1e-10)


@some_ops
@back_ends(*BACKENDS)
def test_transforms_compile_as_one_graph(backend, name):
    call, tensors = case(name, backend.device)
    w = upstream_of(call(oracle, *tensors))

    def both(module, x, v):
        def f(x):
            return call(module, x, *tensors[1:])

        return f(x), func.jvp(f, (x,), (v,))[1], func.grad(summed(f, w))(x), func.vmap(f)(torch.stack([x, v]))

    compiled = torch.compile(functools.partial(both, backend.ops), fullgraph=True, backend="aot_eager", dynamic=False)
    x, v = tensors[0], tangents(tensors)[0]
    for a, b in zip(compiled(x, v), both(oracle, x, v), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@some_ops
@back_ends("cpu", "cuda")
def test_outside_of_transforms_the_kernels_run(backend, name):
    call, tensors = case(name, backend.device)
    with forward_ad.dual_level(), torch.profiler.profile() as profile:  # none of these tensors is dual
        outcome(functools.partial(call, backend.ops), tensors)
    # On a GPU the kernels are in it, too: hida::cuda::…
    called = {event.key for event in profile.key_averages() if re.fullmatch(r"hida::\w+", event.key)}
    assert len(called) == 2  # forward and backward
