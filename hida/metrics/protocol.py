"""Define the evaluation protocol ``fs2k-v1``: what is measured, on which images, and what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass

NAME = "fs2k-v1"
STYLE_COUNTS = (619, 381, 46)
PAIRS = sum(STYLE_COUNTS)
SIZE = 250
RULES = (
    f"all {PAIRS:,} test pairs of FS2K, aligned, {SIZE}×{SIZE}, grey 8-bit PNG, each in its own style",
    "FID, KID: 2015 TF-Inception, pool3, bilinear to 299×299 without antialiasing, grey copied to RGB",
    "LPIPS: alex v0.1 (LPIPS-VGG: vgg), grey copied to RGB; SCOOT and FSIM: grey; means over the images",
    "intervals: 95 %, percentile bootstrap of the means over the images, 10,000 resamples; of KID: jackknife",
)


@dataclass(frozen=True)
class Metric:
    """How a metric is named and printed; ``better`` is the sign of an improvement."""

    key: str
    title: str
    better: int
    digits: int
    per_pair: bool
    factor: float = 1.0
    usual: bool = True
    """measured unless others are asked for"""

    @property
    def heading(self) -> str:
        """The title with an arrow in the direction of improvement."""
        return f"{self.title} {'↑' if self.better > 0 else '↓'}"

    def format(self, value: float | None) -> str:
        """Return a value as tables show it, – for one that is undefined."""
        return "–" if value is None else f"{value * self.factor:.{self.digits}f}"


METRICS = (
    Metric("fid", "FID", -1, 2, False),
    Metric("kid", "KID×10³", -1, 2, False, 1000.0),
    Metric("lpips", "LPIPS", -1, 3, True),
    Metric("lpips_vgg", "LPIPS-VGG", -1, 3, True, usual=False),
    Metric("scoot", "SCOOT", 1, 3, True),
    Metric("fsim", "FSIM", 1, 3, True),
)
TRAINED_ON = "†"
"""marks a metric whose network the training of the weights used"""
USUAL = tuple(metric.key for metric in METRICS if metric.usual)
BY_KEY = {metric.key: metric for metric in METRICS}

# Gao et al., ICCV 2023, FS2K test set. Another protocol (docs/metrics.md), so never to be mixed with measured rows.
AS_REPORTED = {"HIDA (paper)": {"fid": 15.06, "lpips": 0.263, "scoot": 0.575, "fsim": 0.551}}
