"""Decisions by a tensor's size, made so that a traced graph stays one for all sizes.

``torch.export`` and ``torch.compile`` put symbols in the place of sizes. An ``if`` on a symbol holds for the traced
size only and ties the whole graph to that side of it; so what merely chooses the faster of two ways asks here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def known(condition: bool | torch.SymBool) -> bool:
    """Say whether a condition on sizes holds, and of symbols whether it holds whatever the sizes are.

    False says nothing of symbols: the caller then takes the way that is right for every size.
    """
    # Not a bool while torch.compile reads this, although isinstance says so.
    if torch.compiler.is_compiling() or isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # brings sympy: only where it is needed

        return statically_known_true(condition)
    return condition


def same(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Say whether two shapes are equal, and of symbols whether they are so whatever the sizes are."""
    return len(shape) == len(other) and all(known(a == b) for a, b in zip(shape, other, strict=True))
