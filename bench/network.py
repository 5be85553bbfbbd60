"""Time the decoder and the whole generator, forward, and forward with backward; say where the time goes.

    python bench/network.py --json sketch.json       on a GPU: batches 1, 4, 16, float32 and bfloat16, both layouts
    python bench/network.py --device cpu             float32, batch 1, the generator forward

    reference       the ops' PyTorch reference, operator by operator
    compile         torch.compile of it, as one graph
    native          HIDA's ops
    …+graph         the same in a CUDA graph (GPU)

On a CPU each method has a process of its own, with threads and cached memory to itself, and they take turns, a call
each, so that a busy moment falls on everybody; on a GPU they run one after the other in one process, since their
weights and graphs together might not fit. Everybody gets the same weights, inputs and memory layout; offsets are moved
from zero, where an untrained network has them. bfloat16 is autocast, as in training. "difference" is the largest one of
the method's sketches from those of the reference in float32, in the same process.

Shares are of operators, from torch.profiler, launched one by one: of the reference forward only, where ranges mark the
ops; of "native" by the operators' names. On a CPU, --keep-memory has freed memory kept by mallopt, as hida train does.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import runner, workers
from bench.machine import DTYPES, LAYOUTS, arithmetic
from bench.timing import summary
from hida import ops
from hida.cli.output import make_printable
from hida.config import load_preset
from hida.device import tune
from hida.models import build_generator
from hida.models.generator import Generator
from hida.ops import available

METHODS = ("reference", "compile", "native", "compile+graph", "native+graph")
WARM_UP = 3


class Subject:
    """What a method does at a case: "generator" or "decoder", "fwd" or "fwd+bwd", batch, dtype and layout."""

    def __init__(self, one: dict, options: argparse.Namespace) -> None:
        self.case, method, self.device = one["case"], one["method"], options.device
        self.shown = method == "native" or (method == "reference" and self.case["direction"] == "fwd")
        self.backend = "native" if method.startswith("native") else "reference"
        torch.backends.cudnn.benchmark = True
        if options.keep_memory:
            tune("cpu")
        layout = LAYOUTS[self.case["layout"]]
        self.generator = network(options.preset).to(self.device, memory_format=layout)
        torch.manual_seed(0)
        batch = self.case["batch"]
        photo, depth = (
            torch.rand(batch, channels, 256, 256).to(self.device, memory_format=layout) for channels in (3, 1)
        )
        self.inputs = photo * 2 - 1, depth, (torch.arange(batch) % self.generator.config.styles).to(self.device)
        with torch.no_grad(), ops.backend("reference"), arithmetic("float32"):
            self.right = self.generator(*self.inputs)[0]
            encoded = self.generator.encode(*self.inputs[:2])
        self.encoded = encoded._replace(features=[f.detach().requires_grad_() for f in encoded.features])
        self.function = self._decoder if self.case["piece"] == "decoder" else self._generator
        if method.startswith("compile"):
            torch._dynamo.reset()
            self.function = torch.compile(self.function, fullgraph=True, dynamic=False)
        self._step = self._infer
        self.upstream = [torch.randn_like(y) for y in self.step()]
        self._step = self._train if self.case["direction"] == "fwd+bwd" else self._infer
        for _ in range(WARM_UP):
            self.step()
        if method.endswith("+graph"):
            self._capture()

    def step(self) -> list[Tensor]:
        with arithmetic(self.case["dtype"]), ops.backend(self.backend):
            return self._step()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def told(self) -> dict[str, float | None]:
        """Return the largest difference of the sketches; None where none are drawn."""
        if self.case["piece"] == "decoder" or self.case["direction"] != "fwd":
            return {"difference": None}
        return {"difference": float((self.step()[0].float() - self.right).abs().max())}

    def breakdown(self) -> dict[str, dict[str, float]]:
        """Return the ms of a step in each kind of operator."""
        if not self.shown:
            return {}
        with ranges() if self.backend == "reference" else contextlib.nullcontext():
            return {"shares_ms": workers.breakdown(self.step, self.device.type == "cuda")}

    @staticmethod
    def times(one: dict, seconds: list[float]) -> dict[str, float]:
        median, spread = summary(seconds)
        return {"median_ms": 1e3 * median, "iqr_ms": 1e3 * spread}

    def _decoder(self) -> tuple[Tensor, ...]:
        return (self.generator.decode(self.encoded, self.inputs[2]),)

    def _generator(self) -> tuple[Tensor, ...]:
        return self.generator(*self.inputs)

    def _forward(self) -> tuple[Tensor, ...]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.case["dtype"] == "bfloat16"):
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


@functools.cache
def network(preset: str) -> Generator:
    """Return a generator with random weights, its offsets included."""
    torch.manual_seed(0)
    generator = build_generator(load_preset(preset).generator).eval()
    for name, parameter in generator.named_parameters():
        if "offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return generator


@contextlib.contextmanager
def ranges() -> Iterator[None]:
    """Have the ops' calls show in the profile, where they are many operators."""

    def marked(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given, **named) -> Tensor:
            with torch.profiler.record_function(f"op {name}:"):
                return function(*given, **named)

        return call

    with contextlib.ExitStack() as stack:
        for name in ("ida", "info_acon", "instance_norm_modulate", "deform_conv2d"):
            function = getattr(ops, name)
            for module in [m for path, m in sys.modules.items() if path.startswith("hida.nn.")]:
                if getattr(module, name, None) is function:
                    stack.enter_context(mock.patch.object(module, name, marked(name, function)))
        yield


def main() -> None:
    """Run the command."""
    made, gpu = runner.parser(__doc__)
    both = {  # on a GPU, on a CPU
        "batch": ([1, 4, 16], [1], None),
        "dtype": (["bfloat16", "float32"], ["float32"], list(DTYPES)[:3]),
        "layout": (["nhwc", "nchw"], ["nchw"], list(LAYOUTS)),
        "piece": (["generator", "decoder"], ["generator"], ["generator", "decoder"]),
        "direction": (["fwd", "fwd+bwd"], ["fwd"], ["fwd", "fwd+bwd"]),
    }
    for name, (large, small, choices) in both.items():
        kind = str if choices else int
        made.add_argument(f"--{name}", nargs="+", type=kind, choices=choices, default=large if gpu else small)
    methods = [m for m in METHODS if gpu or not m.endswith("+graph")]
    made.add_argument("--preset", default="released", help="or a file")
    made.add_argument("--methods", nargs="+", choices=methods, default=methods)
    workers.add_rounds(made, 9, gpu)
    made.add_argument("--keep-memory", action="store_true", help="CPU: as hida train has it")
    options = made.parse_args()
    if not available()[options.device.type]:
        print("there are no native ops for this device: only the others are measured")
        options.methods = [m for m in options.methods if not m.startswith("native")]
    kinds = itertools.product(options.batch, options.dtype, options.layout, options.piece, options.direction)
    keys = [
        {"case": {"piece": piece, "direction": direction, "batch": batch, "dtype": dtype, "layout": layout}}
        for batch, dtype, layout, piece, direction in kinds
    ]
    workers.measure_methods(Subject, keys, runner.Report(options, "sketch", {"preset": options.preset}), options)


if __name__ == "__main__":
    make_printable()
    main()
