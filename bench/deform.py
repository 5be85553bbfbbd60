"""Time deform_conv2d: reference, torch.compile of it, torchvision, native kernels; beside a plain convolution.

python bench/deform.py --json deform.json        on a GPU: every dtype, layout and batch; again to go on
python bench/deform.py --quick
python bench/deform.py --dtype bfloat16 --side 2 4 --batch 4
python bench/deform.py --device cpu --json deform.json    float32, batch 1

"bfloat16" is torchvision under autocast, where it computes float32; "tf32" lets everybody round float32 products.
"native, zero offsets" stands beside "convolution", torch's own of the same shape. The kernels have one mode, which is
deterministic: "same bits" says whether three runs gave the same result and gradients. "workspace" is the memory that
the call takes beside its result, as a share of an im2col buffer. The floor is the larger of bytes at the speed of a
large copy and arithmetic at the speed of a large matrix product.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent))

import runner
from cases import Case, Run
from machine import DTYPES
from timing import Buffers

from hida import ops
from hida.ops import available
from hida.ops.deform_conv2d import deform_conv2d_reference

ONE = (1, 1)
TAPS = 9


def reference(x, offset, weight, bias, mask) -> Tensor:
    return deform_conv2d_reference(x, offset, weight, bias, ONE, ONE, ONE, mask)


def native(x, offset, weight, bias, mask) -> Tensor:
    return ops.deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask)


def convolution(x, weight, bias) -> Tensor:
    return functional.conv2d(x, weight, bias, padding=1)


def torchvision_of(case: Case):
    """Return torchvision's op, as its users call it in this arithmetic; None where it is not installed."""
    try:
        from torchvision.ops import deform_conv2d
    except ImportError:
        return None

    def function(x, offset, weight, bias, mask) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=case.dtype == "bfloat16", cache_enabled=False):
            return deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask)

    return function


class Deformable:
    """deform_conv2d, for the runner; planes of up to 4² are HIDA's own layers, with two deformable groups."""

    name = "deform_conv2d"
    kinds = ("deform_conv2d",)
    planes = (
        (512, 512, 2),
        (1024, 512, 4),
        (64, 64, 128),
        (128, 128, 64),
        (256, 256, 32),
        (512, 512, 16),
        (64, 64, 256),
    )
    dtypes = ("bfloat16", "float32", "float16", "tf32")
    exact_elements = 1 << 21

    def groups(self, case: Case) -> int:
        return 2 if case.side <= 4 else 1

    def inputs(self, case: Case, device: torch.device) -> list[Tensor]:
        n, c, o, side, groups = case.batch, case.channels, case.out, case.side, self.groups(case)
        shapes = (n, c, side, side), (n, 2 * TAPS * groups, side, side), (o, c, 3, 3), (o,)
        mask = torch.rand(n, TAPS * groups, side, side, device=device)
        return [*(torch.randn(s, device=device) for s in shapes), mask]

    def batched(self, case: Case) -> set[int]:
        return {0, 1, 4}

    def reference(self, case: Case):
        return reference

    def others(self, case: Case, buffers: list[Buffers]) -> dict[str, Run]:
        runs, batched = {}, self.batched(case)
        theirs = torchvision_of(case)
        if theirs is not None:
            runs["torchvision"] = Run(theirs, buffers, reference, batched)
        plain = [Buffers([b.inputs[0], *b.inputs[2:4]], b.upstream) for b in buffers]
        if available()[buffers[0].upstream.device.type]:
            runs["native"] = Run(native, buffers, reference, batched)
            still = [self.zero_offsets(b) for b in buffers]
            runs["native, zero offsets"] = Run(native, still, reference, batched)
        return runs | {"convolution": Run(convolution, plain, convolution, {0})}

    @staticmethod
    def zero_offsets(given: Buffers) -> Buffers:
        x, offset, weight, bias, mask = given.inputs
        still = torch.zeros_like(offset, requires_grad=True), torch.ones_like(mask, requires_grad=True)
        return Buffers([x, still[0], weight, bias, still[1]], given.upstream)

    def floors(self, case: Case, ceilings: dict[str, float]) -> dict[str, dict[str, float]]:
        groups, pixels = self.groups(case), case.batch * case.side**2
        x, y = pixels * case.channels, pixels * case.out
        points, weight = 3 * TAPS * groups * pixels, TAPS * case.channels * case.out
        flop, size = 2 * weight * pixels, DTYPES[case.dtype].itemsize
        moved = {"fwd": x + points + weight + y, "bwd": 2 * (x + points + weight) + y}
        moved["fwd+bwd"] = sum(moved.values())
        work = {"fwd": flop, "bwd": 2 * flop, "fwd+bwd": 3 * flop}
        return {
            d: {"ms": max(size * moved[d] / ceilings["copy"], work[d] / ceilings[case.dtype]), "bytes": size * moved[d]}
            for d in moved
        }

    def extra(self, case: Case, given: Buffers) -> dict[str, float | bool]:
        first = runner.once(native, given)
        same = all(torch.equal(a, b) for _ in range(2) for a, b in zip(first, runner.once(native, given), strict=True))
        del first
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            y = native(*given.inputs)
        workspace = torch.cuda.max_memory_allocated() - before - y.numel() * y.element_size()
        columns = TAPS * case.channels * case.batch * case.side**2 * given.inputs[0].element_size()
        return {"same_bits": same, "workspace_share": workspace / columns}


if __name__ == "__main__":
    runner.run(Deformable(), f"{__doc__}\n{runner.__doc__}")
