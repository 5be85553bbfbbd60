"""Launch every kernel of the native ops once, forward and backward, for compute-sanitizer to watch.

compute-sanitizer --tool memcheck python bench/gpu/launches.py

Small shapes that take every path: planes in registers, in shared memory, on several blocks, in pieces; packs and single
elements; channels_last; each dtype; deform_conv2d on tiny and on large maps. Nothing is poisoned, so that initcheck can
tell what was never written, and nothing is compared but for being finite: tests/gpu does that.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.gpu.calls import LAYOUTS, Call, adaptations, convolutions, laid_out
from hida import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLANES = (
    *[(3, 5, 1, 1), (2, 6, 5, 7), (4, 8, 16, 16), (2, 5, 33, 32), (2, 3, 64, 64)],
    *[(1, 3, 128, 128), (1, 2, 256, 256), (2, 24, 48, 48), (1, 40, 128, 128)],
)
CONVOLUTIONS = (
    *[(2, 64, 32, 2, 1, 2, 1), (2, 96, 48, 4, 1, 2, 1), (3, 24, 20, 8, 1, 1, 1)],
    *[(2, 20, 36, 19, 2, 1, 1), (1, 64, 64, 33, 1, 1, 1)],
)
# The others launch the same kernels.
KINDS = ("N,C,H,W", "N,1,H,W", "N,C,1,1", "residual", "activated", "before")


def launch(call: Call, dtype: torch.dtype, layout: str, device: str) -> None:
    """Run a call forward and backward; its results must be finite."""
    given = [laid_out(torch.randn(s, device=device).to(dtype), layout).requires_grad_() for s in call.shapes]
    y = call.function(*given)
    for result in (y, *torch.autograd.grad(y, given, torch.ones_like(y))):
        assert result.isfinite().all(), (call, dtype, layout)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    calls = [call for call in adaptations(PLANES) if call.kind in KINDS]
    products = [call for call in convolutions(CONVOLUTIONS) if "bias" in call.names]
    todo = [("0", call, dtype, layout) for dtype in DTYPES for layout in LAYOUTS for call in (*calls, *products)]
    todo += [("1", call, torch.float32, layout) for layout in LAYOUTS for call in products]
    for count, (tf32, call, dtype, layout) in enumerate(todo, 1):
        os.environ["HIDA_TF32"] = tf32
        with ops.backend("native"):
            launch(call, dtype, layout, options.device)
        if count % 20 == 0:  # under a sanitizer it may be cut short: how far it came
            print(f"{count} calls, up to {call.op} {call.shapes[0]} {dtype} {layout}", flush=True)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    print(f"{len(todo)} calls, forward and backward, all finite")


if __name__ == "__main__":
    main()
