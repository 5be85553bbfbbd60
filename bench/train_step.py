"""Time one training iteration, data framing and optimisers included: images per second and memory, method by method.

    python bench/train_step.py --json train_step.json              on a GPU: released, batches 4, 16, 64
    python bench/train_step.py --device cpu                        on a CPU: small, batch 8
    python bench/train_step.py --kernels --preset small --batch 16 --methods ours nchw --json trace.json

    released        the released recipe: float32, two forwards of G, the op's PyTorch reference, NCHW
    bf16            hida train without what follows: reference ops, bf16 autocast
    reference       HIDA_OPS=reference hida train: as bf16, and freed memory kept on a CPU
    compile         as bf16, with both networks through torch.compile; channels_last on a GPU
    ours            hida train: native ops, channels_last, one CUDA graph on a GPU, kept memory on a CPU
    nchw            ours, in NCHW

On a CPU each method has a process of its own, and they take turns, a few iterations each, so that a busy moment falls
on everybody; on a GPU they run one after the other in one process, since it takes many seconds to start there, and a
row is in the file as soon as it is measured. The breakdown is of operators, from torch.profiler, without a graph.

Trained is what the paper has, by the preset's networks; --recipe adds the preset's further losses and its whole
discriminator (not with the method released, nor --kernels).

--kernels measures no times, but tells every kernel of an iteration by name: how many, how long; launched one by one,
without a graph. Casts and layout copies are told apart by the operators that launched them. The sum of the kernels'
times is what a graph of the iteration could take at best.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import runner, workers
from bench.recipes import paper_losses
from bench.timing import summary
from hida import ops
from hida.cli.output import make_printable
from hida.config import load_preset
from hida.data.dataset import PairTensors
from hida.data.framing import planned_batch
from hida.device import tune
from hida.training import losses
from hida.training.distributed import World
from hida.training.engine import WARM_UP, Engine
from hida.training.state import TrainingState

METHODS = ("released", "bf16", "reference", "compile", "ours", "nchw")
NATIVE = ("ours", "nchw")
PAIRS = 256
SHOWN = 30  # kernels that are printed
KINDS = workers.OPERATORS | {
    "optimiser": ("adam", "sgd", "lerp", "Optimizer", "_foreach"),
    "data": ("aten::index", "grid_sampler"),
}


class Released(TrainingState):
    """The released recipe's iteration: the generator runs once for each of the two updates."""

    def update(self, batch):
        config = self.config.loss
        with torch.no_grad():
            sketch, _ = self.generator(batch.photo, batch.depth, batch.style)
        real, fake = self.discriminator(batch.depth, batch.sketch), self.discriminator(batch.depth, sketch)
        d = losses.adversarial_discriminator(real, fake, config)
        self._update("discriminator", self.discriminator, d)
        sketch, depth_hat = self.generator(batch.photo, batch.depth, batch.style)
        parts = [
            losses.adversarial_generator(self.discriminator(batch.depth, sketch), config),
            losses.pixel(sketch, batch.sketch),
            losses.textural(sketch, batch.photo, batch.sketch, config),
            losses.geometric(depth_hat, batch.depth, config),
        ]
        weights = config.weight_adversarial, config.weight_pixel, config.weight_texture, config.weight_geometry
        self._update("generator", self.generator, sum(w * p for w, p in zip(weights, parts, strict=True)))
        self.optimizers["discriminator"].zero_grad()
        return torch.stack([d, *parts]).detach()


def build(
    method: str, preset: str, batch: int, device: torch.device, benchmark: int = 10, recipe: bool = False
) -> Engine:
    """Return the engine of a method, on random pairs; cuDNN tries ``benchmark`` algorithms for each convolution.

    Args:
        recipe: train by the preset's whole recipe, instead of :func:`paper_losses`.
    """
    config, gpu = load_preset(preset) if recipe else paper_losses(preset), device.type == "cuda"
    train = dataclasses.replace(
        config.train,
        batch=batch,
        precision="fp32" if method == "released" else "bf16",
        channels_last=method == "ours" or (gpu and method == "compile"),
        compile=False,
    )
    state = (Released if method == "released" else TrainingState)(
        dataclasses.replace(config, train=train), World(0, 1, device)
    )
    if method == "compile":
        torch._dynamo.reset()
        state.generator.compile(dynamic=False)
        state.discriminator.compile(dynamic=False)
    if gpu or method in ("reference", *NATIVE):  # on a GPU everybody gets the best convolutions
        tune(device, benchmark)
    random = torch.Generator().manual_seed(0)
    pictures = (
        torch.randint(0, 256, (PAIRS, channels, 250, 250), dtype=torch.uint8, generator=random)
        for channels in (3, 1, 1)
    )
    pairs = PairTensors(*pictures, torch.arange(PAIRS) % 3, tuple(map(str, range(PAIRS)))).to(device)
    return Engine(state, pairs, graphs=gpu and method in NATIVE)


def backend(method: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if method in NATIVE else ops.backend("reference")


class Iteration:
    """A method's iteration, got ready."""

    def __init__(self, one: dict, options: argparse.Namespace) -> None:
        self.gpu, self.profile = options.gpu, not options.no_profile and one["method"] != "compile"
        self.method = one["method"]
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        self.engine = build(
            one["method"], one["preset"], one["batch"], options.device, options.cudnn_benchmark, options.recipe
        )
        self.wait = self.engine.losses  # which waits for the device
        for _ in range(WARM_UP + 2):
            self.step()
        values = self.wait()
        if any(value != value for value in values.values()):
            raise RuntimeError(f"the losses are {values}")

    def step(self) -> None:
        with backend(self.method):
            self.engine.step()

    def told(self) -> dict[str, float | bool]:
        """Return the peak of the memory, on a CPU the process's, and whether there is a graph."""
        if self.gpu:
            peak = torch.cuda.max_memory_reserved()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"memory_mib": peak / 2**20, "graph": self.engine.graph is not None}

    def breakdown(self) -> dict[str, dict[str, float]]:
        """Return the ms an iteration spends in each kind of operator, launched one by one."""
        if not self.profile:
            return {}
        engine, count = self.engine, 3
        engine.graph, engine.countdown = None, -1
        found = workers.breakdown(self.step, self.gpu, KINDS, count)
        if not self.gpu:
            start = time.perf_counter()
            for _ in range(count):
                planned_batch(engine.pairs, engine._host_plan().to(engine.plan.device), engine.state.config.augment)
            found["data"] = max(found["data"], (time.perf_counter() - start) * 1e3 / count)
        return {"breakdown_ms": found}

    @staticmethod
    def times(one: dict, seconds: list[float]) -> dict[str, float]:
        median, spread = summary(seconds)
        speed = {"images_per_second": one["batch"] / median, "ms": 1e3 * median, "iqr_ms": 1e3 * spread}
        return speed | {"rounds": len(seconds)}


def kernels(method: str, preset: str, batch: int, device: torch.device, count: int = 3) -> dict:
    """Return the kernels of an iteration: {"kernels": {name: [count, ms]}, "count", "ms"}, means of a few."""
    engine = build(method, preset, batch, device)
    engine.graph, engine.countdown = None, -1
    for _ in range(WARM_UP + 2):
        engine.step()
    engine.losses()
    gpu = device.type == "cuda"
    result = workers.profiled(engine.step, gpu, count)
    found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for event in result.events():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA and "gpu_user_annotation" not in event.name
        if on_gpu or not gpu:  # on a CPU operators stand for kernels
            number, total = found[event.name[:160]]
            ms = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3
            found[event.name[:160]] = [number + 1 / count, total + ms / count]
    operators = {e.key: e.count / count for e in result.key_averages() if e.key.startswith(("aten::", "hida"))}
    return {
        **{"method": method, "preset": preset, "batch": batch},
        **{"count": sum(n for n, _ in found.values()), "ms": sum(ms for _, ms in found.values())},
        "kernels": dict(sorted(found.items(), key=lambda item: -item[1][1])),
        "operators": {name: operators.get(name, 0) for name in ("aten::_to_copy", "aten::clone", "aten::copy_")},
    }


def tell_kernels(options: argparse.Namespace) -> None:
    """Print and write the kernels of the methods."""
    found = []
    for batch, method in itertools.product(options.batch, options.methods):
        with backend(method):
            one = kernels(method, options.preset, batch, options.device)
        found.append(one)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{options.preset}, batch {batch}, {method}: {one['count']:.0f} kernels, {one['ms']:.2f} ms")
        for name, (count, ms) in list(one["kernels"].items())[:SHOWN]:
            print(f"{ms:9.3f} ms {count:7.1f} × {name[:140]}", flush=True)


def main() -> None:
    """Run the command."""
    made, gpu = runner.parser(__doc__)
    made.add_argument("--preset", default="released" if gpu else "small", help="or a file")
    made.add_argument("--batch", type=int, nargs="+", default=[4, 16, 64] if gpu else [8])
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    workers.add_rounds(made, 7, gpu)
    made.add_argument("--cudnn-benchmark", type=int, default=10, metavar="N", help="as hida train's (GPU)")
    made.add_argument("--no-profile", action="store_true", help="leave out where the time goes")
    told = "all losses and the discriminator of the preset, not only the paper's (needs its networks' weights)"
    made.add_argument("--recipe", action="store_true", help=told)
    made.add_argument("--kernels", action="store_true", help="every kernel of an iteration in place of times")
    options = made.parse_args()
    if options.recipe and (options.kernels or "released" in options.methods):
        made.error("--recipe goes with neither --kernels nor the method released; name other --methods")
    if options.kernels:
        tell_kernels(options)
        return
    report = runner.Report(options, "train_step", {"preset": options.preset})
    keys = [{"preset": options.preset, "batch": batch} for batch in options.batch]
    workers.measure_methods(Iteration, keys, report, options)


if __name__ == "__main__":
    make_printable()
    main()
