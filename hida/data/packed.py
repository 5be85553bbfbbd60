"""A prepared set in one small file: a ZIP of its index and of its pictures as WebP.

    index.json    as in a prepared folder, its paths ending in .webp
    packed.json   {"quality": {...}, "psnr": {kind: {"mean", "least"}}}: what packing lost, in dB

Training and evaluation take such a file in place of a prepared folder, and unpack it into FILE.unpacked next to it.
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
from hida.files import atomic_path, write_bytes
from hida.images.io import read_image

RECORD = "packed.json"
_LARGEST = 1 << 24  # bytes of one member; a 250×250 WebP has some 10,000

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
        HidaError: if there are no pairs in ``splits``.
    """
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


def prepared_folder(path: Path) -> Path:
    """Return the folder of a prepared set: ``path`` itself, or, of a pack, the folder that it is unpacked into.

    Raises:
        HidaError: if the file is damaged or is no pack.
    """
    if not path.is_file():
        return path
    folder = path.with_name(f"{path.name}.unpacked")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            record, index = archive.read(RECORD), archive.read(INDEX)
            stamp = json.dumps([json.loads(record), sorted((m.filename, m.CRC) for m in members)]).encode()
            # The index is written last: a folder that has it is whole.
            if (folder / INDEX).is_file() and (folder / RECORD).is_file() and (folder / RECORD).read_bytes() == stamp:
                return folder
            (folder / INDEX).unlink(missing_ok=True)
            for member in members:
                kind, _, name = member.filename.partition("/")
                if kind in FOLDERS and name == Path(name).name and "\\" not in name and ":" not in name:
                    if member.file_size > _LARGEST:
                        raise HidaError(
                            f"'{path}' is no packed data set, it holds a picture of {member.file_size:,} bytes; make "
                            "one with hida pack."
                        )
                    write_bytes(folder / kind / name, archive.read(member))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise HidaError(f"'{path}' is no packed data set, or damaged ({error}); make it with hida pack.") from None
    write_bytes(folder / RECORD, stamp)
    write_bytes(folder / INDEX, index)
    return folder


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
