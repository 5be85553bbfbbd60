"""The back ends of the ops: what computes, where, and how close to the exact result.

Each has ``ops``, which is called as ``hida.ops`` is and differentiated by autograd, and ``operators``, the compiled
operators behind it. Tests are written for ``backend.ops`` on ``backend.device``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import hida.ops
from hida.ops import library

EMULATION = Path(__file__).resolve().parents[2] / "emulation"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# ‖Δ‖/‖exact‖ of an output of each dtype at most. In 16 bits it is half a unit in the last place: one rounding, at the
# end, but for deform_conv2d on a GPU, whose tensor cores multiply rounded samples. In float32 and float64 it is
# rounding along the way; a GPU has its own exp2 and 1/x, and adds up to 9,216 products one after the other.
LIMITS = {
    # op family, back end:        float64 float32 bfloat16 float16
    ("adaptation", "reference"): (1e-14, 1e-6, 4e-3, 5e-4),
    ("adaptation", "cpu"): (1e-14, 1e-6, 4e-3, 5e-4),
    ("adaptation", "emulated"): (2e-14, 1e-6, 4e-3, 5e-4),
    ("adaptation", "cuda"): (1e-13, 2e-6, 4e-3, 5e-4),
    ("deformation", "reference"): (1e-14, 1e-6, 4e-3, 5e-4),
    ("deformation", "cpu"): (1e-14, 1e-6, 4e-3, 5e-4),
    ("deformation", "emulated"): (1e-14, 1e-6, 4e-3, 5e-4),
    ("deformation", "cuda"): (1e-13, 1e-5, 6e-3, 8e-4),
}
# A sum over planes is no better than the rounding of its terms, which are about as large as dx·x and may cancel: this
# share of Σ|dx·x|/‖exact‖ is added to its limit, in limits, up to so many. On a GPU it is 2.5e-7, four roundings: all
# terms of a plane share those of its two means (the sum, its share of rstd, their product) and with few planes they do
# not cancel; the chip's own exp2 and 1/x, all to one side, make another 0.3e-7 of it. Emulated, the most is a twelfth
# of one rounding of the terms where they cancel most (dp1 of (2, 1, 64, 64): 1.3 of 5,684); whether PyTorch's own sum
# is better there is chance, which differs between processors.
SUMS = {"reference": (1 / 20, 10), "cpu": (1 / 20, 1), "emulated": (1 / 20, 20), "cuda": (1 / 8, float("inf"))}
# The worst error of the logistic function of float32, in units in the last place.
LOGISTIC = {"reference": 3, "cpu": 3, "emulated": 3, "cuda": 6}


class Backend:
    """The reference in PyTorch, the kernels for this processor, or those for a GPU: through hida.ops itself."""

    ops = hida.ops
    operators = torch.ops.hida
    twice = True  # has second derivatives, by operators that are registered with torch

    def __init__(self, name: str, device: str = "cpu", choice: str = "native", **environment: str) -> None:
        self.name, self.device, self.environment = name, device, environment
        self.kind = name  # whose limits are its own
        self._choice = choice

    def limit(self, family: str, dtype: torch.dtype, wide: bool = True) -> float:
        """Return the limit for an output of ``dtype``; ``wide``: it was computed in float64."""
        limits = LIMITS[family, self.kind]
        return limits[DTYPES.index(dtype) if wide else max(1, DTYPES.index(dtype))]

    def sums(self, terms: float) -> float:
        """Return by how many times its limit a sum may be worse; ``terms``: Σ|dx·x|/‖exact‖."""
        share, most = SUMS[self.kind]
        return min(share * terms, most)

    def skip(self) -> None:
        """Skip the test if this machine does not have the back end."""
        if self.name == "cpu" and not library.loaded:
            pytest.skip(f"the native library is {library.why_not}")
        if self.name == "cuda" and not (torch.cuda.is_available() and library.loaded_cuda):
            pytest.skip(f"there is no CUDA device, or its library is {library.why_not_cuda}")

    @contextlib.contextmanager
    def use(self) -> Iterator[Backend]:
        """Let ``ops`` compute with this back end."""
        with hida.ops.backend(self._choice):
            yield self

    def groups(self) -> Iterator[Iterator[None]]:
        """Yield groups of circumstances that must not show in any bit of the results."""
        yield self._circumstances()

    def _circumstances(self) -> Iterator[None]:
        if self.name != "cpu":
            yield from [None] * 6
            return
        threads = torch.get_num_threads()
        try:
            for count in (1, 2, 3, 3):
                torch.set_num_threads(count)
                yield
        finally:
            torch.set_num_threads(threads)


# capability, multiprocessors (few, so that small tensors fill the chip), bytes of shared memory a block may have
CHIPS = {
    "turing": (75, 8, 65536),
    "ampere": (80, 8, 166912),
    "hopper": (90, 16, 232448),
    "small": (75, 1, 49152),
    "small hopper": (90, 2, 49152),
    "H100": (90, 132, 232448),
    "small ampere": (80, 2, 166912),
    "two of hopper": (90, 2, 232448),
}


class Launches(NamedTuple):
    count: int
    cluster: int
    shared: int


class Emulated(Backend):
    """The CUDA operators on CPU tensors (tests/emulation), and the chip that they believe they run on."""

    twice = False

    def __init__(self, *chips: str, **environment: str) -> None:
        super().__init__("emulated", **environment)
        self._chips = chips  # the first, and in which others too the order must not matter
        self.ops = EMULATED_OPS

    def skip(self) -> None:
        _emulation()

    @contextlib.contextmanager
    def use(self) -> Iterator[Emulated]:
        self._library = _emulation()
        self.operators = torch.ops.hida_emulation
        self.chip(self._chips[0])
        self.launches(), self.usual()
        yield self

    def chip(self, name: str, order: int = 0, rough: int = 0) -> None:
        """Choose the chip, and the order of threads and blocks: 0 first to last, 1 last to first, 2 shuffled.

        ``rough``: whether its own 2^x, 1/x and 1/√x err as they may: 1 as if by chance, 2 all too large, 3 too small.
        """
        self._library.hida_emulation_chip(*CHIPS[name], order)
        self._library.hida_emulation_rough(rough)
        self.kind = "cuda" if rough else "emulated"

    def launches(self) -> Launches:
        """Return what was launched since the last call."""
        result = (ctypes.c_int * 3)()
        self._library.hida_emulation_launches(result)
        return Launches(*result)

    def usual(self) -> int:
        """Return how many of the launches since the last call were of kernels for usual cases."""
        return self._library.hida_emulation_usual()

    def deform_plan(self, n: int, c: int, c_out: int, side: int, dtype: int, last: bool) -> dict[str, tuple[int, int]]:
        """Return bytes of workspace and images at a time of a 3×3 deform_conv2d; ``dtype``: 0 float32, 2 bfloat16."""
        result = (ctypes.c_int64 * 4)()
        self._library.hida_emulation_deform_plan(
            dtype, int(last), *map(ctypes.c_int64, (n, c, c_out, side, side)), result
        )
        return {"forward": (result[0], result[1]), "backward": (result[2], result[3])}

    def groups(self) -> Iterator[Iterator[None]]:
        for chip in self._chips:
            yield (self.chip(chip, order) for order in (0, 1, 2, 2))


def builder():
    """Return the module build.py of the emulation; skip where it cannot build."""
    spec = importlib.util.spec_from_file_location("hida_emulation_build", EMULATION / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if shutil.which(module.compiler()[0]) is None:
        pytest.skip("the emulation needs a C++ compiler")
    if not module.stable_headers():
        pytest.skip("this torch has no stable C++ interface (2.11 or later has)")
    return module


@functools.cache
def _emulation() -> ctypes.CDLL:
    """Load the emulated library, built once a run; HIDA_EMULATION=sanitized takes the one with sanitizers in it."""
    path = builder().build(os.environ.get("HIDA_EMULATION") == "sanitized")
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


class _Differentiable(torch.autograd.Function):
    """A pair of emulated operators as an op of autograd; which gradients are wanted, it says as hida.ops does."""

    @staticmethod
    def forward(ctx, pair, *tensors) -> Tensor:
        y, *ctx.kept = pair.forward(*tensors)
        ctx.pair = pair
        ctx.save_for_backward(*tensors)
        return y

    @staticmethod
    def backward(ctx, grad):
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        # Some gradients are the upstream one, or its sum; the operator returns those of ctx.pair.computed.
        result = [grad if need else None for need in needed]
        computed = [i for i in ctx.pair.computed if tensors[i] is not None]
        wanted = sum(1 << bit for bit, i in enumerate(ctx.pair.computed) if needed[i])
        made = ctx.pair.backward(wanted, grad, *tensors, *ctx.kept)
        wide = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
        for i, gradient in zip(ctx.pair.computed, made, strict=True):
            if i not in computed or not needed[i]:
                assert gradient.shape == (0,), f"the gradient of operand {i}, which is not wanted, has a shape"
                continue
            like = tensors[i]
            assert gradient.dtype == wide or (gradient.dtype == like.dtype and gradient.shape == like.shape)
            gradient = gradient[:, :, None, None] if gradient.dim() == 2 else gradient
            result[i] = gradient.sum_to_size(like.shape).to(like.dtype)
        for i, like in enumerate(tensors):
            if needed[i] and like.dim() == 1:
                result[i] = grad.sum((0, 2, 3), dtype=wide)
        return None, *result


def _op(forward, backward, computed, *tensors) -> Tensor:
    return _Differentiable.apply(SimpleNamespace(forward=forward, backward=backward, computed=computed), *tensors)


def _info_acon(x, logits, p1, p2) -> Tensor:
    e = torch.ops.hida_emulation
    return _op(
        lambda *given: (e.info_acon(*given),),
        lambda wanted, grad, *given: e.info_acon_backward(grad, *given, wanted),
        (0, 1, 2, 3),
        *(x, logits, p1, p2),
    )


def _instance_norm_modulate(x, gamma, beta, residual=None, eps=1e-5) -> Tensor:
    e = torch.ops.hida_emulation
    return _op(
        lambda *given: e.instance_norm_modulate(*given, eps),
        lambda wanted, grad, x, gamma, _, __, *kept: e.instance_norm_modulate_backward(grad, x, gamma, *kept, wanted),
        (0, 1),
        *(x, gamma, beta, residual),
    )


def _ida(h, logits, gamma, beta, p1, p2, residual="activated", eps=1e-5) -> Tensor:
    e, number = torch.ops.hida_emulation, ("none", "activated", "input").index(residual)
    return _op(
        lambda *given: e.ida(*given, number, eps),
        lambda wanted, grad, h, logits, gamma, _, p1, p2, *kept: e.ida_backward(
            grad, h, logits, gamma, p1, p2, *kept, number, wanted
        ),
        (0, 1, 2, 4, 5),
        *(h, logits, gamma, beta, p1, p2),
    )


def _deform_conv2d(x, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None) -> Tensor:
    e = torch.ops.hida_emulation
    steps = [[s, s] if isinstance(s, int) else list(s) for s in (stride, padding, dilation)]
    return _op(
        lambda x, offset, weight, bias, mask: (e.deform_conv2d(x, offset, weight, bias, *steps, mask),),
        lambda wanted, grad, x, offset, weight, _, mask: e.deform_conv2d_backward(
            grad, x, offset, weight, *steps, mask, wanted
        ),
        (0, 1, 2, 4),
        *(x, offset, weight, bias, mask),
    )


def _leaky_norm(x, before=1.0, after=1.0, eps=1e-5) -> Tensor:
    e = torch.ops.hida_emulation
    return _op(
        lambda x: e.leaky_norm(x, before, after, eps),
        lambda wanted, grad, *given: (e.leaky_norm_backward(grad, *given, before, after),),
        (0,),
        x,
    )


EMULATED_OPS = SimpleNamespace(
    info_acon=_info_acon,
    instance_norm_modulate=_instance_norm_modulate,
    ida=_ida,
    deform_conv2d=_deform_conv2d,
    leaky_norm=_leaky_norm,
)

TINY, LARGE = {"HIDA_DEFORM_PATH": "tiny"}, {"HIDA_DEFORM_PATH": "large"}
BACKENDS = {
    "reference": Backend("reference", choice="reference"),
    "cpu": Backend("cpu"),
    "emulated": Emulated("turing", "ampere", "small", "hopper"),
    "emulated-h100": Emulated("H100"),
    "emulated-tiny": Emulated("turing", "hopper", **TINY),
    "emulated-large": Emulated("turing", "hopper", **LARGE),
    "cuda": Backend("cuda", "cuda"),
    "cuda-tiny": Backend("cuda", "cuda", **TINY),
    "cuda-large": Backend("cuda", "cuda", **LARGE),
    "cuda-reference": Backend("cuda", "cuda", choice="reference"),
}


def back_ends(*names: str):
    """Parametrise a test by these back ends alone."""
    return pytest.mark.parametrize("backend", [_parameter(n, (), (), n) for n in names], indirect=True)


def each(names, argument: str, everywhere=(), **more):
    """Parametrise a test by back end and case: the cases of all ``names``, and ``more`` cases of some back ends."""
    parameters = []
    for name in dict.fromkeys((*names, *(key.replace("_", "-") for key in more))):
        cases = (*(everywhere if name in names else ()), *more.get(name.replace("-", "_"), ()))
        for case in cases:
            marks, value = (case.marks, case.values[0]) if hasattr(case, "marks") else ((), case)
            label = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parameters.append(_parameter(name, (value,), marks, f"{name}-{label}"))
    return pytest.mark.parametrize(("backend", argument), parameters, indirect=["backend"])


def slow(*cases):
    """Mark cases that only multiply."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def _parameter(name, values, marks, label):
    if name.startswith("cuda"):
        no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
        marks = [*marks, pytest.mark.gpu, no_gpu]
    return pytest.param(name, *values, marks=marks, id=label)
