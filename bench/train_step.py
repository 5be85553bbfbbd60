"""Time one training iteration, data framing and optimisers included: images per second and memory, method by method.

    python bench/train_step.py --json train_step.json              on a GPU: released, batches 4, 16, 64
    python bench/train_step.py --device cpu                        on a CPU: small, batch 8

    released        the released recipe: float32, two forwards of G, the op's PyTorch reference, NCHW
    bf16            hida train without what follows: reference ops, bf16 autocast
    reference       HIDA_OPS=reference hida train: as bf16, and freed memory kept on a CPU
    compile         as bf16, with both networks through torch.compile; channels_last on a GPU
    ours            hida train: native ops, channels_last, one CUDA graph on a GPU, kept memory on a CPU
    nchw            ours, in NCHW

On a CPU each method has a process of its own, and they take turns, a few iterations each, so that a busy moment falls
on everybody; on a GPU they run one after the other in one process, since it takes many seconds to start there, and a
row is in the file as soon as it is measured. The breakdown is of operators, from
torch.profiler, without a graph.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import runner, workers
from bench.timing import summary
from hida import ops
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
KINDS = workers.OPERATORS | {
    "optimiser": ("adam", "lerp", "Optimizer", "_foreach"),
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


def build(method: str, preset: str, batch: int, device: torch.device, benchmark: int = 10) -> Engine:
    """Return the engine of a method, on random pairs; cuDNN tries ``benchmark`` algorithms for each convolution."""
    config, gpu = load_preset(preset), device.type == "cuda"
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


class Iteration(workers.Subject):
    """A method's iteration, got ready."""

    def __init__(self, one: dict, options: argparse.Namespace) -> None:
        self.gpu, self.profile = options.gpu, not options.no_profile and one["method"] != "compile"
        self.native = one["method"] in NATIVE
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        self.engine = build(one["method"], one["preset"], one["batch"], options.device, options.cudnn_benchmark)
        self.wait = self.engine.losses  # which waits for the device
        for _ in range(WARM_UP + 2):
            self.step()
        values = self.wait()
        if any(value != value for value in values.values()):
            raise RuntimeError(f"the losses are {values}")

    def step(self) -> None:
        with contextlib.nullcontext() if self.native else ops.backend("reference"):
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


def main() -> None:
    """Run the command."""
    made, gpu = runner.parser(__doc__)
    made.add_argument("--preset", default="released" if gpu else "small", help="or a file")
    made.add_argument("--batch", type=int, nargs="+", default=[4, 16, 64] if gpu else [8])
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    workers.add_rounds(made, 7, gpu)
    made.add_argument("--cudnn-benchmark", type=int, default=10, metavar="N", help="as hida train's (GPU)")
    made.add_argument("--no-profile", action="store_true", help="leave out where the time goes")
    options = made.parse_args()
    report = runner.Report(options, "train_step", {"preset": options.preset})
    keys = [{"preset": options.preset, "batch": batch} for batch in options.batch]
    workers.measure_methods(Iteration, keys, report, options)


if __name__ == "__main__":
    main()
