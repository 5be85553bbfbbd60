"""Write weights of the released network under the authors' names."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hida.config import GeneratorConfig
from hida.errors import label, shown
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
from hida.weights.torch_file import DTYPES

_KINDS = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


def convert(loaded: Checkpoint) -> tuple[dict[str, Tensor], list[str]]:
    """Return the ``state_dict`` under the authors' names, and remarks on what it has not or is zero.

    Raises:
        ReleasedError: the weights are of another network, or their list of tensors is damaged.
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
    networks = to_theirs(layout, generator)
    kept = loaded.part("unused")
    shapes = unused_shapes(config)
    recorded = _record(loaded)
    # An imported file says which of them its checkpoint had.
    had = loaded.state.get("unused", list(shapes))
    empty = [name for name in shapes if name in had and name not in kept] if isinstance(had, list) else []
    if empty:
        remarks.append(f"{len(empty)} tensors that the network never uses are zero")
    discriminator = loaded.part("discriminator")
    told = loaded.config.discriminator
    if discriminator and (told.photo or told.styles):
        # The authors' code shows its discriminator depth and sketch alone.
        remarks.append("the discriminator also sees the photo or the style, as the authors' does not: it is left out")
    elif discriminator:
        require_fit(discriminator, network_shapes(loaded.config.discriminator), loaded.path)
        networks |= to_theirs(discriminator_layout(), discriminator)
    else:
        remarks.append("these weights have no discriminator, so the file has none either")
    state = {name: torch.zeros(shapes[name], dtype=_usual(name)) for name in empty} | kept | networks
    order = {name: number for number, name in enumerate(recorded)}
    names = sorted(state, key=lambda name: (order.get(name, len(order)), place(name)))
    theirs = {}
    for name in names:
        value = state[name]
        dtype = recorded.get(name) or (_usual(name) if value.is_floating_point() else value.dtype)
        theirs[name] = value.to(dtype, copy=True)
        # What has no record may lose digits: it was trained here, or written by other means.
        fits = name not in recorded or _is_exact(value, theirs[name])
        if not fits or (name in networks and not dtype.is_floating_point):
            raise _damaged(loaded, f"{label(name)} cannot be {str(dtype).removeprefix('torch.')}")
    return theirs, remarks


def _record(loaded: Checkpoint) -> dict[str, torch.dtype]:
    """Return the names and precisions of the checkpoint that was imported, in its order; none of other weights."""
    found = loaded.state.get("tensors", [])
    fits = isinstance(found, list) and all(
        isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry) for entry in found
    )
    if not fits:
        raise _damaged(loaded, "it is not one of names and types")
    unknown = next((kind for _, kind in found if kind not in _KINDS), None)
    if unknown is not None:
        raise _damaged(loaded, f"there is no type {shown(unknown)} in a checkpoint")
    return {name: _KINDS[kind] for name, kind in found}


def _damaged(loaded: Checkpoint, reason: str) -> ReleasedError:
    return ReleasedError(
        f"'{loaded.path}' has a damaged list of tensors ({reason}); import the released checkpoint again."
    )


def _usual(name: str) -> torch.dtype:
    return torch.int64 if name.endswith(BUFFERS[2]) else torch.float32


def _is_exact(value: Tensor, theirs: Tensor) -> bool:
    """Say whether all values are the same in a floating type as before; of other types only the same one is."""
    if value.dtype == theirs.dtype:
        return True
    if not theirs.is_floating_point():
        return False
    back = theirs.to(value.dtype)
    return bool(((back == value) | (back != back) & (value != value)).all())
