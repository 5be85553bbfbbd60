"""Time one training iteration, data framing and optimisers included: images a second and memory, method by method.

    python bench/train_step.py --json train_step.json              on a GPU: released, batches 4, 16, 64
    python bench/train_step.py --device cpu                        on a CPU: small, batch 8

    released        the released recipe: float32, two forwards of G, the op's PyTorch reference, NCHW
    bf16            hida train without what follows: reference ops, bf16 autocast
    reference       HIDA_OPS=reference hida train: as bf16, and freed memory kept on a CPU
    compile         as bf16, with both networks through torch.compile; channels_last on a GPU
    ours            hida train: native ops, channels_last, one CUDA graph on a GPU, kept memory on a CPU
    nchw            ours, in NCHW

Each method has a process of its own; but on a GPU ours and nchw share one, since a process takes many seconds to
start there. On a CPU the methods take turns, a few iterations each, so that a busy moment falls on everybody; on a GPU
they run one after the other, and a row is in the file as soon as it is measured. The breakdown is of operators, from
torch.profiler, without a graph.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import clocks, describe
from timing import release
from workers import Worker, answer, breakdown

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
LEAST_ROUNDS = 3
"""of a method whose time is bound: with fewer there is no spread"""
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


def work(options: argparse.Namespace) -> None:
    """Answer lines: {"method", "batch"}, to be got ready; a number of iterations to time; "profile"; "end"."""
    device, engine = torch.device(options.device), None

    def replies(line: str) -> dict:
        nonlocal engine
        if line == "end":
            engine = None
            release()
            return {}
        if line == "profile":
            return operators(engine)
        if line.startswith("{"):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            case = json.loads(line)
            engine = build(case["method"], options.preset, case["batch"], device, options.cudnn_benchmark)
            for _ in range(WARM_UP + 2):
                engine.step()
            values = engine.losses()  # waits for the device
            if any(value != value for value in values.values()):
                raise RuntimeError(f"the losses are {values}")
            return {}
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

    def guarded(line: str) -> dict:
        try:
            return replies(line)
        except Exception as error:  # out of memory, a capture that fails: the reason stands in the row
            return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}

    answer(guarded)


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


class Processes:
    """The methods' processes, each begun when it is asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.gpu = options, options.device.startswith("cuda")
        self.running: dict[str, Worker] = {}

    def _key(self, method: str) -> str:
        return "native" if self.gpu and method in NATIVE else method

    def of(self, method: str) -> Worker:
        """Return the process of a method; RuntimeError where it does not start."""
        key, options = self._key(method), self.options
        if key not in self.running:
            arguments = [__file__, "--work", "--preset", options.preset, "--device", options.device]
            arguments += ["--cudnn-benchmark", str(options.cudnn_benchmark)]
            self.running[key] = Worker(key, arguments, {} if method in NATIVE else {"HIDA_OPS": "reference"})
        return self.running[key]

    def get_ready(self, method: str, batch: int) -> None:
        """Have a method's process build it; RuntimeError where that fails, in a process of its own too."""
        used, case = self._key(method) in self.running, json.dumps({"method": method, "batch": batch})
        try:
            ask(self.of(method), case)
        except RuntimeError:
            self.drop(method)
            if not used:
                raise
            ask(self.of(method), case)

    def done(self, method: str) -> None:
        """Have a method give back its memory. On a CPU its peak is the process's, which therefore ends."""
        if self.gpu and self._key(method) == "native":
            ask(self.running["native"], "end")
        else:
            self.running.pop(self._key(method)).close()

    def drop(self, method: str) -> None:
        """End the process of a method that failed: nobody knows its state."""
        worker = self.running.pop(self._key(method), None)
        if worker is not None:
            worker.process.kill()
            worker.process.wait()

    def end(self) -> None:
        for method in list(self.running):
            self.drop(method)


def ask(worker: Worker, what: str | int) -> dict:
    """Return a process's reply; RuntimeError, with its reason, where it failed."""
    reply = worker.ask(what)
    if "failed" in reply:
        raise RuntimeError(reply["failed"])
    return reply


def compare(methods: list[str], batch: int, processes: Processes, options: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each method at one batch size as soon as it is measured; one that fails gives its reason."""

    def failed(method: str, error: RuntimeError) -> dict:
        processes.drop(method)
        return {**row_of(method, batch, options), "failed": str(error)}

    for group in [[method] for method in methods] if processes.gpu else [methods]:
        rounds: dict[str, list[dict]] = {}
        for method in group:
            try:
                processes.get_ready(method, batch)
                rounds[method] = []
            except RuntimeError as error:
                yield failed(method, error)
        number, begun = 0, time.perf_counter()
        while rounds and goes_on(number, (time.perf_counter() - begun) / len(rounds), options):
            for method in list(rounds):
                try:
                    rounds[method].append(ask(processes.of(method), options.iterations))
                except RuntimeError as error:
                    del rounds[method]
                    yield failed(method, error)
            number += 1
        for method, found in rounds.items():
            low, median, high = statistics.quantiles((one["seconds"] for one in found), n=4)
            row = {
                **row_of(method, batch, options),
                "images_per_second": batch / median,
                "ms": 1e3 * median,
                "iqr_ms": 1e3 * (high - low),
                "rounds": len(found),
                "memory_mib": found[-1]["memory_mib"],
                "graph": found[-1]["graph"],
            }
            try:
                if profiled(method, options):
                    row["breakdown_ms"] = ask(processes.of(method), "profile")
                processes.done(method)
            except RuntimeError as error:  # the times stand all the same
                print(f"{method} after its measurement: {error}", file=sys.stderr)
                processes.drop(method)
            yield row


def goes_on(rounds: int, seconds: float, options: argparse.Namespace) -> bool:
    """Whether another round is to be measured after so many, and so many seconds for each method."""
    if options.seconds is None:
        return rounds < options.rounds
    return rounds < LEAST_ROUNDS or seconds < options.seconds


def row_of(method: str, batch: int, options: argparse.Namespace) -> dict:
    return {"preset": options.preset, "method": method, "batch": batch}


def profiled(method: str, options: argparse.Namespace) -> bool:
    return method != "compile" and not options.no_profile


def show(row: dict, base: float | None) -> None:
    """Print a row; its speed-up is over ``base``, in ms."""
    name = f"{row['batch']:>5}  {row['method']:<10}"
    if "failed" in row:
        print(f"{name}not measured: {row['failed']}", flush=True)
        return
    numbers = f"{row['images_per_second']:>9.1f}{row['ms']:>10.1f}{row['iqr_ms']:>8.1f}{row['memory_mib']:>9.0f}"
    print(f"{name}{numbers}{(base or row['ms']) / row['ms']:>8.2f}×{'  graph' if row['graph'] else ''}", flush=True)
    if "breakdown_ms" in row:
        parts = "  ".join(f"{kind} {value:.1f}" for kind, value in row["breakdown_ms"].items())
        print(f"{'':>7}ms: {parts}", flush=True)


def first_ms(rows: list[dict], row: dict) -> float | None:
    """Return the ms of the first method that was measured as ``row`` was, which the others are compared with."""
    same = (r for r in rows if (r["preset"], r["batch"]) == (row["preset"], row["batch"]))
    return next((r["ms"] for r in same if "ms" in r), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", help="by default released on a GPU, small on a CPU")
    parser.add_argument("--batch", type=int, nargs="+", help="by default 4 16 64 on a GPU, 8 on a CPU")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, help="in a round; by default 20 on a GPU, 1 on a CPU")
    parser.add_argument("--seconds", type=float, help="rounds until a method was timed for so long, not --rounds")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no batch (GPU: no method) after them"
    )
    parser.add_argument("--cudnn-benchmark", type=int, default=10, metavar="N", help="as hida train's (GPU)")
    parser.add_argument("--no-profile", action="store_true", help="leave out where the time goes")
    parser.add_argument("--json", type=Path, help="results; what is in the file already is not measured again")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # be a process of the methods
    options = parser.parse_args()
    gpu = options.device.startswith("cuda")
    options.preset = options.preset or ("released" if gpu else "small")
    options.batch = options.batch or ([4, 16, 64] if gpu else [8])
    options.iterations = options.iterations or (20 if gpu else 1)
    if options.work:
        work(options)
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
    known = {(row["preset"], row["method"], row["batch"]) for row in rows}
    cases = [(b, m) for b in options.batch for m in options.methods if (options.preset, m, b) not in known]
    # On a CPU the methods of a batch take turns.
    groups = [[case] for case in cases] if gpu else [[c for c in cases if c[0] == b] for b in options.batch]
    processes = Processes(options)
    try:
        for number, group in enumerate(filter(None, groups)):
            if time.perf_counter() - start > 60 * options.minutes:
                left = sum(map(len, groups[number:]))
                print(f"{left} methods are not measured yet: the same command goes on with them")
                break
            for row in compare([method for _, method in group], group[0][0], processes, options):
                rows.append(row)
                show(row, first_ms(rows, row))
                machine["nvidia_smi_at_the_end"] = clocks() if gpu else {}
                if options.json:
                    options.json.write_text(json.dumps({**head, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    except KeyboardInterrupt:
        sys.exit("interrupted: what was measured until then stands above, and in the file of --json")
    finally:
        processes.end()


if __name__ == "__main__":
    main()
