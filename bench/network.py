"""Time the decoder and the whole generator, forward, and forward with backward; say where the time goes.

    python bench/network.py --json sketch.json       on a GPU: batches 1, 4, 16, float32 and bfloat16, both layouts
    python bench/network.py --device cpu             float32, batch 1, the generator forward

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
import itertools
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import precompile, runner
from bench.machine import DTYPES, LAYOUTS, arithmetic
from bench.timing import summary
from bench.workers import Processes, Worker, answer_steps, breakdown, measure_methods
from hida import ops
from hida.config import load_preset
from hida.device import tune
from hida.models import build_generator
from hida.models.generator import Generator
from hida.ops import available

METHODS = ("reference", "compile", "native", "compile+graph", "native+graph")
KINDS = {  # the first that fits: deform_conv2d is no conv2d
    "deform": ("deform_conv2d",),
    "ida": ("hida::ida", "op ida:", "instance_norm_modulate"),
    "info_acon": ("info_acon",),
    "convolution": ("conv2d", "convolution", "conv_transpose"),
}
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """A piece of the network, "generator" or "decoder", and "fwd" or "fwd+bwd"."""

    piece: str
    direction: str
    batch: int
    dtype: str
    layout: str


class Subject:
    """What a method does at a case."""

    def __init__(self, generator: Generator, case: Case, method: str, device: torch.device) -> None:
        self.case, self.device = case, device
        layout = LAYOUTS[case.layout]
        self.generator = generator.to(device, memory_format=layout)
        torch.manual_seed(0)
        shapes = (case.batch, 3, 256, 256), (case.batch, 1, 256, 256)
        photo, depth = (torch.rand(s).to(device, memory_format=layout) for s in shapes)
        self.inputs = photo * 2 - 1, depth, (torch.arange(case.batch) % generator.config.styles).to(device)
        with torch.no_grad(), ops.backend("reference"), arithmetic("float32"):
            self.right = generator(*self.inputs)[0]
            encoded = generator.encode(*self.inputs[:2])
        self.encoded = encoded._replace(features=[f.detach().requires_grad_() for f in encoded.features])
        self.function = self._decoder if case.piece == "decoder" else self._generator
        if method.startswith("compile"):
            torch._dynamo.reset()
            self.function = torch.compile(self.function, fullgraph=True, dynamic=False)
        self.upstream = [torch.randn_like(y) for y in self._infer()]
        self._step = self._train if case.direction == "fwd+bwd" else self._infer
        for _ in range(WARM_UP):
            self.step()
        if method.endswith("+graph"):
            self._capture()

    def step(self) -> list[Tensor]:
        with arithmetic(self.case.dtype):
            return self._step()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def told(self) -> dict:
        return {}

    def difference(self) -> dict[str, float | None]:
        """Return the largest difference of the sketches; None where none are drawn."""
        if self.case.piece == "decoder" or self.case.direction != "fwd":
            return {"difference": None}
        return {"difference": float((self.step()[0].float() - self.right).abs().max())}

    def shares(self) -> dict[str, dict[str, float]]:
        """Return the ms of a step in each kind of operator."""
        return {"shares_ms": breakdown(self.step, KINDS, self.device.type == "cuda")}

    def _decoder(self) -> tuple[Tensor, ...]:
        return (self.generator.decode(self.encoded, self.inputs[2]),)

    def _generator(self) -> tuple[Tensor, ...]:
        return self.generator(*self.inputs)

    def _forward(self) -> tuple[Tensor, ...]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.dtype == "bfloat16"):
            return self.function()

    def _infer(self) -> list[Tensor]:
        with torch.no_grad():
            return list(self._forward())

    def _train(self) -> list[Tensor]:
        needed = [p for p in self.generator.parameters() if p.requires_grad]
        return list(torch.autograd.grad(self._forward(), needed, self.upstream, allow_unused=True))

    def _capture(self) -> None:
        """Make a step the replay of a CUDA graph."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            captured = self.step()
        self._step = lambda: (graph.replay(), captured)[1]


def network(preset: str) -> Generator:
    """Return a generator with random weights, its offsets included."""
    torch.manual_seed(0)
    generator = build_generator(load_preset(preset).generator).eval()
    for name, parameter in generator.named_parameters():
        if "offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return generator


def work(options: argparse.Namespace) -> None:
    """Be the process of a method."""
    method, generator = options.work, network(options.preset)
    if options.gpu:
        torch.backends.cudnn.benchmark = True
    elif options.keep_memory:
        tune("cpu")
    if method == "reference":
        mark_ranges()

    def prepare(of: dict) -> Subject:
        case = Case(**of["case"])
        with arithmetic(case.dtype):
            return Subject(generator, case, method, options.device)

    answer_steps(prepare)


def mark_ranges() -> None:
    """Have the ops' calls show in the profile, where they are many operators."""

    def marked(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given, **named) -> Tensor:
            with torch.profiler.record_function(f"op {name}:"):
                return function(*given, **named)

        return call

    for name in ("ida", "info_acon", "instance_norm_modulate", "deform_conv2d"):
        function = getattr(ops, name)
        for module in [m for path, m in sys.modules.items() if path.startswith("hida.nn.")]:
            if getattr(module, name, None) is function:
                setattr(module, name, marked(name, function))


def main() -> None:
    """Run the command."""
    made = runner.parser(__doc__)
    made.add_argument("--preset", default="released", help="or a file")
    runner.by_device(made, "batch", [1, 4, 16], [1], type=int)
    runner.by_device(made, "dtype", ["bfloat16", "float32"], ["float32"], choices=list(DTYPES)[:3])
    runner.by_device(made, "layout", ["nhwc", "nchw"], ["nchw"], choices=list(LAYOUTS))
    runner.by_device(made, "piece", ["generator", "decoder"], ["generator"], choices=["generator", "decoder"])
    runner.by_device(made, "direction", ["fwd", "fwd+bwd"], ["fwd"], choices=["fwd", "fwd+bwd"])
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    runner.add_rounds(made, 9)
    made.add_argument("--keep-memory", action="store_true", help="CPU: as hida train has it")
    runner.compiles(made)
    options = runner.parse(made)
    if options.work:
        work(options)
        return
    kinds = itertools.product(options.batch, options.dtype, options.layout, options.piece, options.direction)
    cases = [Case(piece, direction, batch, dtype, layout) for batch, dtype, layout, piece, direction in kinds]
    options.methods = [m for m in options.methods if options.gpu or not m.endswith("+graph")]
    if not available()[options.device.type]:
        print("there are no native ops for this device: only the others are measured")
        options.methods = [m for m in options.methods if not m.startswith("native")]
    if options.ahead:
        known = [row["case"] for row in runner.rows_of(options.json)]
        generator, todo = network(options.preset), [case for case in cases if asdict(case) not in known]

        def compile_one(case: Case) -> None:
            Subject(generator, case, "compile", options.device)

        with ops.backend("reference"):
            precompile.compile_share(todo, compile_one, *options.ahead)
        return
    if any(m.startswith("compile") for m in options.methods):
        precompile.start(options)
    report = runner.Report(options, "sketch", {"preset": options.preset})

    def begin(method: str) -> Worker:
        return Worker(method, HIDA_OPS="native" if method.startswith("native") else "reference")

    def questions(one: dict) -> list[str]:
        forward = one["case"]["direction"] == "fwd"
        return ["difference", "shares"][: 1 + (one["method"] == "native" or (one["method"] == "reference" and forward))]

    def finish(one: dict, seconds: list[float]) -> dict[str, float]:
        median, spread = summary(seconds)
        return {"median_ms": 1e3 * median, "iqr_ms": 1e3 * spread}

    keys = [{"case": asdict(case)} for case in cases]
    measure_methods(keys, Processes(begin), report, options, questions, finish)


if __name__ == "__main__":
    main()
