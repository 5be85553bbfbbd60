"""Write weights of the released network under the authors' names."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hida.config import GeneratorConfig
from hida.weights.checkpoint import Checkpoint, generator_tensors, network_shapes, require_fit
from hida.weights.released.layout import (
    BUFFERS,
    ReleasedError,
    discriminator_layout,
    generator_layout,
    place,
    to_theirs,
    unused_shapes,
)


def convert(loaded: Checkpoint) -> tuple[dict[str, Tensor], list[str]]:
    """Return the ``state_dict`` under the authors' names, and remarks on what it has not or is zero.

    Raises:
        ReleasedError: the weights are of another network.
    """
    config = loaded.config.generator
    # Dropout is off when the network draws.
    like = dataclasses.replace(GeneratorConfig(), base_width=config.base_width, dropout=config.dropout)
    differing = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(like, f.name)]
    if differing:
        raise ReleasedError(
            f"'{loaded.path}' differs from the released network in {', '.join(differing)}; the authors' code would "
            "compute something else with it; give weights of the preset released."
        )
    remarks = []
    layout = generator_layout(config)
    generator = generator_tensors(loaded)
    require_fit(generator, network_shapes(config), loaded.path)
    state = to_theirs(layout, generator)
    kept = loaded.part("unused")
    shapes = unused_shapes(config)
    recorded = _record(loaded)
    # An imported file says which of them its checkpoint had.
    had = loaded.state.get("unused", list(shapes))
    empty = [name for name in shapes if name in had and name not in kept] if isinstance(had, list) else []
    if empty:
        remarks.append(f"{len(empty)} tensors that the network never uses are zero")
    state |= {name: torch.zeros(shapes[name]) for name in empty} | kept
    discriminator = loaded.part("discriminator")
    if discriminator:
        require_fit(discriminator, network_shapes(loaded.config.discriminator), loaded.path)
        state |= to_theirs(discriminator_layout(), discriminator)
    else:
        remarks.append("these weights have no discriminator, so the file has none either")
    order = {name: number for number, name in enumerate(recorded)}
    names = sorted(state, key=lambda name: (order.get(name, len(order)), place(name)))
    return {name: _as_theirs(name, state[name], recorded.get(name)) for name in names}, remarks


def _record(loaded: Checkpoint) -> dict[str, torch.dtype]:
    """Return the names and precisions of the checkpoint that was imported, in its order; none of other weights."""
    found = loaded.state.get("tensors", [])
    fits = isinstance(found, list) and all(
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry) for entry in found
    )
    if not fits or not all(isinstance(getattr(torch, kind, None), torch.dtype) for _, kind in found):
        raise ReleasedError(f"'{loaded.path}' has a damaged list of tensors; import the released checkpoint again.")
    return {name: getattr(torch, kind) for name, kind in found}


def _as_theirs(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None:
        dtype = torch.int64 if name.endswith(BUFFERS[2]) else torch.float32 if value.is_floating_point() else None
    return value.to(dtype, copy=True)
