"""Every kernel of a training step on a GPU, by name: how many, how long; launched one by one, without a graph.

python bench/gpu/trace.py --preset small --batch 16 --method ours nchw [--json FILE]

The methods are two of bench/train_step.py: ours is NHWC, nchw NCHW. Casts and layout copies are told apart by the
operators that launched them. The sum of the kernels' times is what a graph of the step could take at best.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.train_step import NATIVE, WARM_UP, build
from bench.workers import profiled

STEPS = 3
SHOWN = 30  # kernels that are printed


def trace(method: str, preset: str, batch: int, device: torch.device) -> dict:
    """Return the kernels of a step: {"kernels": {name: [count, ms]}, "count", "ms"}, means of a few steps."""
    engine = build(method, preset, batch, device)
    engine.graph, engine.countdown = None, -1
    for _ in range(WARM_UP + 2):
        engine.step()
    engine.losses()
    gpu = device.type == "cuda"
    result = profiled(engine.step, gpu, STEPS)
    found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for event in result.events():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA and "gpu_user_annotation" not in event.name
        if on_gpu or not gpu:  # on a CPU operators stand for kernels
            count, total = found[event.name[:160]]
            ms = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3
            found[event.name[:160]] = [count + 1 / STEPS, total + ms / STEPS]
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    operators = {e.key: e.count / STEPS for e in result.key_averages() if e.key.startswith(("aten::", "hida"))}
    return {
        **{"method": method, "preset": preset, "batch": batch},
        **{"count": sum(n for n, _ in found.values()), "ms": sum(ms for _, ms in found.values())},
        "kernels": dict(ordered),
        "operators": {name: operators.get(name, 0) for name in ("aten::_to_copy", "aten::clone", "aten::copy_")},
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--method", nargs="+", choices=NATIVE, default=NATIVE)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for method in options.method:
        found.append(trace(method, options.preset, options.batch, torch.device(options.device)))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        one = found[-1]
        print(f"{options.preset}, batch {options.batch}, {method}: {one['count']:.0f} kernels, {one['ms']:.2f} ms")
        for name, (count, ms) in list(one["kernels"].items())[:SHOWN]:
            print(f"{ms:9.3f} ms {count:7.1f} × {name[:140]}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
