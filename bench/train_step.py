"""Time one training iteration, data framing and optimisers included: images a second and memory, method by method.

    python bench/train_step.py --json train_step.json              on a GPU: released, batches 4, 16, 64
    python bench/train_step.py --device cpu                        on a CPU: small, batch 8

    released        the released recipe: float32, two forwards of G, the op's PyTorch reference, NCHW
    bf16            hida train without what follows: reference ops, bf16 autocast
    reference       HIDA_OPS=reference hida train: as bf16, and freed memory kept on a CPU
    compile         as bf16, with both networks through torch.compile; channels_last on a GPU
    ours            hida train: native ops, channels_last, one CUDA graph on a GPU, kept memory on a CPU
    planes          ours in NCHW

Each method has a process of its own. On a CPU they take turns, a few iterations each, so that a busy moment falls on
everybody; on a GPU they run one after the other. The breakdown is of operators, from torch.profiler, without a graph.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import clocks, describe
from workers import Worker, answer, breakdown

from hida import losses
from hida.config import load_preset
from hida.data.augment import planned_batch
from hida.data.dataset import PairTensors
from hida.training.distributed import World
from hida.training.engine import WARM_UP, Engine
from hida.training.state import TrainingState
from hida.tuning import tune

METHODS = ("released", "bf16", "reference", "compile", "ours", "planes")
NATIVE = ("ours", "planes")
PAIRS = 256
KINDS = {
    "convolution": ("convolution", "conv_transpose", "conv2d"),
    "deform": ("deform",),
    "ida": ("hida_ida", "hida::ida", "info_acon", "instance_norm_modulate"),
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


def build(method: str, preset: str, batch: int, device: torch.device) -> Engine:
    """Return the engine of a method, on random pairs."""
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
        state.generator.compile(dynamic=False)
        state.discriminator.compile(dynamic=False)
    if method in ("reference", *NATIVE):
        tune(device)
    elif gpu:
        torch.backends.cudnn.benchmark = True  # everybody gets the best convolutions
    random = torch.Generator().manual_seed(0)
    pictures = (
        torch.randint(0, 256, (PAIRS, channels, 250, 250), dtype=torch.uint8, generator=random)
        for channels in (3, 1, 1)
    )
    pairs = PairTensors(*pictures, torch.arange(PAIRS) % 3, tuple(map(str, range(PAIRS)))).to(device)
    return Engine(state, pairs, graphs=gpu and method in NATIVE)


def work(method: str, preset: str, batch: int, device: torch.device) -> None:
    """Answer each line of stdin, a number of iterations or "profile", with a line of JSON."""
    engine = build(method, preset, batch, device)
    for _ in range(WARM_UP + 2):
        engine.step()
    values = engine.losses()  # waits for the device
    assert all(value == value for value in values.values()), values

    def replies(line: str) -> dict:
        if line == "profile":
            return operators(engine)
        start = time.perf_counter()
        for _ in range(int(line)):
            engine.step()
        engine.losses()
        seconds = (time.perf_counter() - start) / int(line)
        peak = (
            torch.cuda.max_memory_reserved()
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {"seconds": seconds, "memory_mib": peak / 2**20, "graph": engine.graph is not None}

    answer(replies)


def operators(engine: Engine) -> dict[str, float]:
    """Return the ms an iteration spends in each kind of operator, launched one by one."""
    engine.graph, engine.countdown = None, -1
    gpu, count = engine.plan.is_cuda, 3
    found = breakdown(engine.step, KINDS, gpu, count)
    if not gpu:
        start = time.perf_counter()
        for _ in range(count):
            planned_batch(engine.pairs, engine._host_plan().to(engine.plan.device), engine.state.config.augment)
        found["data"] = max(found["data"], (time.perf_counter() - start) * 1e3 / count)
    return found


def worker_of(method: str, batch: int, options: argparse.Namespace) -> Worker:
    arguments = [__file__, "--work", method, "--batch", str(batch)]
    arguments += ["--preset", options.preset, "--device", options.device]
    return Worker(method, arguments, {} if method in NATIVE else {"HIDA_OPS": "reference"})


def compare(methods: list[str], batch: int, options: argparse.Namespace) -> list[dict]:
    """Return a row for each method at one batch size; a method that fails (memory) gives its reason."""
    rows, workers, gpu = [], [], options.device.startswith("cuda")
    groups = [[method] for method in methods] if gpu else [methods]
    for group in groups:
        workers = []
        for method in group:
            try:
                workers.append(worker_of(method, batch, options))
            except RuntimeError as error:
                rows.append({**row_of(method, batch, options), "failed": str(error)})
        for _ in range(options.rounds):
            for worker in list(workers):
                try:
                    worker.rounds.append(worker.ask(options.iterations))
                except RuntimeError as error:
                    rows.append({**row_of(worker.name, batch, options), "failed": str(error)})
                    workers.remove(worker)
        for worker in workers:
            seconds = [r["seconds"] for r in worker.rounds]
            low, median, high = statistics.quantiles(seconds, n=4)
            rows.append(
                {
                    **row_of(worker.name, batch, options),
                    "images_per_second": batch / median,
                    "ms": 1e3 * median,
                    "iqr_ms": 1e3 * (high - low),
                    "memory_mib": worker.rounds[-1]["memory_mib"],
                    "graph": worker.rounds[-1]["graph"],
                    **({"breakdown_ms": worker.ask("profile")} if profiled(worker.name, options) else {}),
                }
            )
            worker.close()
    return rows


def row_of(method: str, batch: int, options: argparse.Namespace) -> dict:
    return {"preset": options.preset, "method": method, "batch": batch}


def profiled(method: str, options: argparse.Namespace) -> bool:
    return method != "compile" and not options.no_profile


def show(rows: list[dict]) -> None:
    base = next((row["ms"] for row in rows if "ms" in row), None)
    for row in rows:
        name = f"{row['batch']:>5}  {row['method']:<10}"
        if "failed" in row:
            print(f"{name}not measured: {row['failed']}")
            continue
        numbers = f"{row['images_per_second']:>9.1f}{row['ms']:>10.1f}{row['iqr_ms']:>8.1f}{row['memory_mib']:>9.0f}"
        print(f"{name}{numbers}{base / row['ms']:>8.2f}×{'  graph' if row['graph'] else ''}")
        if "breakdown_ms" in row:
            parts = "  ".join(f"{kind} {value:.1f}" for kind, value in row["breakdown_ms"].items())
            print(f"{'':>7}ms: {parts}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", help="by default released on a GPU, small on a CPU")
    parser.add_argument("--batch", type=int, nargs="+", help="by default 4 16 64 on a GPU, 8 on a CPU")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, help="in a round; by default 20 on a GPU, 1 on a CPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no batch after them")
    parser.add_argument("--no-profile", action="store_true", help="leave out where the time goes")
    parser.add_argument(
        "--json", type=Path, help="results; batches that are in the file already are not measured again"
    )
    parser.add_argument("--work", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gpu = options.device.startswith("cuda")
    options.preset = options.preset or ("released" if gpu else "small")
    options.batch = options.batch or ([4, 16, 64] if gpu else [8])
    options.iterations = options.iterations or (20 if gpu else 1)
    if options.work:
        work(options.work, options.preset, options.batch[0], torch.device(options.device))
        return
    start, machine = time.perf_counter(), describe(torch.device(options.device)) | {"preset": options.preset}
    print(f"{machine['device']}, {options.preset}, torch {torch.__version__}, native ops {machine['native_ops']}")
    print(
        f"{'batch':>5}  {'method':<10}{'images/s':>9}{'median ms':>10}{'IQR':>8}{'MiB':>9}{'speed-up':>9}", flush=True
    )
    head, rows = {"machines": []}, []
    if options.json and options.json.exists():
        head = json.loads(options.json.read_text())
        rows = head.pop("rows")
    head["machines"].append(machine)
    known = {(row["preset"], row["batch"]) for row in rows}
    todo = [batch for batch in options.batch if (options.preset, batch) not in known]
    for number, batch in enumerate(todo):
        if time.perf_counter() - start > 60 * options.minutes:
            print(f"{len(todo) - number} batches are not measured yet: the same command goes on with them")
            break
        found = compare(options.methods, batch, options)
        show(found)
        rows += found
        machine["nvidia_smi_at_the_end"] = clocks() if gpu else {}
        if options.json:
            options.json.write_text(json.dumps({**head, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
