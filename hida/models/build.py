"""Build the generator and the discriminator from a configuration or a preset's name."""

from __future__ import annotations

from hida.config import Config, DiscriminatorConfig, GeneratorConfig, load_preset
from hida.models.discriminator import Discriminator
from hida.models.generator import Generator


def build_generator(config: Config | GeneratorConfig | str) -> Generator:
    """Return a freshly initialised generator for a configuration or a preset's name."""
    config = load_preset(config) if isinstance(config, str) else config
    return Generator(config.generator if isinstance(config, Config) else config)


def build_discriminator(config: Config | DiscriminatorConfig | str) -> Discriminator:
    """Return a freshly initialised discriminator for a configuration or a preset's name."""
    config = load_preset(config) if isinstance(config, str) else config
    return Discriminator(config.discriminator if isinstance(config, Config) else config)
