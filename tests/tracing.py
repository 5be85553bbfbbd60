"""Graphs traced with dynamic sizes, against the eager module at other sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

IMAGES = {axis: Dim(letter) for axis, letter in ((0, "N"), (2, "H"), (3, "W"))}
"""Any number of images of any size."""

Size = tuple[int, int, int]


class Call(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given)


def exports(
    module: torch.nn.Module,
    made: Callable[..., tuple[Tensor, ...]],
    kinds: Sequence[Any],
    sizes: Sequence[Size],
    strict: bool,
) -> torch.export.ExportedProgram:
    """Export at the first of ``sizes`` (N, H, W) and compare at each; what the graph demands is checked as it runs."""
    torch._dynamo.reset()
    kinds = (tuple(kinds),) if isinstance(module, Call) else tuple(kinds)
    program = torch.export.export(module, made(*sizes[0]), dynamic_shapes=kinds, strict=strict)
    exported = program.module()
    for size in sizes:
        given = made(*size)
        torch.testing.assert_close(exported(*given), module(*given), rtol=1e-4, atol=1e-5)
    return program


def compiles_once(module: Callable[..., Any], made: Callable[..., tuple[Tensor, ...]], sizes: Sequence[Size]) -> None:
    """Compile with dynamic sizes, compare at each of ``sizes`` (N, H, W), and fail if one is compiled again."""
    torch._dynamo.reset()
    compiled = torch.compile(module, dynamic=True, fullgraph=True, backend="aot_eager")
    compiled(*made(*sizes[0]))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in sizes:
            given = made(*size)
            torch.testing.assert_close(compiled(*given), module(*given), rtol=1e-4, atol=1e-5)
