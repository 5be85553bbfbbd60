"""Write weights of the released network under the authors' names."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hida.config import GeneratorConfig
from hida.weights.checkpoint import Checkpoint, generator_tensors, require_fit
from hida.weights.released.layout import (
    ReleasedError,
    discriminator_layout,
    generator_layout,
    own_shapes,
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
    require_fit(generator, own_shapes(config), loaded.path)
    state = to_theirs(layout, generator)
    kept = loaded.part("unused")
    shapes = unused_shapes(config)
    # An imported file says which of them its checkpoint had.
    empty = [name for name in loaded.state.get("unused", shapes) if name in shapes and name not in kept]
    if empty:
        remarks.append(f"{len(empty)} tensors that the network never uses are zero")
    state |= {name: torch.zeros(shapes[name]) for name in empty} | kept
    discriminator = loaded.part("discriminator")
    if discriminator:
        require_fit(discriminator, own_shapes(loaded.config.discriminator), loaded.path)
        state |= to_theirs(discriminator_layout(), discriminator)
    else:
        remarks.append("these weights have no discriminator, so the file has none either")
    return {
        name: value.float().clone() if value.is_floating_point() else value for name, value in state.items()
    }, remarks
