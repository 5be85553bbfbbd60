"""What is around the kernels: autocast, opcheck, torch.compile, and arguments that are refused."""

from __future__ import annotations

import contextlib
import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from backends import back_ends, each, slow
from checking import OUTPUTS, assert_near, deform, function, outcome
from operands import NAMES, adaptation, deformation, randoms
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import hida.ops
from hida.ops import OpError

REGISTERED = ("cpu", "cuda")
NATIVE = ("cpu", "emulated", "cuda")
LAYERS = ("HIDA's 4² layer", "large map")
names = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.filterwarnings("ignore:.*deterministic")  # torch's own of a GPU


@names
@back_ends("reference", *REGISTERED)
def test_under_autocast_the_dtype_is_that_of_the_input(backend, name):
    for dtype in (torch.float32, torch.bfloat16):
        given = adaptation(name, (2, 3, 8, 8), dtype=dtype, device=backend.device)
        plain = function(backend.ops, name)(*given)
        with torch.autocast(backend.device, torch.bfloat16):
            found = function(backend.ops, name)(*given)
        assert found.dtype == dtype
        assert torch.equal(found, plain)


@back_ends(*REGISTERED)
def test_opcheck_of_the_adaptation(backend):
    shapes = (2, 3, 4, 5), (2, 9, 4, 5), (2, 3, 4, 5), (1, 3, 1, 1), (1, 3, 1, 1)
    x, joint, gamma, p1, p2 = (t.requires_grad_() for t in randoms(*shapes, device=backend.device))
    e = backend.operators
    for logits in (joint[:, :3], joint[:, :1], joint[:, :3, :1, :1], joint[:1, :3, :1, :1]):
        one = logits.detach().requires_grad_()
        opcheck(e.info_acon, (x, one, p1, p2))
        opcheck(e.ida, (x, one, gamma, gamma.detach(), p1, p2, 1, 1e-5))
    residual = torch.ones_like(x, dtype=torch.bfloat16, requires_grad=True)
    opcheck(e.instance_norm_modulate, (x, gamma, gamma.detach(), residual, 1e-5))
    opcheck(e.instance_norm_modulate, (x, gamma, gamma.detach(), None, 1e-5))


# aot_eager traces forward and backward as inductor does, without waiting for a C++ compiler. "dynamic": sizes that
# change become symbols. A symbol of every size at once is left out: its guards on shapes keep sympy busy for minutes on
# torch 2.15.
@each((), "how", reference=slow("inductor"), cpu=["aot_eager", *slow("dynamic")], cuda=["aot_eager", "inductor"])
def test_the_adaptation_compiles_as_one_graph(backend, how):
    ops = backend.ops

    def composite(h, joint, p1, p2):
        f = ops.ida(h, *joint.chunk(3, 1), p1, p2)
        return ops.instance_norm_modulate(ops.info_acon(f, joint[:, :1], p1, p2), f, f)

    dynamic = None if how == "dynamic" or backend.device == "cuda" else False
    how = "aot_eager" if how == "dynamic" else how
    compiled = torch.compile(composite, fullgraph=True, dynamic=dynamic, backend=how)
    for n, c, h, w in ((2, 3, 4, 5), (3, 3, 6, 5)):
        inputs = randoms((n, c, h, w), (n, 3 * c, h, w), (1, c, 1, 1), (1, c, 1, 1), device=backend.device)
        found, expected = outcome(compiled, inputs), outcome(composite, inputs)
        assert_near(found, [t.double() for t in expected], [1e-6 if how != "inductor" else 1e-5] * 5)


WRONG = {
    "info_acon": [
        ("x", torch.ones(3, 4, 5)),
        ("x", torch.ones(2, 3, 4, 5, dtype=torch.int32)),
        ("x", [[1.0]]),
        ("x", torch.ones(2, 3, 4, 5).to_sparse()),
        ("x", torch.ones(2, 3, 4, 5).to_mkldnn()),
        ("x", torch.ones(2, 3, 4, 5, dtype=torch.complex64)),
        ("logits", torch.nested.nested_tensor([torch.ones(3, 4, 5), torch.ones(2, 4, 5)], layout=torch.jagged)),
        ("logits", torch.ones(2, 3, 4, 4)),
        ("logits", torch.ones(1, 1, 4, 5)),
        ("logits", torch.ones(2, 3, 4, 5, dtype=torch.int64)),
        ("logits", torch.ones(2, 3, 4, 5, device="meta")),
        ("p1", torch.ones(3)),
        ("p2", torch.ones(1, 4, 1, 1)),
        ("p2", torch.ones(1, 3, 1, 1, device="meta")),
    ],
    "with residual": [
        ("x", torch.ones(2, 3)),
        ("gamma", torch.ones(2, 3, 1, 1)),
        ("beta", torch.ones(1, 3, 4, 5)),
        ("beta", torch.ones(2, 3, 4, 5, device="meta")),
        ("residual", torch.ones(2, 3, 4, 6)),
        ("residual", torch.ones(2, 3, 4, 5).to_sparse()),
        ("residual", torch.ones(2, 3, 4, 5, dtype=torch.uint8)),
        ("eps", 0.0),
        ("eps", -1e-5),
        *[("eps", value) for value in (float("nan"), float("inf"), 10**400, True, "a", None, 1j, [1e-5])],
        ("eps", torch.tensor(1e-5)),
    ],
    "ida input": [
        ("h", torch.ones(3, 4, 5)),
        ("logits", torch.ones(2, 2, 4, 5)),
        ("gamma", torch.ones(2, 3, 4, 1)),
        ("beta", torch.ones(2, 3, 4, 5, dtype=torch.bool)),
        ("gamma", torch.ones(2, 3, 4, 5, device="meta")),
        ("p1", torch.ones(2, 3, 1, 1)),
        ("residual", "all"),
        ("eps", 0.0),
    ],
}
ARGUMENTS = {
    "info_acon": ("x", "logits", "p1", "p2"),
    "with residual": ("x", "gamma", "beta", "residual"),
    "ida input": ("h", "logits", "gamma", "beta", "p1", "p2"),
}


@pytest.mark.parametrize(
    ("name", "argument", "value"), [(op, *wrong) for op, wrongs in WRONG.items() for wrong in wrongs]
)
@back_ends("reference", *REGISTERED)
def test_a_wrong_argument_of_the_adaptation_is_named(backend, name, argument, value):
    tensors = adaptation(name, (2, 3, 4, 5), device=backend.device)
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
        value = value.to(backend.device)
    op = getattr(backend.ops, {"with residual": "instance_norm_modulate", "ida input": "ida"}.get(name, name))
    with pytest.raises(OpError, match=rf"^{argument} (must|is on)"):
        op(**{**dict(zip(ARGUMENTS[name], tensors, strict=True)), argument: value})


@back_ends("reference", *REGISTERED)
def test_eps_is_any_positive_number(backend):
    x, gamma, beta = randoms(*[(2, 3, 4, 5)] * 3, device=backend.device)
    expected = backend.ops.instance_norm_modulate(x, gamma, beta, eps=0.5)
    for eps in (Fraction(1, 2), np.float32(0.5), np.float64(0.5)):
        assert torch.equal(backend.ops.instance_norm_modulate(x, gamma, beta, eps=eps), expected)
    assert torch.equal(*(backend.ops.instance_norm_modulate(x, gamma, beta, eps=eps) for eps in (np.int64(1), 1)))


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("name", [*NAMES, "deform_conv2d"])
def test_tensors_without_values_give_the_shape(kind, name):
    case = (
        deformation("plain", torch.bfloat16)[0]
        if name == "deform_conv2d"
        else adaptation(name, (2, 3, 5, 6), dtype=torch.bfloat16)
    )
    fake = FakeTensorMode()
    given = [t.to("meta") if kind == "meta" else fake.from_tensor(t) for t in case]
    steps = ((1, 1),) * 3
    with contextlib.nullcontext() if kind == "meta" else fake:  # as torch.export and torch.compile call the ops
        y = (deform(hida.ops, steps) if name == "deform_conv2d" else function(hida.ops, name))(*given)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 5, 6), torch.bfloat16, "meta" if kind == "meta" else "cpu")


@back_ends(*NATIVE)
def test_operators_of_the_adaptation_refuse_what_they_cannot_compute(backend):
    e, x = backend.operators, torch.ones(1, 2, 3, 4, device=backend.device)
    slope, flat = x[:, :, :1, :1], x[0, :, 0, 0]
    with pytest.raises(RuntimeError, match=r"gamma must have shape \(1, 2, 3, 4\); its shape is \(1, 2, 3, 3\)"):
        e.instance_norm_modulate(x, x[..., :3], x, None, 1e-5)
    with pytest.raises(RuntimeError, match="p1 must have shape"):
        e.info_acon(x, x, flat, flat)
    with pytest.raises(RuntimeError, match="must be float32"):
        e.info_acon(x.int(), x, slope, slope)
    with pytest.raises(RuntimeError, match="residual must be"):
        e.ida(x, x, x, x, slope, slope, 3, 1e-5)
    with pytest.raises(RuntimeError, match="mean and rstd must be"):
        e.instance_norm_modulate_backward(x, x, x, flat[None].double(), flat[None], 3)


@each(REGISTERED, "case", ["4² map"], cuda=LAYERS)
def test_autocast_leaves_deform_conv2d_alone(backend, case):
    tensors, steps = deformation(case, device=backend.device)
    for kind in (torch.float32, torch.bfloat16):
        given, call = [tensors[0].to(kind), *tensors[1:]], deform(backend.ops, steps)
        with torch.autocast(backend.device, torch.bfloat16):
            found = call(*given)
        assert torch.equal(found, call(*given))


@each(REGISTERED, "case", ["2² map", "groups that cross deformable groups"])
def test_opcheck_of_deform_conv2d(backend, case):
    tensors, steps = deformation(case, masked=case == "2² map", device=backend.device)
    x, offset, weight, bias, mask = (None if t is None else t.requires_grad_() for t in tensors)
    # The gradients' schema is the forward's; second derivatives, which it would ask for, are refused.
    opcheck(backend.operators.deform_conv2d, (x, offset, weight, bias, *map(list, steps), mask))


@each(
    (),
    "how",
    reference=slow("inductor"),
    cpu=["aot_eager", *slow("dynamic")],
    cuda=["aot_eager", "inductor", "dynamic"],
)
def test_deform_conv2d_compiles_as_one_graph(backend, how):
    for case in LAYERS if backend.device == "cuda" else ("4² map",):
        tensors, steps = deformation(case, device=backend.device)
        call = deform(backend.ops, steps)
        inductor = how == "inductor" or (how == "dynamic" and backend.device == "cuda")
        kind = {"backend": "inductor" if inductor else "aot_eager", "dynamic": how == "dynamic"}
        found, expected = outcome(torch.compile(call, fullgraph=True, **kind), tensors), outcome(call, tensors)
        if backend.name != "reference":
            assert torch.equal(found[0], expected[0])
        assert_near(found, [t.double() for t in expected], [1e-6] * 6, names=OUTPUTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.ones(2, 5, 6)),
        ("x", torch.ones(2, 2, 5, 6, dtype=torch.int8)),
        ("x", torch.ones(2, 2, 0, 6)),
        ("weight", torch.ones(3, 2, 3)),
        ("weight", torch.ones(3, 3, 3, 3)),
        ("weight", torch.ones(3, 0, 3, 3)),
        ("weight", torch.ones(3, 1, 3, 3)),
        ("weight", torch.ones(3, 2, 3, 3, device="meta")),
        ("offset", torch.ones(2, 17, 5, 6)),
        ("offset", torch.ones(2, 18, 5, 5)),
        ("offset", torch.ones(2, 0, 5, 6)),
        ("offset", torch.ones(2, 54, 5, 6)),
        ("mask", torch.ones(2, 18, 5, 6)),
        ("mask", torch.ones(2, 9, 5, 6, device="meta")),
        ("bias", torch.ones(2)),
        ("bias", torch.ones(3).to_sparse()),
        ("offset", torch.ones(2, 18, 5, 6).to_sparse()),
        ("stride", 0),
        ("stride", 1.5),
        ("stride", (1, 2, 3)),
        ("padding", -1),
        ("dilation", (1, 0)),
        ("dilation", None),
    ],
)
@back_ends("reference", *REGISTERED)
def test_a_wrong_argument_of_deform_conv2d_is_named(backend, name, value):
    tensors, _ = deformation("plain", device=backend.device)
    given = dict(zip(OUTPUTS[1:], tensors, strict=True), padding=1)
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
        value = value.to(backend.device)
    with pytest.raises(OpError, match=rf"^{name} "):
        backend.ops.deform_conv2d(**{**given, name: value})


@back_ends("reference", *REGISTERED)
def test_deform_conv2d_is_called_as_torchvisions_is(backend):
    (x, *tensors), (stride, padding, dilation) = deformation("pairs", device=backend.device)
    given = dict(zip(OUTPUTS[2:], tensors, strict=True), stride=stride, dilation=dilation)
    expected = backend.ops.deform_conv2d(x, **given, padding=padding)
    assert next(iter(inspect.signature(backend.ops.deform_conv2d).parameters)) == "x"
    for pads in (list(padding), np.array(padding), tuple(np.int32(p) for p in padding), torch.tensor(padding)):
        for name in ("x", "input"):
            assert torch.equal(backend.ops.deform_conv2d(**{name: x}, **given, padding=pads), expected)
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        backend.ops.deform_conv2d(x, **given, padding=padding, input=x)
    with pytest.raises(TypeError, match="input"):
        backend.ops.deform_conv2d(x=x, **given, padding=padding, input=x)
    for wrong in (
        np.float32(1),
        np.array([1.0, 2.0]),
        np.array([1, 2, 3]),
        np.int64(-1),
        "12",
        True,
        {1: 1, 2: 2},
        b"ab",
    ):
        with pytest.raises(OpError, match="padding must be"):
            backend.ops.deform_conv2d(x, **given, padding=wrong)


@back_ends("reference", *REGISTERED)
def test_an_image_smaller_than_the_kernel_is_refused(backend):
    (x, offset, weight, *_), _ = deformation("plain", device=backend.device)
    with pytest.raises(OpError, match="smaller than the kernel"):
        backend.ops.deform_conv2d(x[:, :, :2], offset, weight)


@back_ends(*NATIVE)
def test_the_operator_of_deform_conv2d_refuses_what_it_cannot_compute(backend):
    (x, offset, weight, bias, mask), (stride, padding, dilation) = deformation("4² map", device=backend.device)
    op = backend.operators.deform_conv2d
    with pytest.raises(RuntimeError, match="offset must have"):
        op(x, offset[:, :-1], weight, bias, stride, padding, dilation, mask)
    with pytest.raises(RuntimeError, match="mask must have shape"):
        op(x, offset, weight, bias, stride, padding, dilation, mask[:, 1:])
    with pytest.raises(RuntimeError, match="bias must have shape"):
        op(x, offset, weight, bias[1:], stride, padding, dilation, mask)
    with pytest.raises(RuntimeError, match="x must be float32"):
        op(x.int(), offset, weight, bias, stride, padding, dilation, mask)
    with pytest.raises(RuntimeError, match="smaller than the kernel"):
        op(x, offset, weight, bias, stride, (0, 0), (9, 9), mask)
    with pytest.raises(RuntimeError, match="at least 1"):
        op(x, offset, weight, bias, (0, 1), padding, dilation, mask)
