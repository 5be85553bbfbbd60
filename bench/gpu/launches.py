"""Launch every kernel of the native ops once, forward and backward, for compute-sanitizer to watch.

python bench/gpu/launches.py [--device cuda] [--large]

Small shapes that take every path: planes in registers, in shared memory, on several blocks, in pieces; packs and single
elements; channels_last; each dtype; deform_conv2d on tiny and on large maps. Nothing is poisoned, so that initcheck can
tell what was never written, and nothing is compared but for being finite: tests/gpu does that.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from hida import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLANES = (
    (3, 5, 1, 1),
    (2, 6, 5, 7),
    (4, 8, 16, 16),
    (2, 5, 33, 32),
    (2, 3, 64, 64),
    (1, 3, 128, 128),
    (1, 2, 256, 256),
    (2, 24, 48, 48),
    (1, 40, 128, 128),
)
LARGE = ((2, 64, 128, 128), (1, 150, 256, 256), (1, 1, 1024, 1031))
# batch, C_in, C_out, side, groups, deformable groups
CONVOLUTIONS = (
    (2, 64, 32, 2, 1, 2),
    (2, 96, 48, 4, 1, 2),
    (3, 24, 20, 8, 1, 1),
    (2, 20, 36, 19, 2, 1),
    (1, 64, 64, 33, 1, 1),
)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def operands(device: str, large: bool) -> Iterator[tuple[str, object, list[Tensor]]]:
    """Yield a name, a function and its operands."""
    for dtype in DTYPES:
        for layout in LAYOUTS:

            def made(*shapes, dtype=dtype, layout=layout) -> list[Tensor]:
                tensors = (torch.randn(s, device=device).to(dtype) for s in shapes)
                return [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in tensors]

            name = f"{dtype} {'nhwc' if layout == torch.channels_last else 'nchw'}"
            for shape in (*PLANES, *(LARGE if large else ())):
                slopes = (1, shape[1], 1, 1), (1, shape[1], 1, 1)
                for logits in (shape, (shape[0], 1, *shape[2:]), (*shape[:2], 1, 1)):
                    yield f"info_acon {shape} {logits} {name}", ops.info_acon, made(shape, logits, *slopes)
                yield f"ida {shape} {name}", ops.ida, made(*[shape] * 4, *slopes)
                yield f"instance_norm_modulate {shape} {name}", ops.instance_norm_modulate, made(*[shape] * 4)
            for n, c, o, side, groups, deformable in CONVOLUTIONS:
                planes = (n, c, side, side), (n, 18 * deformable, side, side), (n, 9 * deformable, side, side)
                x, offset, mask, weight, bias = made(*planes, (o, c // groups, 3, 3), (o,))
                convolve = lambda x, offset, mask, weight, bias: ops.deform_conv2d(  # noqa: E731
                    x, offset, weight, bias, padding=1, mask=mask
                )
                yield f"deform_conv2d {(n, c, o, side)} {name}", convolve, [x, offset, mask, weight, bias]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--large", action="store_true", help="larger planes too: slow under a sanitizer")
    options = parser.parse_args()
    count = 0
    for tf32 in ("0", "1"):
        os.environ["HIDA_TF32"] = tf32
        with ops.backend("native"):
            for name, function, given in operands(options.device, options.large):
                if tf32 == "1" and not (name.startswith("deform_conv2d") and "float32" in name):
                    continue
                given = [t.requires_grad_() for t in given]
                y = function(*given)
                gradients = torch.autograd.grad(y, given, torch.ones_like(y))
                for result in (y, *gradients):
                    assert result.isfinite().all(), name
                count += 1
                if count % 20 == 0:  # under a sanitizer it may be cut short: how far it came
                    print(f"{count} calls, up to {name}", flush=True)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    print(f"{count} calls, forward and backward, all finite")


if __name__ == "__main__":
    main()
