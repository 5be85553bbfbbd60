"""The compiled operator library: loading it, and what the ops' registrations have in common."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hida.errors import HidaError, warn

PATH = Path(__file__).resolve().parent.parent / "_ops.so"
CUDA_PATH = PATH.with_name("_ops_cuda.so")
# Written into a package that was built without a library: why.
NOT_BUILT = PATH.with_name("not_built.txt")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _not_built(where: str = "") -> str:
    reason = NOT_BUILT.read_text(encoding="utf-8").strip() if NOT_BUILT.is_file() else ""
    return f"not built: {reason or f'python setup.py build_ext --inplace builds them{where}'}"


def _load(path: Path) -> str:
    """Load a library; return why it is not loaded, or nothing."""
    if not path.is_file():
        return _not_built()
    try:
        torch.ops.load_library(path)
    except OSError as error:
        reason = f"{path.name} does not load ({str(error.__cause__ or error).splitlines()[0]}); build it again"
        warn(f"HIDA's native ops: {reason}. The PyTorch reference runs instead.")
        return reason
    return ""


def _load_cuda() -> str:
    if not loaded:
        return why_not
    if torch.version.cuda is None:
        return "this is a CPU build of torch"
    if not CUDA_PATH.is_file():
        return _not_built(" where nvcc is")
    return _load(CUDA_PATH)


def instruction_set() -> str:
    """Return the name of the CPU kernels that this processor gets: avx512, avx2 or generic.

    Raises:
        HidaError: if ``HIDA_CPU`` names others, or some that this processor does not have.
    """
    function = ctypes.CDLL(str(PATH)).hida_cpu_kernels
    function.restype = ctypes.c_char_p
    name = function().decode()
    if name.startswith("HIDA_CPU"):
        raise HidaError(name)
    return name


why_not = _load(PATH)
loaded = not why_not
if loaded and os.environ.get("HIDA_CPU"):
    instruction_set()  # refuses here, and not in the middle of the first op
why_not_cuda = _load_cuda()
loaded_cuda = not why_not_cuda


def transformed(*tensors: Tensor | None) -> bool:
    """Say whether what is computed of these tensors has to be PyTorch's own ops.

    That is so where one is a dual tensor of forward-mode differentiation, whose tangent the kernels would drop, and
    inside any transform of ``torch.func``, which sees ops one by one.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:  # asked first: it costs nothing, and is so in nearly every call
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def wanted(needed: Sequence[bool]) -> int:
    """Pack which gradients are needed into the bits that the backward operators take."""
    return sum(1 << i for i, need in enumerate(needed) if need)


def partial_sums(x: Tensor, *operands: Tensor | None) -> Tensor:
    """Return an empty (N, C) tensor of the accumulation dtype, as the operators return for sums over H×W."""
    wide = any(t is not None and t.dtype == torch.float64 for t in (x, *operands))
    return x.new_empty(x.shape[:2], dtype=torch.float64 if wide else torch.float32)


def gradient_like(operand: Tensor, x: Tensor) -> Tensor:
    """Return an empty tensor of an operand's shape and dtype, in the memory layout of ``x``."""
    last = x.stride(1) == 1 and x.stride(3) != 1
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(operand.shape, dtype=operand.dtype, device=operand.device, memory_format=layout)


def sum_to(gradient: Tensor, like: Tensor) -> Tensor:
    """Add up a gradient that came back as (N, C) sums or as a whole tensor to the shape and dtype of ``like``."""
    if gradient.dim() == 2:
        gradient = gradient[:, :, None, None]
    for axis in (0, 1):
        if like.shape[axis] == 1 and gradient.shape[axis] != 1:
            gradient = gradient.sum(axis, keepdim=True)
    return gradient.to(like.dtype)


def differentiable_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Return the gradients of ``function`` at ``tensors``, made of differentiable ops: a double backward's first half.

    Each tensor is viewed first, so that one given twice gets two gradients.
    """
    if not any(needed):
        return [None] * len(needed)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        given = [t.view_as(t) for t in tensors]
        chosen = [t for t, need in zip(given, needed, strict=True) if need]
        found = iter(torch.autograd.grad(function(*given), chosen, grad, create_graph=again))
    return [next(found) if need else None for need in needed]
