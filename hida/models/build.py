"""Build the generator and the discriminator from a configuration or a preset's name."""

from __future__ import annotations

from typing import TypeVar

from hida.config import Config, DiscriminatorConfig, GeneratorConfig, load_preset
from hida.errors import HidaError
from hida.models.discriminator import Discriminator
from hida.models.generator import Generator

Part = TypeVar("Part", GeneratorConfig, DiscriminatorConfig)


def build_generator(config: Config | GeneratorConfig | str) -> Generator:
    """Return a freshly initialised generator for a configuration or a preset's name."""
    config = load_preset(config) if isinstance(config, str) else config
    return Generator(_part(config.generator if isinstance(config, Config) else config, GeneratorConfig))


def build_discriminator(config: Config | DiscriminatorConfig | str) -> Discriminator:
    """Return a freshly initialised discriminator for a configuration or a preset's name."""
    config = load_preset(config) if isinstance(config, str) else config
    return Discriminator(_part(config.discriminator if isinstance(config, Config) else config, DiscriminatorConfig))


def _part(config: Part, kind: type[Part]) -> Part:
    if not isinstance(config, kind):
        raise HidaError(f"config must be a Config, a {kind.__name__} or a preset's name, not {type(config).__name__}.")
    return config
