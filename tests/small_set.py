"""Made-up pairs: a prepared data set of a few, and what a generator takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hida.data.prepared import PreparedPair, PreparedSet
from hida.images.alignment import IDENTITY, TEMPLATE
from hida.images.io import write_png


def prepared(folder: Path, count: int = 8, paper: str = "paper") -> None:
    """Write ``count`` pairs in three styles, the first five of them for training; sketches end in ``paper``."""
    random, pairs = np.random.default_rng(0), []
    for k in range(count):
        names = {kind: f"{kind}/p{k}.png" for kind in ("photo", "sketch", "depth")}
        coarse = Image.fromarray(random.integers(0, 256, (10, 10, 3), np.uint8))
        photo = np.asarray(coarse.resize((250, 250), Image.Resampling.BICUBIC))
        for kind, picture in zip(names, (photo, 255 - photo[:, :, 0], photo[:, :, 2]), strict=True):
            write_png(folder / names[kind], picture)
        matrix, points = tuple(map(tuple, IDENTITY.tolist())), tuple(map(tuple, TEMPLATE.tolist()))
        split = "test" if k > 4 else "train"
        pairs.append(PreparedPair(f"p{k}", split, k % 3, **names, matrix=matrix, points=points, faces=1))
    template = tuple(map(tuple, TEMPLATE.tolist()))
    fill = {"photo": "replicate", "sketch": paper}
    PreparedSet(folder, "fs2k", 250, template, fill, "tddfa", ("1", "2", "3"), tuple(pairs)).save()


def inputs(batch: int = 1, height: int = 256, width: int = 256, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """Return photos in [-1, 1], their depth, and styles."""
    random = torch.Generator().manual_seed(seed)
    photo, depth = (torch.rand(batch, channels, height, width, generator=random) for channels in (3, 1))
    return photo * 2 - 1, depth, torch.arange(batch) % 3
