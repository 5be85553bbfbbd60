"""A prepared set in one small file: a ZIP of its index and of its pictures as WebP.

    index.json    as in a prepared folder, its paths ending in .webp
    packed.json   {"quality": {...}, "psnr": {kind: {"mean", "least"}}}: what packing lost, in dB

:mod:`hida.data.unpacking` reads it.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from hida.data.prepared import FOLDERS, INDEX, VERSION, PreparedPair, PreparedSet
from hida.data.source import SPLITS
from hida.errors import HidaError
from hida.files import atomic_path, require_file_place
from hida.images.io import read_image

RECORD = "packed.json"

# All 2,104 pairs of FS2K: 52 MiB.
QUALITY = {"photo": 85, "sketch": 85, "depth": 90}


def pack(
    prepared: PreparedSet,
    out: Path,
    splits: Sequence[str] = SPLITS,
    quality: dict[str, int] = QUALITY,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Write the pairs of ``splits`` to ``out``.

    Args:
        quality: WebP quality 0 to 100 of each kind; 101 is lossless.
        advance: called after each pair.

    Returns:
        The PSNR in dB of what was stored: {kind: {"mean", "least"}}.

    Raises:
        HidaError: if there are no pairs in ``splits``, or ``out`` is a folder or has another suffix than ``.zip``.
    """
    require_pack_place(out)
    pairs = [pair for split in splits for pair in prepared.split(split)]
    if not pairs:
        raise HidaError(f"'{prepared.folder}' has no pairs in {' and '.join(splits)}; choose another split.")
    losses: dict[str, list[float]] = {kind: [] for kind in FOLDERS}

    def encode(pair: PreparedPair) -> list[tuple[bytes, float]]:
        return [_encode(array, quality[kind]) for kind, array in zip(FOLDERS, prepared.read(pair), strict=True)]

    with atomic_path(out) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with ThreadPoolExecutor(8) as pool:
            for pair, encoded in zip(pairs, pool.map(encode, pairs), strict=True):
                for kind, (data, psnr) in zip(FOLDERS, encoded, strict=True):
                    archive.writestr(f"{kind}/{pair.name}.webp", data)
                    losses[kind].append(psnr)
                advance()
        content = {"version": VERSION, **asdict(replace(prepared, pairs=tuple(map(_renamed, pairs))))}
        del content["folder"]
        summary = {kind: {"mean": sum(v) / len(v), "least": min(v)} for kind, v in losses.items()}
        archive.writestr(RECORD, json.dumps({"quality": quality, "psnr": summary}))
        archive.writestr(INDEX, json.dumps(content, ensure_ascii=False))
    return summary


def require_pack_place(out: Path) -> None:
    """Check that a pack can be written to ``out``.

    Raises:
        HidaError: if it is a folder or cannot be written, or has another suffix than ``.zip``.
    """
    require_file_place(out)
    if out.suffix.lower() != ".zip":
        raise HidaError(f"'{out}' does not end in .zip; give the pack that suffix.")


def _renamed(pair: PreparedPair) -> PreparedPair:
    photo, sketch, depth = (f"{kind}/{pair.name}.webp" for kind in FOLDERS)
    return replace(pair, photo=photo, sketch=sketch, depth=depth)


def _encode(array: np.ndarray, quality: int) -> tuple[bytes, float]:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    image.save(buffer, "WEBP", quality=min(quality, 100), lossless=quality > 100, method=4)
    again = np.asarray(read_image(buffer).convert(image.mode), np.float64)
    error = float(np.square(again - array).mean())
    # The error is taken to be at least a tenth of a grey level squared: identical pictures get 58 dB, not infinity.
    return buffer.getvalue(), 10 * math.log10(255**2 / max(error, 0.1))
