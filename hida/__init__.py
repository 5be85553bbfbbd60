"""HIDA: Human-Inspired Facial Sketch Synthesis with Dynamic Adaptation (ICCV 2023)."""

from hida.version import __version__

__all__ = ["__version__"]
