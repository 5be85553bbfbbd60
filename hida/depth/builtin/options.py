"""What the training of the built-in depth predictor is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """Train the built-in depth predictor."""

    photos: tuple[Path, ...]
    """folders of face photos; one that holds anno_train.json is read as FS2K"""
    out: Path
    """.safetensors file to write (EMA weights, float16)"""
    steps: int = 1150
    """iterations"""
    batch: int = 32
    """faces per iteration"""
    lr: float = 2e-3
    """highest learning rate of the one-cycle schedule (AdamW)"""
    weight_decay: float = 0.02
    ema: float = 0.995
    """decay of the EMA network per iteration"""
    held_out: int = 58
    """photos kept out of training and measured at the end"""
    test: int = 100
    """FS2K test photos measured at the end"""
    seed: int = 0
    device: str = "cpu"
    """cpu or cuda"""
    amp: bool = True
    """autocast to bfloat16"""
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """file saved every 200 iterations, and continued from if it exists"""
