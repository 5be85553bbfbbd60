"""What the training of the built-in depth predictor is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hida.errors import HidaError
from hida.files import require_file_place


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
    """cpu, cuda, or auto"""
    amp: bool = True
    """autocast to bfloat16"""
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """.safetensors file saved every 200 iterations and when stopped, and continued from if it exists"""


def require_usable(options: Options) -> None:
    """Check, before any work, whatever can be checked without the photos.

    Raises:
        HidaError: naming the first option that is wrong.
    """
    if not options.photos:
        raise HidaError("--photos names no folder; give folders of face photos.")
    whole = {"steps": (1, 10**8), "batch": (1, 10**6), "held-out": (1, 10**8), "test": (0, 10**8), "seed": (0, 10**12)}
    for name, (least, most) in whole.items():
        value = getattr(options, name.replace("-", "_"))
        if not least <= value <= most:
            raise HidaError(f"--{name} is {value}; give a whole number from {least} to {most}.")
    if not 0 < options.lr < math.inf:
        raise HidaError(f"--lr is {options.lr:g}; give a learning rate above 0.")
    if not 0 <= options.weight_decay < math.inf:
        raise HidaError(f"--weight-decay is {options.weight_decay:g}; give 0 or more.")
    if not 0 <= options.ema < 1:
        raise HidaError(f"--ema is {options.ema:g}; give a decay from 0 to below 1.")
    _require_place(options.out, "--out")
    if options.checkpoint is not None:
        _require_place(options.checkpoint, "--checkpoint", old=True)
        if options.checkpoint.resolve() == options.out.resolve():
            raise HidaError(f"--checkpoint and --out are both '{options.out}'; give two names.")


def _require_place(path: Path, option: str, old: bool = False) -> None:
    # A checkpoint of an earlier version may be called anything.
    if path.suffix.lower() != ".safetensors" and not (old and path.is_file()):
        raise HidaError(f"{option} '{path}' is to be a safetensors file; give it a name that ends in .safetensors.")
    require_file_place(path)
    if path.exists() and not path.is_file():
        raise HidaError(f"{option} '{path}' is no regular file; give another name.")
