"""HIDA: Human-Inspired Facial Sketch Synthesis with Dynamic Adaptation (ICCV 2023)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hida.version import __version__

if TYPE_CHECKING:
    from hida import depth, metrics, models, ops
    from hida.drawing.sketcher import Sketcher

__all__ = ["Sketcher", "__version__", "depth", "metrics", "models", "ops"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``import hida`` alone must not cost the seconds that torch takes."""
    if name == "Sketcher":
        return import_module("hida.drawing.sketcher").Sketcher
    if name in __all__:
        return import_module(f"hida.{name}")
    raise AttributeError(f"module 'hida' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of this module with those that are imported on first use."""
    return sorted({*globals(), *__all__})
