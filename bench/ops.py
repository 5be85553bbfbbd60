"""Time info_acon, instance_norm_modulate and ida: reference, torch.compile of it, native kernels, floor of bytes.

python bench/ops.py --json ops.json            forward, and forward with backward, float32
python bench/ops.py --dtype bfloat16 --no-compile

The floor is what the op must read and write at the speed of a large copy, measured first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import Report, copy_speed, measure, relative_error

from hida import ops
from hida.ops import library
from hida.ops.ida import ida_reference
from hida.ops.info_acon import info_acon_reference
from hida.ops.instance_norm_modulate import instance_norm_modulate_reference

SHAPES = ((1, 512, 16, 16), (1, 256, 32, 32), (1, 128, 64, 64), (1, 64, 128, 128))
# name: native, reference, tensors of the image's size, traffic in n forward and forward + backward
OPS = {
    "info_acon": (ops.info_acon, info_acon_reference, 2, 3, 8),
    "instance_norm_modulate": (ops.instance_norm_modulate, instance_norm_modulate_reference, 3, 4, 9),
    "ida": (ops.ida, ida_reference, 4, 5, 12),
}
SETS = 4
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def inputs(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    made = [torch.randn(shape, dtype=dtype) for _ in range(OPS[name][2])]
    if name != "instance_norm_modulate":
        made += [torch.randn(1, shape[1], 1, 1, dtype=dtype) for _ in range(2)]
    return [t.requires_grad_() for t in made]


def both(function, given, upstream):
    y = function(*given)
    return [y, *torch.autograd.grad(y, given, upstream)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dtype, speed = getattr(torch, options.dtype), copy_speed()
    report = Report(f"{options.dtype}, {torch.get_num_threads()} threads, copy {speed / 1e6:.1f} GB/s")
    for name, (public, reference, _, forward_n, both_n) in OPS.items():
        for shape in SHAPES:
            torch._dynamo.reset()
            torch.manual_seed(0)
            sets = [inputs(name, shape, dtype) for _ in range(SETS)]
            upstream = torch.randn(shape, dtype=dtype)
            exact = both(reference, [t.detach().double().requires_grad_() for t in sets[0]], upstream.double())
            methods = {"reference": reference}
            if not options.no_compile:
                methods["torch.compile"] = torch.compile(reference, fullgraph=True, dynamic=False)
            if library.loaded:
                methods["native"] = public
            size = sets[0][0].numel() * sets[0][0].element_size()
            with ops.backend("native" if library.loaded else "reference"):

                def forward(round_, f=None, sets=sets):
                    with torch.no_grad():
                        return f(*sets[round_ % SETS])

                def backward(round_, f=None, sets=sets, upstream=upstream):
                    return both(f, sets[round_ % SETS], upstream)

                for run, n, compared in ((forward, forward_n, 1), (backward, both_n, len(exact))):
                    errors = {}
                    for method, f in methods.items():
                        found = run(0, f)
                        found = [found] if compared == 1 else found
                        errors[method] = relative_error(found, exact[:compared])
                    calls = {m: (lambda r, f=f, run=run: run(r, f)) for m, f in methods.items()}
                    case = f"{name} {shape[1]}@{shape[2]}² {'fwd' if compared == 1 else 'fwd+bwd'}"
                    times = measure(calls, options.seconds * len(calls))
                    report.add(case, times, errors, LIMITS[dtype], n * size / speed)
    if options.json:
        report.write(options.json)


if __name__ == "__main__":
    main()
