"""What the benchmarks train: a preset's networks with the paper's losses, or its whole recipe."""

from __future__ import annotations

import dataclasses

from hida.config import Config, DiscriminatorConfig, load_preset
from hida.training.objective import FURTHER


def paper_losses(preset: str) -> Config:
    """Return a preset, by name or file, without what it adds to the paper's losses and to the released discriminator.

    So the figures of one year compare with those of another, whatever recipe a preset has by then, and no weights have
    to be there.
    """
    config = load_preset(preset)
    return dataclasses.replace(
        config,
        loss=dataclasses.replace(config.loss, **{f"weight_{name}": 0.0 for name in FURTHER}),
        discriminator=DiscriminatorConfig(base_width=config.discriminator.base_width),
    )
