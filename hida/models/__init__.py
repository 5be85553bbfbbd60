"""The networks: :func:`build_generator` and :func:`build_discriminator` take a configuration or a preset's name."""

from hida.models.build import build_discriminator, build_generator
from hida.models.discriminator import Discriminator
from hida.models.generator import Generator

__all__ = ["Discriminator", "Generator", "build_discriminator", "build_generator"]
