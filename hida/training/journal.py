"""Write what a run leaves to read: the log, TensorBoard events and the sample grids."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hida.data.framing import Batch
from hida.documents import DocumentError, parse_json
from hida.errors import HidaError
from hida.files import atomic_path, write_bytes
from hida.images.sheet import sheet, to_image


class Journal:
    """``log.jsonl`` (one JSON object per line), ``samples/*.png`` and, optionally, TensorBoard of a run's folder."""

    def __init__(self, folder: Path, iteration: int, tensorboard: bool) -> None:
        self.folder, self.path = folder, folder / "log.jsonl"
        self.evaluated = _drop_lines_after(self.path, iteration)
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

    def lacks(self, iteration: int) -> tuple[bool, bool]:
        """Return whether there is no held-out error, and no sample grid, of the iteration that the run goes on from."""
        return iteration not in self.evaluated, not self._sample(iteration).exists()

    def write_samples(self, iteration: int, drawn: Sequence[tuple[Batch, Tensor, Tensor]]) -> None:
        """Write photo, depth, sketch, target and reconstructed depth, one row per pair."""
        rows = [
            [
                to_image(batch.photo[i]),
                to_image(batch.depth[i], 0.0),
                to_image(sketch[i]),
                to_image(batch.sketch[i]),
                to_image(depth_hat[i], 0.0),
            ]
            for batch, sketch, depth_hat in drawn
            for i in range(len(sketch))
        ]
        picture = sheet(rows, ("photo", "depth", "sketch", "target", "reconstructed depth"))
        with atomic_path(self._sample(iteration)) as path:
            picture.save(path)
        if self.writer:
            self.writer.add_image("samples", np.asarray(picture), iteration, dataformats="HWC")

    def _sample(self, iteration: int) -> Path:
        return self.folder / "samples" / f"iteration-{iteration:08d}.png"

    def flush(self) -> None:
        """Write what a full disk did not take before, if it does now."""
        with contextlib.suppress(OSError):
            self.file.flush()

    def close(self) -> None:
        """Close the files; what the disk does not take was told before."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self.writer:
            self.writer.close()


def _drop_lines_after(path: Path, iteration: int) -> set[float]:
    """Remove the lines that a resumed run will write again, and torn ones.

    Returns:
        The iterations that have held-out errors.
    """
    if not path.exists():
        return set()
    kept, evaluated = [], set()
    for line in path.read_bytes().splitlines():
        try:
            entry = parse_json(line, finite=False)
            number = entry.field("iteration").number(math.inf)
            if number > iteration:
                continue
            kept.append(line + b"\n")
            if entry.optional("held_out_l1") is not None:
                evaluated.add(number)
        except DocumentError:
            continue
    write_bytes(path, b"".join(kept))
    return evaluated


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
