"""Count the kernels of a training iteration without a GPU: casts, changes of layout, convolutions, the rest.

    python bench/trace.py                                        small and released, NHWC and NCHW, batch 16, bf16
    python bench/trace.py --presets small --layouts nhwc --list  which operators and shapes, the most frequent first

The iteration of ``hida train`` runs on tensors that have a shape, strides, a dtype and the device cuda, but no memory
(FakeTensorMode), with the CUDA autocast; every operator that reaches the device is counted.

    cast            the dtype changes (_to_copy, copy_), whatever the layout does
    layout          same dtype, other strides (clone, copy_, _to_copy)
    inside          the copies that an operator makes of an operand whose layout differs: a convolution follows its
                    input's or its weight's NHWC, deform_conv2d wants a contiguous weight
    product         one a convolution (of matrices: its bias included; in batches, not), one for each gradient; its
                    bias: one elementwise, one reduction
    hida            operators of HIDA, each counted as one, though some launch two or three kernels; the built library
                    must have all of them
    multi-tensor    optimisers and _foreach_ operators, by the limits of PyTorch's multi_tensor_apply (4 KB a launch)
    reduction, elementwise (with copies of the same layout, fills, indexing), joined (cat), resized

It does not see what cuDNN launches inside one call (in NCHW its conversions to NHWC and back; splitting and adding up),
the sums of gradients inside a convolution, memory set by the driver, how long anything takes. An operator of PyTorch
counts as one kernel, those that fill their result with zeros first as two.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.recipes import paper_losses
from hida.cli.run import run_command
from hida.config import Config
from hida.data.dataset import PairTensors
from hida.errors import HidaError
from hida.ops import library
from hida.training.distributed import World
from hida.training.engine import Engine
from hida.training.state import TrainingState

KINDS = ("cast", "layout", "inside", "product", "hida", "multi-tensor", "reduction", "elementwise", "joined", "resized")
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "detach"}
FREE |= {"_record_function_enter_new", "_record_function_exit", "_unsafe_view"}
TWO = {"slice_backward", "select_backward", "upsample_bilinear2d_backward"}
"""which fill with zeros first"""
REDUCTIONS = {"sum", "mean", "native_batch_norm", "native_batch_norm_backward", "linalg_vector_norm", "_foreach_norm"}
CHUNK, BLOCKS = 65536, 320
TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""multi_tensor_apply's: elements of a block; blocks and, by the number of lists, tensors of a launch"""
_KNOWN = {
    Tensor.device.__get__: lambda device: device,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_meta.__get__: lambda device: device.type == "meta",  # type: ignore[attr-defined]
}


class Launches(TorchDispatchMode):
    """Count what would be launched, by kind; and let autograd and autocast work where there is no GPU.

    Autograd asks each result for its device when it notes it, and would look for that GPU's stream: it is told meta.
    Autocast asks the arguments, and is told the truth.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.found: collections.Counter[tuple[str, str]] = collections.Counter()
        self.casts, self.fresh = False, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            (asked,) = args
            return asked.fake_device if self.casts and id(asked) not in self.fresh else torch.device("meta")
        name = func._schema.name.split("::")[1]
        if name == "_local_scalar_dense":  # an optimiser looks at its learning rate
            return 1.0
        if kwargs.get("device") == torch.device("meta"):  # autograd makes zeros where it was told
            kwargs["device"] = torch.device("cuda", 0)
        # Fused optimisers have no implementation without memory, and no result.
        result = None if name.startswith("_fused") else func(*args, **kwargs)
        if name in ("convolution", "convolution_backward"):
            result = _in_layout(result, _layout(*args[name == "convolution_backward" :][:2]))
        self.fresh |= {id(t) for t in tree_leaves(result) if isinstance(t, Tensor)}
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not views and name not in FREE:
            self._count(func, name.rstrip("_") if name != "_" else name, args, kwargs, result)
        return result

    def note(self, kind: str, what: str, count: int = 1) -> None:
        self.kinds[kind] += count
        self.found[kind, what] += count

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if name in ("_to_copy", "clone", "copy"):
            source, target = (args[1], args[0]) if name == "copy" else (args[0], result)
            self.note(_copied(source, target), f"{name} {_told(source)} → {_told(target)}")
        elif name in ("convolution", "convolution_backward"):
            self._count_convolution(name, args)
        elif func.namespace == "hida":
            _require_kernel(name)
            self.note("hida", " ".join([name, *(_told(t) for t in args if isinstance(t, Tensor) and t.dim() == 4)]))
            if name.startswith("deform_conv2d"):
                weight = args[3 if name.endswith("backward") else 2]
                self.note("inside", f"{name} weight {_told(weight)}", not weight.is_contiguous())
        elif name.startswith(("_foreach", "_fused")):
            self.note("multi-tensor", name, _multi_tensor(args))
        elif name in ("mm", "addmm"):
            self.note("product", f"{name} {' '.join(_told(t) for t in args)}")
            # cuBLASLt adds a bias as it goes, unless a matrix is a vector.
            self.note("elementwise", f"bias of {name}", name == "addmm" and 1 in (*args[1].shape, *args[2].shape))
        elif name in ("bmm", "baddbmm"):
            self.note("product", f"{name} {' '.join(_told(t) for t in args)}")
            self.note("elementwise", f"bias of {name}", name == "baddbmm")  # copied to where the product is added to it
        elif name in ("cat", "stack"):
            self.note("joined", f"cat {' '.join(map(_told, args[0]))}")
        else:
            kind = "reduction" if name in REDUCTIONS else "resized" if "upsample" in name else "elementwise"
            self.note(kind, " ".join([name, *(_told(t) for t in args if isinstance(t, Tensor))]), 1 + (name in TWO))

    def _count_convolution(self, name: str, args: Any) -> None:
        grad, (x, weight, bias) = (None, args[:3]) if name == "convolution" else (args[0], args[1:4])
        layout = _layout(x, weight)
        for what, operand in (("x", x), ("weight", weight), ("grad", grad)):
            if operand is not None and not operand.is_contiguous(memory_format=layout):
                self.note("inside", f"{name} {what} {_told(operand)}, x {_told(x)}, weight {_told(weight)}")
        what = f"{name} x {_told(x)}, weight {_told(weight)}"
        if grad is None:
            self.note("product", what)
            self.note("elementwise", f"bias of {what}", bias is not None)
        else:
            needed = args[-1]
            self.note("product", what, sum(needed[:2]))
            self.note("reduction", f"bias of {what}", int(needed[2]))


class _Memoryless(FakeTensorMode):
    """A mode that a copied tensor shares with the first."""

    def __deepcopy__(self, memo: Any) -> _Memoryless:
        return self


class _Python(TorchFunctionMode):
    """Tell Python the device cuda; begin anew with the arguments of each call."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KNOWN and isinstance(args[0], FakeTensor):
            return _KNOWN[func](args[0].fake_device)
        if getattr(func, "__name__", "") != "__get__":  # an attribute
            self.launches.fresh.clear()
        self.launches.casts = torch.is_autocast_enabled("cuda")  # which autocast itself turns off while it casts
        return func(*args, **(kwargs or {}))


def _require_kernel(name: str) -> None:
    """Refuse to count an operator of HIDA as a kernel that the library does not have.

    Raises:
        HidaError: if the library is older than the sources.
    """
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"hida::{name}", "CUDA"):
        raise HidaError(
            f"{library.CUDA_PATH.name} has no {name}, so it is older than the sources; build it again "
            "(HIDA_BUILD_CUDA=1 python setup.py build_ext --inplace)."
        )


def _told(t: Tensor) -> str:
    layout = " nhwc" if _is_nhwc(t) else "" if t.dim() != 4 or t.is_contiguous() else f" {tuple(t.stride())}"
    return f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}{layout}"


def _is_nhwc(t: Tensor) -> bool:
    return suggest_memory_format(t) == torch.channels_last


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the layout of a convolution by cuDNN (cudnn_conv_suggest_memory_format)."""
    return torch.channels_last if _is_nhwc(x) or _is_nhwc(weight) else torch.contiguous_format


def _in_layout(result: Any, layout: torch.memory_format) -> Any:
    """Return a convolution's results as CUDA's would be; those without memory take a CPU's layout."""
    if isinstance(result, tuple):
        return tuple(_in_layout(one, layout) for one in result)
    if result is None or result.dim() != 4:
        return result
    return torch.empty(result.shape, dtype=result.dtype, device=result.fake_device, memory_format=layout)


def _copied(source: Tensor, target: Tensor) -> str:
    if source.dtype != target.dtype:
        return "cast"
    # Strides of a dimension of size one mean nothing.
    strides = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (source, target)]
    return "elementwise" if source.shape != target.shape or strides[0] == strides[1] else "layout"


def _multi_tensor(args: Any) -> int:
    """Return the launches of an operator on lists of tensors."""
    lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    lists = [a for a in lists if a[0].dim() or all(t.dim() == 0 for t in lists[0])]  # not the counters of a fused step
    tensors, blocks, launches = 0, 0, 0
    for tensor in lists[0]:
        tensors += 1
        for left in reversed(range(max(1, -(-tensor.numel() // CHUNK)))):
            blocks += 1
            if blocks == BLOCKS:
                launches, blocks, tensors = launches + 1, 0, int(left > 0)
        if tensors == TENSORS[len(lists)] and blocks:
            launches, blocks, tensors = launches + 1, 0, 0
    return launches + bool(blocks)


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Convert a module as nn.Module does, which cannot exchange tensors without memory: by new parameters."""
    for child in module.children():
        _apply(child, function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


@contextlib.contextmanager
def fake_gpu() -> Iterator[Launches]:
    """Let what is created on cuda have no memory, and count what is launched."""
    launches = Launches()
    with contextlib.ExitStack() as stack:
        for context in (
            warnings.catch_warnings(),
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch("torch.cuda.is_bf16_supported", return_value=True),
            mock.patch.object(nn.Module, "_apply", _apply),
            _Memoryless(),
            launches,
            _Python(launches),
        ):
            stack.enter_context(context)
        warnings.filterwarnings("ignore", "Accessing the data pointer")  # copy.deepcopy does
        yield launches


def trace(config: Config, batch: int, nhwc: bool, precision: str = "bf16") -> Launches:
    """Count one iteration of ``hida train``, the second, in which the optimisers have their states."""
    train = dataclasses.replace(config.train, batch=batch, precision=precision, channels_last=nhwc, compile=False)
    device = torch.device("cuda", 0)
    with fake_gpu() as launches:
        state = TrainingState(dataclasses.replace(config, train=train), World(0, 1, device))
        pictures = (torch.zeros(batch, channels, 250, 250, dtype=torch.uint8, device=device) for channels in (3, 1, 1))
        pairs = PairTensors(*pictures, torch.zeros(batch, dtype=torch.int64, device=device), ("",) * batch)
        engine = Engine(state, pairs, graphs=False)
        # Autograd notes a parameter's device when it first meets it.
        leaves = [p for net in (state.generator, state.discriminator) for p in net.parameters()]
        leaves += [half for weights in state.weights.values() for half in weights.half]
        kept = [leaf.view_as(leaf).grad_fn for leaf in leaves]
        for _ in range(2):
            launches.kinds.clear()
            launches.found.clear()
            state.begin(0.0)
            engine._device_part()
            state.finish()
        del kept
    return launches


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return number


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, layouts, precisions = ["small", "released"], ["nhwc", "nchw"], ["bf16", "fp16", "fp32"]
    told = "presets, or configurations in files of TOML (default: small released)"
    made.add_argument("--presets", nargs="+", default=names, metavar="NAME", help=told)
    made.add_argument("--layouts", nargs="+", choices=layouts, default=layouts, help="(default: both)")
    made.add_argument("--batch", type=_at_least(1), default=16, metavar="N", help="images (default: %(default)s)")
    told = "of the autocast (default: %(default)s)"
    made.add_argument("--precision", choices=precisions, default="bf16", help=told)
    told = "the operators, too: all, or the N most frequent"
    made.add_argument("--list", type=_at_least(0), nargs="?", const=1000, default=0, metavar="N", help=told)
    options = made.parse_args(argv)
    configs = {preset: paper_losses(preset) for preset in options.presets}
    if not library.loaded_cuda:
        print(
            f"trace: the reference ops are counted, since the CUDA library is {library.why_not_cuda}", file=sys.stderr
        )
    print("| preset | layout | batch | precision | kernels |", " | ".join(KINDS), "|")
    print("|---|---|---:|---|", "---:|" * (len(KINDS) + 1), sep="")
    for preset, config in configs.items():
        for layout in dict.fromkeys(options.layouts):
            found = trace(config, options.batch, layout == "nhwc", options.precision)
            numbers = " | ".join(f"{n:,}" for n in (sum(found.kinds.values()), *(found.kinds[k] for k in KINDS)))
            print(f"| {preset} | {layout} | {options.batch} | {options.precision} | {numbers} |", flush=True)
            for (kind, what), count in found.found.most_common(options.list):
                if count:
                    print(f"  {count:5} {kind}: {what}")


if __name__ == "__main__":
    sys.exit(run_command(main, name="trace"))
