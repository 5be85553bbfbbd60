"""Time the decoder and the whole generator, forward, and forward with backward; say where the time goes.

    python bench/sketch.py --json sketch.json        on a GPU: batches 1, 4, 16, float32 and bfloat16, both layouts
    python bench/sketch.py --device cpu              float32, batch 1, the generator forward

    reference       the ops' PyTorch reference, operator by operator
    compile         torch.compile of it, as one graph
    native          HIDA's ops
    …+graph         the same in a CUDA graph (GPU)

Each method has a process of its own, with threads and cached memory to itself. On a CPU they take turns, a call each,
so that a busy moment falls on everybody; on a GPU they run one after the other, since their weights and graphs together
might not fit. Everybody gets the same weights, inputs and memory layout; offsets are moved from zero,
where an untrained network has them. bfloat16 is autocast, as in training. "difference" is the largest one of the
method's sketches from those of the reference in float32, in the same process.

Shares are of operators, from torch.profiler, launched one by one: of the reference forward only, where ranges mark the
ops; of "native" by the operators' names. On a CPU, --keep-memory has freed memory kept by mallopt, as hida train does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ahead import start_ahead
from machine import DTYPES, arithmetic, clocks, describe
from timing import release, summary
from workers import Worker, answer, breakdown

from hida import ops
from hida.config import load_preset
from hida.models import build_generator
from hida.models.generator import Generator
from hida.nn import ablation, adaptation, dog, meta_acon
from hida.ops import available
from hida.tuning import tune

METHODS = ("reference", "compile", "native", "compile+graph", "native+graph")
KINDS = {  # the first that fits: deform_conv2d is no conv2d
    "deform": ("deform_conv2d",),
    "ida": ("hida::ida", "op ida:", "instance_norm_modulate"),
    "info_acon": ("info_acon",),
    "convolution": ("conv2d", "convolution", "conv_transpose"),
}
PIECES = ("generator", "decoder")
WARM_UP = 3


class Subject:
    """A piece of the network at a case, and how a method runs it."""

    def __init__(self, generator: Generator, case: dict, method: str, device: torch.device) -> None:
        self.case, self.device = case, device
        layout = torch.channels_last if case["layout"] == "nhwc" else torch.contiguous_format
        self.generator = generator.to(device, memory_format=layout)
        torch.manual_seed(0)
        shapes = (case["batch"], 3, 256, 256), (case["batch"], 1, 256, 256)
        photo, depth = (torch.rand(s).to(device, memory_format=layout) for s in shapes)
        self.inputs = photo * 2 - 1, depth, (torch.arange(case["batch"]) % generator.config.styles).to(device)
        with torch.no_grad(), ops.backend("reference"), arithmetic("float32"):
            self.right = generator(*self.inputs)[0]
            self.encoded = generator.encode(*self.inputs[:2])
        self.encoded = self.encoded._replace(features=[f.detach().requires_grad_() for f in self.encoded.features])
        self.function = self._decoder if case["piece"] == "decoder" else self._generator
        if method.startswith("compile"):
            torch._dynamo.reset()
            self.function = torch.compile(self.function, fullgraph=True, dynamic=False)
        self.upstream = [torch.randn_like(y) for y in self._infer()]
        self.step = self._train if case["direction"] == "fwd+bwd" else self._infer
        for _ in range(WARM_UP):
            self.step()

    def _decoder(self) -> tuple[Tensor, ...]:
        return (self.generator.decode(self.encoded, self.inputs[2]),)

    def _generator(self) -> tuple[Tensor, ...]:
        return self.generator(*self.inputs)

    def _forward(self) -> tuple[Tensor, ...]:
        half = self.case["dtype"] == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return self.function()

    def _infer(self) -> list[Tensor]:
        with torch.no_grad():
            return list(self._forward())

    def _train(self) -> list[Tensor]:
        results = self._forward()
        needed = [p for p in self.generator.parameters() if p.requires_grad]
        return list(torch.autograd.grad(results, needed, self.upstream, allow_unused=True))

    def capture(self) -> None:
        """Make a step the replay of a CUDA graph."""
        stream, graph, step = torch.cuda.Stream(), torch.cuda.CUDAGraph(), self.step
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
        self.step = lambda: (graph.replay(), captured)[1]

    def difference(self) -> float | None:
        """Return the largest difference of the sketches; None where none are drawn."""
        if self.case["piece"] == "decoder" or self.case["direction"] != "fwd":
            return None
        return float((self.step()[0].float() - self.right).abs().max())


def network(preset: str) -> Generator:
    torch.manual_seed(0)
    generator = build_generator(load_preset(preset).generator).eval()
    for name, parameter in generator.named_parameters():
        if "offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return generator


def work(method: str, options: argparse.Namespace) -> None:
    """Answer lines: a case as JSON, to be got ready; then "difference", "shares", or how many steps to time; "end"."""
    device, generator, subject = torch.device(options.device), network(options.preset), None
    gpu = device.type == "cuda"
    if gpu:
        torch.backends.cudnn.benchmark = True
    elif options.keep_memory:
        tune(device)
    if method == "reference":
        mark_ranges()
    inside = contextlib.ExitStack()  # the arithmetic of the case at hand

    def replies(line: str) -> dict:
        nonlocal subject
        if line.startswith("{"):
            case = json.loads(line)
            inside.enter_context(arithmetic(case["dtype"]))
            try:
                subject = Subject(generator, case, method, device)
                if method.endswith("+graph"):
                    subject.capture()
            except Exception as error:
                return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}
            return {}
        if line == "end":
            subject = None
            inside.close()
            release()
            return {}
        if line == "difference":
            return {"difference": subject.difference()}
        if line == "shares":
            return breakdown(subject.step, KINDS, gpu)
        _wait(gpu)
        start = time.perf_counter()
        for _ in range(int(line)):
            subject.step()
        _wait(gpu)
        return {"seconds": (time.perf_counter() - start) / int(line)}

    answer(replies)


def _wait(gpu: bool) -> None:
    if gpu:
        torch.cuda.synchronize()


def compile_ahead(cases: list[dict], options: argparse.Namespace) -> None:
    """Compile what the measurement will ask for; what fails will say so there."""
    generator = network(options.preset)
    for case in cases:
        with contextlib.suppress(Exception), arithmetic(case["dtype"]), ops.backend("reference"):
            Subject(generator, case, "compile", torch.device(options.device))
        release()


def mark_ranges() -> None:
    """Have the ops' calls show in the profile, where they are many operators."""

    def marked(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given, **named) -> Tensor:
            with torch.profiler.record_function(f"op {name}:"):
                return function(*given, **named)

        return call

    for module, name in (
        (adaptation, "ida"),
        (meta_acon, "info_acon"),
        (ablation, "info_acon"),
        (ablation, "instance_norm_modulate"),
        (dog, "deform_conv2d"),
    ):
        setattr(module, name, marked(name, getattr(module, name)))


def worker_of(method: str, options: argparse.Namespace) -> Worker:
    arguments = [__file__, "--work", method, "--device", options.device, "--preset", options.preset]
    arguments += ["--keep-memory"] if options.keep_memory else []
    return Worker(method, arguments, {"HIDA_OPS": "native" if method.startswith("native") else "reference"})


def compare(case: dict, workers: list[Worker], options: argparse.Namespace) -> list[dict]:
    """Return a row for each method at one case; a method that fails gives its reason."""
    rows = []
    # On a CPU all are ready and take turns; on a GPU a method gets ready when the one before is through.
    for group in [[w] for w in workers] if options.device.startswith("cuda") else [workers]:
        ready: dict[str, tuple[Worker, list[float]]] = {}
        for worker in group:
            reply = worker.ask(json.dumps(case))
            if "failed" in reply:
                rows.append({"case": case, "method": worker.name, **reply})
            else:
                ready[worker.name] = worker, []
        for _ in range(options.rounds):
            for worker, seconds in ready.values():
                seconds.append(worker.ask(options.iterations)["seconds"])
        for name, (worker, seconds) in ready.items():
            row = {"case": case, "method": name, **worker.ask("difference")}
            row["median_ms"], row["iqr_ms"] = (1e3 * value for value in summary(seconds))
            if name == "native" or (name == "reference" and case["direction"] == "fwd"):
                row["shares_ms"] = worker.ask("shares")
            rows.append(row)
        for worker in group:
            worker.ask("end")
    return rows


def show(rows: list[dict]) -> None:
    base = next((row["median_ms"] for row in rows if row["method"] == "reference" and "median_ms" in row), None)
    for row in rows:
        case = row["case"]
        name = f"{case['piece']} {case['direction']} B{case['batch']} {case['dtype']} {case['layout']}"
        if "failed" in row:
            tqdm.write(f"{name:<42}{row['method']:<15}not measured: {row['failed']}")
            continue
        words = f"{name:<42}{row['method']:<15}{row['median_ms']:>10.3f}{row['iqr_ms']:>9.3f}"
        words += f"{base / row['median_ms']:>8.2f}×" if base else f"{'':>9}"
        tqdm.write(words + (f"{row['difference']:>12.1e}" if row["difference"] is not None else ""))
        if "shares_ms" in row:
            whole = sum(row["shares_ms"].values()) or 1.0
            shares = (f"{kind} {value:.2f} ms ({value / whole:.0%})" for kind, value in row["shares_ms"].items())
            tqdm.write(f"{'':>4}{', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="released", help="or a file")
    parser.add_argument("--batch", type=int, nargs="+", help="by default 1 4 16 on a GPU, 1 on a CPU")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES)[:3], help="float32 bfloat16 on a GPU")
    parser.add_argument("--layout", nargs="+", choices=["nchw", "nhwc"], help="by default both on a GPU, nchw on a CPU")
    parser.add_argument("--piece", nargs="+", choices=PIECES)
    parser.add_argument("--direction", nargs="+", choices=["fwd", "fwd+bwd"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--iterations", type=int, help="in a round; by default 20 on a GPU, 1 on a CPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no case after them")
    parser.add_argument("--keep-memory", action="store_true", help="CPU: as hida train has it")
    parser.add_argument("--json", type=Path, help="results; cases that are in the file already are not measured again")
    parser.add_argument("--jobs", type=int, default=min(12, (os.cpu_count() or 2) - 2), help="compile ahead (GPU)")
    parser.add_argument("--work", choices=METHODS, help=argparse.SUPPRESS)  # be the process of this method
    parser.add_argument(
        "--ahead", type=int, nargs=2, help=argparse.SUPPRESS
    )  # compile every n-th case from the k-th on
    options = parser.parse_args()
    gpu = options.device.startswith("cuda")
    options.batch = options.batch or ([1, 4, 16] if gpu else [1])
    options.dtype = options.dtype or (["bfloat16", "float32"] if gpu else ["float32"])
    options.layout = options.layout or (["nhwc", "nchw"] if gpu else ["nchw"])
    options.piece = options.piece or list(PIECES if gpu else PIECES[:1])
    options.direction = options.direction or (["fwd", "fwd+bwd"] if gpu else ["fwd"])
    options.iterations = options.iterations or (20 if gpu else 1)
    if options.work:
        work(options.work, options)
        return
    start, machine = time.perf_counter(), describe(torch.device(options.device)) | {"preset": options.preset}
    if not available()["cuda" if gpu else "cpu"]:
        print("there are no native ops for this device: only the others are measured")
        options.methods = [m for m in options.methods if not m.startswith("native")]
    head: dict = {"title": f"sketch: {machine['device']}, {options.preset}, torch {torch.__version__}", "machines": []}
    rows: list[dict] = []
    if options.json and options.json.exists():
        head = json.loads(options.json.read_text())
        rows = head.pop("rows")
    head["machines"].append(machine)
    cases = [
        {"piece": p, "direction": d, "batch": b, "dtype": t, "layout": layout}
        for b in options.batch
        for t in options.dtype
        for layout in options.layout
        for p in options.piece
        for d in options.direction
    ]
    todo = [case for case in cases if all(row["case"] != case for row in rows)]
    if options.ahead:
        compile_ahead(todo[options.ahead[0] :: options.ahead[1]], options)
        return
    if gpu and options.jobs > 1 and any(m.startswith("compile") for m in options.methods):
        start_ahead(sys.argv, options.jobs, 60 * min(4.0, 0.5 * options.minutes))
    print(head["title"])
    print(f"{'case':<42}{'method':<15}{'median ms':>10}{'IQR':>9}{'':>9}{'difference':>12}", flush=True)
    workers = [worker_of(m, options) for m in options.methods if gpu or not m.endswith("+graph")]
    for number, case in enumerate(tqdm(todo, unit="case", disable=None)):
        if time.perf_counter() - start > 60 * options.minutes:
            left = len(todo) - number
            print(f"{left} of {len(cases)} cases are not measured yet: the same command goes on with them")
            break
        found = compare(case, workers, options)
        show(found)
        rows += found
        machine["nvidia_smi_at_the_end"] = clocks() if gpu else {}
        if options.json:
            options.json.write_text(json.dumps({**head, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
