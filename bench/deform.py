"""Time deform_conv2d: reference, torchvision where it is installed, native kernels, the plain convolution as floor.

python bench/deform.py --json deform.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timing import Report, measure, relative_error

from hida import ops
from hida.ops import library
from hida.ops.deform_conv2d import deform_conv2d_reference

# C_in, C_out, side, deformable groups; the first two are HIDA's own layers
CASES = ((512, 512, 2, 2), (1024, 512, 4, 2), (64, 64, 128, 1), (128, 128, 64, 1), (256, 256, 32, 1))
ONE = (1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    methods = {"reference": lambda x, o, w, b, m: deform_conv2d_reference(x, o, w, b, ONE, ONE, ONE, m)}
    try:
        from torchvision.ops import deform_conv2d as torchvision_op

        methods = {"torchvision": lambda x, o, w, b, m: torchvision_op(x, o, w, b, 1, 1, 1, m), **methods}
    except ImportError:
        print("torchvision is not installed: not measured")
    if library.loaded:
        methods["native"] = lambda x, o, w, b, m: ops.deform_conv2d(x, o, w, b, 1, 1, 1, m)
    report = Report(f"float32, batch {options.batch}, {torch.get_num_threads()} threads")
    for c_in, c_out, side, groups in CASES:
        torch.manual_seed(0)
        n = options.batch
        shapes = ((n, c_in, side, side), (n, 18 * groups, side, side), (c_out, c_in, 3, 3), (c_out,))
        sets = []
        for _ in range(3):
            made = [torch.randn(s) for s in shapes] + [torch.rand(n, 9 * groups, side, side)]
            sets.append([t.requires_grad_() for t in made])
        upstream = torch.randn(n, c_out, side, side)

        def forward(round_, f, sets=sets):
            with torch.no_grad():
                return [f(*sets[round_ % 3])]

        def backward(round_, f, sets=sets, upstream=upstream):
            y = f(*sets[round_ % 3])
            return [y, *torch.autograd.grad(y, sets[round_ % 3], upstream)]

        with ops.backend("native" if library.loaded else "reference"):
            plain = [t.detach().double().requires_grad_() for t in sets[0]]
            y = methods["reference"](*plain)
            exact = [y, *torch.autograd.grad(y, plain, upstream.double())]
            convolution = measure(
                {"": lambda r, sets=sets: torch.conv2d(sets[r % 3][0].detach(), sets[r % 3][2].detach(), padding=1)},
                options.seconds,
            )[""]
            for run, title, compared in ((forward, "fwd", 1), (backward, "fwd+bwd", len(exact))):
                errors = {name: relative_error(run(0, f)[:compared], exact[:compared]) for name, f in methods.items()}
                calls = {name: (lambda r, f=f, run=run: run(r, f)) for name, f in methods.items()}
                times = measure(calls, options.seconds * len(calls), least=4)
                floor = statistics.median(convolution) if run is forward else None
                report.add(f"{c_in}→{c_out}@{side}² {title}", times, errors, 1e-4, floor)
    if options.json:
        report.write(options.json)


if __name__ == "__main__":
    main()
