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

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.cases import Benchmark, Case, main
from bench.machine import DTYPES
from hida import ops
from hida.cli.output import make_printable
from hida.ops.ida import ida_reference
from hida.ops.info_acon import info_acon_reference
from hida.ops.instance_norm_modulate import instance_norm_modulate_reference

# reference, native, operands of the image's size, traffic in n forward and backward
OPS = {
    "ida": (ida_reference, ops.ida, 4, 5, 7),
    "info_acon": (info_acon_reference, ops.info_acon, 2, 3, 5),
    "instance_norm_modulate": (instance_norm_modulate_reference, ops.instance_norm_modulate, 3, 4, 5),
}


class Adaptation(Benchmark):
    """The ops of the decoder's adaptation."""

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

    def functions(self, case: Case):
        return OPS[case.op][:2]

    def floors(self, case: Case, limits: dict[str, float]) -> dict[str, dict[str, float]]:
        n = case.batch * case.channels * case.side**2 * DTYPES[case.dtype].itemsize
        *_, forward, backward = OPS[case.op]
        moved = {"fwd": forward * n, "bwd": backward * n, "fwd+bwd": (forward + backward) * n}
        return {direction: {"ms": b / limits["copy"], "bytes": b} for direction, b in moved.items()}


if __name__ == "__main__":
    make_printable()
    main(Adaptation(), __doc__)
