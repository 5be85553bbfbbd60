"""Metrics of face sketch synthesis; definitions and golden values in docs/metrics.md."""

from hida.metrics.frechet import fid, kid
from hida.metrics.fsim import fsim, fsimc
from hida.metrics.lpips import lpips
from hida.metrics.scoot import scoot

__all__ = ["fid", "fsim", "fsimc", "kid", "lpips", "scoot"]
