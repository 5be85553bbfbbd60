"""Time info_acon, instance_norm_modulate and ida: reference, torch.compile of it (two modes), native, floor of bytes.

python bench/ops.py --json ops.json              on a GPU: every dtype, layout, batch; again to go on
python bench/ops.py --quick                      few cases
python bench/ops.py --op ida --dtype bfloat16 --side 64 128 --without max-autotune
python bench/ops.py --device cpu --json ops.json float32, batch 1

The floor is what an op must read and write at the speed of a large copy, measured first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import runner
from cases import Case, Run
from machine import DTYPES
from timing import Buffers

from hida import ops
from hida.ops import available
from hida.ops.ida import ida_reference
from hida.ops.info_acon import info_acon_reference
from hida.ops.instance_norm_modulate import instance_norm_modulate_reference

# native, reference, operands of the image's size, traffic in n forward and backward
OPS = {
    "ida": (ops.ida, ida_reference, 4, 5, 7),
    "info_acon": (ops.info_acon, info_acon_reference, 2, 3, 5),
    "instance_norm_modulate": (ops.instance_norm_modulate, instance_norm_modulate_reference, 3, 4, 5),
}


class Adaptation:
    """The ops of the decoder's adaptation, for the runner."""

    name = "adaptation"
    kinds = tuple(OPS)
    planes = ((64, 64, 128), (128, 128, 64), (256, 256, 32), (512, 512, 16), (64, 64, 256))
    dtypes = ("bfloat16", "float32", "float16")
    exact_elements = 1 << 25

    def inputs(self, case: Case, device: torch.device) -> list[Tensor]:
        shapes = [(case.batch, case.channels, case.side, case.side)] * OPS[case.op][2]
        if case.op != "instance_norm_modulate":
            shapes += [(1, case.channels, 1, 1)] * 2
        return [torch.randn(s, device=device) for s in shapes]

    def batched(self, case: Case) -> set[int]:
        return set(range(OPS[case.op][2]))

    def reference(self, case: Case):
        return OPS[case.op][1]

    def others(self, case: Case, buffers: list[Buffers]) -> dict[str, Run]:
        if not available()[buffers[0].upstream.device.type]:
            return {}
        return {"native": Run(OPS[case.op][0], buffers, OPS[case.op][1], self.batched(case))}

    def floors(self, case: Case, ceilings: dict[str, float]) -> dict[str, dict[str, float]]:
        n = case.batch * case.channels * case.side**2 * DTYPES[case.dtype].itemsize
        _, _, _, forward, backward = OPS[case.op]
        moved = {"fwd": forward * n, "bwd": backward * n, "fwd+bwd": (forward + backward) * n}
        return {direction: {"ms": b / ceilings["copy"], "bytes": b} for direction, b in moved.items()}

    def extra(self, case: Case, given: Buffers) -> dict[str, float | bool]:
        return {}


if __name__ == "__main__":
    runner.run(Adaptation(), f"{__doc__}\n{runner.__doc__}")
