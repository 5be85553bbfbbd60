"""Every op of the native kernels with shapes that take every path, to be tried, or watched by a sanitizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hida import ops
from hida.ops.leaky_norm import leaky_norm

OPS = ("info_acon", "instance_norm_modulate", "ida", "deform_conv2d", "leaky_norm")
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# On a chip with clusters: planes in registers (16² and smaller, 32², 64²), in the shared memory of one block and of
# several, too large for it; sides and channels with and without packs of eight; many planes and few.
PLANES = (
    *[(3, 5, 1, 1), (2, 5, 5, 7), (2, 24, 16, 16), (2, 40, 32, 32), (2, 5, 33, 37), (2, 64, 64, 64)],
    *[(1, 24, 128, 128), (1, 5, 256, 256), (1, 2, 704, 720), (4, 64, 128, 128)],
    *[(2, 24, 72, 72), (37, 6, 3, 8), (1, 5, 168, 176), (2, 72, 40, 40), (3, 512, 4, 4)],
)
# batch, C_in, C_out, side, groups, deformable groups, stride; kernels are 3×3, padding is 1. Up to 8² with columns that
# are written out, above it without; tiles of 64 and of 128 rows, sums that are split and not.
CONVOLUTIONS = (
    *[(2, 24, 20, 4, 1, 2, 1), (3, 24, 20, 8, 1, 1, 1), (1, 40, 24, 19, 2, 1, 2), (2, 64, 64, 64, 1, 1, 1)],
    *[(4, 512, 512, 2, 1, 2, 1), (4, 1024, 512, 4, 1, 2, 1), (2, 128, 128, 66, 1, 1, 1)],
)


class Call(NamedTuple):
    """An op with the names and shapes of its operands, that of x first."""

    op: str
    kind: str
    function: Callable[..., Tensor]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(map(math.prod, self.shapes))


def adaptations(planes: Iterable[tuple[int, ...]]) -> Iterator[Call]:
    """Yield the calls of the adaptation's ops on maps of these shapes."""
    for x in planes:
        n, c, h, w = x
        slopes = ((1, c, 1, 1),) * 2
        for kind, logits in {
            "N,C,H,W": x,
            "N,1,H,W": (n, 1, h, w),
            "N,C,1,1": (n, c, 1, 1),
            "1,C,1,1": slopes[0],
        }.items():
            yield Call(OPS[0], kind, ops.info_acon, ("x", "logits", "p1", "p2"), (x, logits, *slopes), x)
        norm = ops.instance_norm_modulate
        yield Call(OPS[1], "plain", norm, ("x", "gamma", "beta"), (x,) * 3, x)
        yield Call(OPS[1], "residual", norm, ("x", "gamma", "beta", "residual"), (x,) * 4, x)
        names = "h", "logits", "gamma", "beta", "p1", "p2"
        for residual in ("activated", "input", "none"):
            yield Call(OPS[2], residual, lambda *t, r=residual: ops.ida(*t, r), names, (*[x] * 4, *slopes), x)
        yield Call(OPS[2], "one logit per pixel", ops.ida, names, (x, (n, 1, h, w), x, x, *slopes), x)
        sliced = lambda h, joint, p1, p2: ops.ida(h, *joint.chunk(3, 1), p1, p2)  # noqa: E731
        yield Call(OPS[2], "slices", sliced, ("h", "joint", "p1", "p2"), (x, (n, 3 * c, h, w), *slopes), x)
        if c % 8 == 0:  # NHWC alone has kernels of its own
            last = lambda x: leaky_norm(x.contiguous(memory_format=LAYOUTS["nhwc"]), before=0.2)  # noqa: E731
            yield Call(OPS[4], "before", last, ("x",), (x,), x)


def convolutions(shapes: Iterable[tuple[int, ...]]) -> Iterator[Call]:
    """Yield the calls of deform_conv2d; see CONVOLUTIONS."""
    for n, c, o, side, groups, deformable, stride in shapes:
        out = (side - 1) // stride + 1
        maps = [(n, channels * deformable, out, out) for channels in (18, 9)]
        operands = (n, c, side, side), maps[0], (o, c // groups, 3, 3), (o,), maps[1]
        names = "x", "offset", "weight", "bias", "mask"
        convolve = lambda x, offset, weight, bias=None, mask=None, stride=stride: ops.deform_conv2d(  # noqa: E731
            x, offset, weight, bias, stride, padding=1, mask=mask
        )
        yield Call(OPS[3], f"to {o}, groups {groups}, {deformable}", convolve, names, operands, (n, o, out, out))
        if side == 8:
            yield Call(OPS[3], "no mask, no bias", convolve, names[:3], operands[:3], (n, o, out, out))


def laid_out(t: Tensor, layout: str) -> Tensor:
    return t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t.contiguous()
