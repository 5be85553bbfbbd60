"""What the training of the built-in depth predictor is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Train the built-in depth predictor."""

    photos: tuple[Path, ...]
    """Folders of face photos; one that holds anno_train.json is read as FS2K."""
    out: Path
    """The .safetensors file to write (EMA weights, float16)."""
    steps: int = 1150
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.02
    ema: float = 0.995
    held_out: int = 58
    """Photos kept out of training and measured at the end."""
    test: int = 100
    """FS2K test photos measured at the end."""
    seed: int = 0
    device: str = "cpu"
    amp: bool = True
    """bfloat16 autocast."""
    checkpoint: Path | None = None
    """Saved every 200 steps, and resumed from when it exists."""
