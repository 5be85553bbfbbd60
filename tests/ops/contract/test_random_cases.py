"""5,000 random calls of the native ops, of any shape, dtype and layout, against float64; some in forward mode too."""

from __future__ import annotations

import random

import oracle
import pytest
import torch
from backends import DTYPES, back_ends
from checking import OUTPUTS, deform, exact_outcome, function, outcome, relative_error
from operands import NAMES, NHWC, SWITCHED
from torch.autograd import forward_ad

CASES, PARTS = 5000, 5
# As laid out in memory: a function from a tensor of four dimensions to one of its shape and values.
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=NHWC),
    "sliced": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "channels of a larger one": lambda t: torch.cat([t, t, t], 1)[:, t.shape[1] : 2 * t.shape[1]],
    "channels of a larger one in channels_last": lambda t: torch.cat([t, t], 1).contiguous(memory_format=NHWC)[
        :, t.shape[1] :
    ],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "images last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "a window": lambda t: torch.nn.functional.pad(t, (1, 2, 1, 0))[..., 1:, 1:-2],
}


def tensor(draw, shape, dtype, device):
    generator = torch.Generator().manual_seed(draw.getrandbits(40))
    t = torch.randn(shape, generator=generator).to(device, dtype)
    if len(shape) != 4:
        return t
    if draw.random() < 0.15 and t.numel():  # one image, channel, row or column for all
        axis = draw.randrange(4)
        return t.narrow(axis, 0, 1).expand(shape)
    return LAYOUTS[draw.choice(list(LAYOUTS))](t)


def dtypes(draw, count):
    if draw.random() < 0.3:
        return [draw.choice(DTYPES) for _ in range(count)]
    return [draw.choice(DTYPES)] * count


def adaptation_case(draw, device):
    name = draw.choice(NAMES)
    n, c, h, w = draw.randrange(4), draw.randint(1, 21), draw.randint(1, 17), draw.randint(1, 17)
    x, slope = (n, c, h, w), (1, c, 1, 1)
    shapes = [x] * (3 + (name == "with residual"))
    if name in SWITCHED:
        logits = draw.choice([x, x, (n, 1, h, w), (n, c, 1, 1), (1, c, 1, 1)])
        shapes = [x, logits, *([] if name == "info_acon" else [x, x]), slope, slope]
    options = {} if name == "info_acon" else {"eps": draw.choice([1e-5, 1e-3, 0.1])}
    given = [tensor(draw, s, d, device) for s, d in zip(shapes, dtypes(draw, len(shapes)), strict=True)]
    return f"{name} {options}", lambda ops: function(ops, name, **options), given


def deformation_case(draw, device):
    deformable, groups, kernel = draw.randint(1, 3), draw.randint(1, 3), (draw.randint(1, 3), draw.randint(1, 3))
    n, c_in, c_out = draw.randrange(4), deformable * groups * draw.randint(1, 3), groups * draw.randint(1, 5)
    stride, padding, dilation = ((draw.randint(a, 2), draw.randint(a, 2)) for a in (1, 0, 1))
    size = [
        max(draw.randint(1, 17), d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    out = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    taps = kernel[0] * kernel[1]
    shapes = [
        (n, c_in, *size),
        (n, 2 * deformable * taps, *out),
        (c_out, c_in // groups, *kernel),
        (c_out,) if draw.random() < 0.6 else None,
        (n, deformable * taps, *out) if draw.random() < 0.6 else None,
    ]
    given = [
        None if s is None else tensor(draw, s, d, device)
        for s, d in zip(shapes, dtypes(draw, len(shapes)), strict=True)
    ]
    # Off the pixels, where the slope jumps, and numbers of every dtype: sums with a pixel's place are exact.
    given[1] = (given[1].double().clamp(-3, 3).mul(16).floor() / 16 + 1 / 32).to(given[1].dtype)
    return f"deform_conv2d {stride, padding, dilation}", lambda ops: deform(ops, (stride, padding, dilation)), given


def compare(worst, family, found, exact, limits, names, plain, wide):
    """Compare each output with its limit, or a few times the error of ``plain()`` where that is larger.

    That computes in float32; in float64 the errors are as much smaller as the numbers are finer.
    """
    finer = 10 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if wide else 3
    coarse = None
    for i, (a, b, limit, name) in enumerate(zip(found, exact, limits, names, strict=False)):
        if a is None:
            continue
        assert a.shape == b.shape
        error = relative_error(a, b)
        if error > limit:
            coarse = coarse or plain()
            limit = max(limit, finer * relative_error(coarse[i], b))
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e}"
        key = family, str(a.dtype)
        worst[key] = max(worst.get(key, (0.0, 0.0)), (error / limit, error))


def tangent(call, given, directions, dtype=None):
    """Return the tangent of a result; ``dtype``: computed in it."""
    given, directions = ([t if t is None or dtype is None else t.to(dtype) for t in ts] for ts in (given, directions))
    with forward_ad.dual_level():
        duals = [t if d is None else forward_ad.make_dual(t, d) for t, d in zip(given, directions, strict=True)]
        return forward_ad.unpack_dual(call(*duals)).tangent


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:var_mean")  # of no images
@pytest.mark.parametrize("part", range(PARTS))
@back_ends("cpu", "cuda")
def test_random_cases(backend, part, record_property):
    draw, worst = random.Random(part), {}
    for number in range(CASES // PARTS):
        made = deformation_case if draw.random() < 0.3 else adaptation_case
        name, op, given = made(draw, backend.device)
        tensors = [t for t in given if t is not None]
        told = f"case {number} of part {part}, {name}, {[(tuple(t.shape), t.stride(), t.dtype) for t in tensors]}"
        try:
            measure(backend, made, op, given, draw, worst, forward=number % 8 == 0)
        except AssertionError as error:
            pytest.fail(f"{told}: {error}")
    for (family, dtype), (share, error) in sorted(worst.items()):
        record_property(f"{family} {dtype}", f"worst error {error:.1e}, {share:.2f} of its limit")
        print(f"{family} {dtype}: worst error {error:.1e}, {share:.2f} of its limit")


def measure(backend, made, op, given, draw, worst, forward):
    family = "deformation" if made is deformation_case else "adaptation"
    wide = any(t is not None and t.dtype == torch.float64 for t in given)
    kinds = [None if t is None else t.dtype for t in (given[0], *given)]
    if backend.name == "cuda" and family == "deformation" and not wide:
        kinds = [kind and max(kind, given[0].dtype, key=DTYPES.index) for kind in kinds]  # products are of that dtype
    limits = [0.0 if kind is None else 2 * backend.limit(family, kind, wide) for kind in kinds]
    names = OUTPUTS if family == "deformation" else ["y", *(f"gradient {i}" for i in range(len(given)))]
    found = outcome(op(backend.ops), given, [draw.random() < 0.7 for _ in given])
    exact = exact_outcome(op(oracle), given)
    compare(worst, family, found, exact, limits, names, lambda: exact_outcome(op(oracle), given, torch.float32), wide)
    if forward:
        # torch makes no dual of a tensor that overlaps itself.
        given = [
            t if t is None or 0 not in t.stride() else t.clone(memory_format=torch.contiguous_format) for t in given
        ]
        directions = [
            torch.cos(3 * t) if t is not None and (i == 0 or draw.random() < 0.5) else None for i, t in enumerate(given)
        ]
        moved, exact = (
            tangent(op(backend.ops), given, directions),
            tangent(op(oracle), given, directions, torch.float64),
        )
        compare(
            *(worst, "tangent", [moved], [exact], limits, names),
            *(lambda: [tangent(op(oracle), given, directions, torch.float32)], wide),
        )
