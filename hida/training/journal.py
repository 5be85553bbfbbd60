"""Write what a run leaves to read: the log, TensorBoard events and the sample grids."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from hida.data.framing import Batch
from hida.documents import DocumentError, parse_json
from hida.errors import HidaError
from hida.files import atomic_path, write_bytes
from hida.images.sheet import sheet, to_image
from hida.training.state import TrainingState


class Journal:
    """``log.jsonl`` (one JSON object per line), ``samples/*.png`` and, optionally, TensorBoard of a run's folder."""

    def __init__(self, folder: Path, iteration: int, tensorboard: bool) -> None:
        self.folder, self.path = folder, folder / "log.jsonl"
        _drop_lines_after(self.path, iteration)
        self.file = self.path.open("a", encoding="utf-8")
        self.writer = require_tensorboard()(str(folder / "tensorboard")) if tensorboard else None

    def write(self, iteration: int, epoch: float, values: dict[str, float], **more: Any) -> None:
        """Write one line; ``values`` go to TensorBoard too, ``more`` does not."""
        entry = {"iteration": iteration, "epoch": round(epoch, 4), **values, **more}
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, iteration)

    def draw_samples(self, state: TrainingState, batch: Batch) -> None:
        """Draw photo, depth, sketch, target and reconstructed depth, one row per pair."""
        sketch, depth_hat = state.draw(batch)
        rows = [
            [
                to_image(batch.photo[i]),
                to_image(batch.depth[i], 0.0),
                to_image(sketch[i]),
                to_image(batch.sketch[i]),
                to_image(depth_hat[i], 0.0),
            ]
            for i in range(len(sketch))
        ]
        picture = sheet(rows, ("photo", "depth", "sketch", "target", "reconstructed depth"))
        with atomic_path(self.folder / "samples" / f"iteration-{state.iteration:08d}.png") as path:
            picture.save(path)
        if self.writer:
            self.writer.add_image("samples", np.asarray(picture), state.iteration, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.writer:
            self.writer.close()


def _drop_lines_after(path: Path, iteration: int) -> None:
    """Remove the lines that a resumed run will write again, and a torn last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if parse_json(line, finite=False).field("iteration").number(math.inf) <= iteration:
                kept.append(line + b"\n")
        except DocumentError:
            continue
    write_bytes(path, b"".join(kept))


def require_tensorboard() -> Any:
    """Return TensorBoard's SummaryWriter class.

    Raises:
        HidaError: if it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise HidaError("tensorboard is not installed; run pip install tensorboard, or leave it off.") from None
    return SummaryWriter
