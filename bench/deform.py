"""Time deform_conv2d: reference, torch.compile of it, torchvision, native kernels; beside a plain convolution.

python bench/deform.py --json deform.json        on a GPU: every dtype, layout and batch; again to go on
python bench/deform.py --quick
python bench/deform.py --dtype bfloat16 --side 2 4 --batch 4
python bench/deform.py --device cpu --json deform.json    float32, batch 1

"bfloat16" is torchvision under autocast, where it computes float32; "tf32" lets everybody round float32 products.
"native, zero offsets" is to be compared with "convolution", torch's own of the same shape. The kernels have one mode,
which is deterministic: "same bits" says whether three runs gave the same result and gradients. "workspace" is the
memory that the call takes beside its result, as a share of an im2col buffer. The floor is the larger of bytes at the
speed of a large copy and arithmetic at the speed of a large matrix product.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.cases import Benchmark, Case, main
from bench.machine import DTYPES
from bench.timing import Buffers, Run
from hida import ops
from hida.cli.output import make_printable
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


class Deformable(Benchmark):
    """deform_conv2d; planes of up to 4² are HIDA's own layers, with two deformable groups."""

    name = "deform_conv2d"
    kinds = ("deform_conv2d",)
    planes = (
        *((512, 512, 2), (1024, 512, 4), (64, 64, 128), (128, 128, 64)),
        *((256, 256, 32), (512, 512, 16), (64, 64, 256)),
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

    def functions(self, case: Case):
        return reference, native

    def others(self, case: Case, reference: Run) -> dict[str, Run]:
        runs = {}
        if (theirs := torchvision_of(case)) is not None:
            runs["torchvision"] = reference._replace(function=theirs)
        if ops.available()[reference.buffers[0].upstream.device.type]:
            still = [self.zero_offsets(given) for given in reference.buffers]
            runs["native, zero offsets"] = reference._replace(function=native, buffers=still)
        plain = [Buffers([b.inputs[0], *b.inputs[2:4]], b.upstream) for b in reference.buffers]
        return runs | {"convolution": Run(convolution, plain, convolution, {0})}

    @staticmethod
    def zero_offsets(given: Buffers) -> Buffers:
        x, offset, weight, bias, mask = given.inputs
        still = torch.zeros_like(offset, requires_grad=True), torch.ones_like(mask, requires_grad=True)
        return Buffers([x, still[0], weight, bias, still[1]], given.upstream)

    def floors(self, case: Case, limits: dict[str, float]) -> dict[str, dict[str, float]]:
        groups, pixels, size = self.groups(case), case.batch * case.side**2, DTYPES[case.dtype].itemsize
        x, y = pixels * case.channels, pixels * case.out
        points, weight = 3 * TAPS * groups * pixels, TAPS * case.channels * case.out
        moved = {"fwd": size * (x + points + weight + y), "bwd": size * (2 * (x + points + weight) + y)}
        moved["fwd+bwd"] = sum(moved.values())
        work = {"fwd": 1, "bwd": 2, "fwd+bwd": 3}
        flop = 2 * weight * pixels / limits[case.dtype]
        return {d: {"ms": max(b / limits["copy"], work[d] * flop), "bytes": b} for d, b in moved.items()}

    def extra(self, native: Run) -> dict[str, float | bool]:
        first = native.once()
        same = all(torch.equal(a, b) for _ in range(2) for a, b in zip(first, native.once(), strict=True))
        del first
        x, upstream = native.buffers[0].inputs[0], native.buffers[0].upstream
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            y = native.function(*native.buffers[0].inputs)
        workspace = torch.cuda.max_memory_allocated() - before - y.numel() * y.element_size()
        columns = TAPS * x.shape[1] * upstream[:, 0].numel() * x.element_size()
        return {"same_bits": same, "workspace_share": workspace / columns}


if __name__ == "__main__":
    make_printable()
    main(Deformable(), __doc__)
