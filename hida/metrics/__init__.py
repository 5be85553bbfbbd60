"""Metrics of face sketch synthesis; definitions and golden values in docs/metrics.md."""

from hida.metrics.fsim import fsim, fsimc
from hida.metrics.scoot import scoot

__all__ = ["fsim", "fsimc", "scoot"]
