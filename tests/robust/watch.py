"""What the files of a folder are, in a form that equals that of another run of the same command."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import tempfile
import zipfile
from pathlib import Path

TORN = "torn: "
_CHANGING = ("images_per_second", "minutes", "seconds_per_iteration", "prepared in")


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file below ``folder``, or, of one that cannot be read as what its name says, why.

    Folders are listed with a slash at the end. What differs between equal runs (speeds, inodes) is left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith("tmp/torchinductor_"):
            continue  # torch makes this empty folder when some of its modules are imported
        # The name of an entry is a digest of a path.
        name = re.sub(r"verified/[0-9a-f]{32}\.json$", "verified/X.json", name)
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_dir():
            found[f"{name}/"] = ""
        else:
            found[name] = _digest(path)
    return found


def _digest(path: Path) -> str:
    try:
        read = _READERS.get(path.suffix, _as_bytes)
        return read(path)
    except Exception as error:
        return f"{TORN}{type(error).__name__}: {error}"[:200]


def _as_bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _json(path: Path) -> str:
    if path.parent.name == "verified":
        json.loads(path.read_text(encoding="utf-8"))
        return ""
    return _hash(_still(json.loads(path.read_text(encoding="utf-8"))))


def _lines(path: Path) -> str:
    """A journal may lack its end, but no line in the middle is torn, nor is a last one that ends."""
    pieces = path.read_text(encoding="utf-8").split("\n")
    entries = [json.loads(line) for line in pieces[:-1]]
    return _hash([_still(entry) for entry in entries])


def _still(value):
    """Leave out what differs between equal runs."""
    if isinstance(value, dict):
        return {k: _still(v) for k, v in value.items() if k not in _CHANGING}
    return [_still(item) for item in value] if isinstance(value, list) else value


def _png(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
    return _as_bytes(path)


def _tensors(path: Path) -> str:
    from hida.errors import HidaError
    from hida.weights.checkpoint import load

    try:
        found = load(path)
    except HidaError:
        from safetensors.torch import load_file

        return _hash_tensors(load_file(path))
    return _hash(found.state) + _hash_tensors(found.tensors)


def _torch(path: Path) -> str:
    import torch

    found = torch.load(path, weights_only=True, map_location="cpu")
    return _hash(sorted(found)) + _hash_tensors(found.get("state_dict", {}))


def _hash_tensors(tensors) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sqlite(path: Path) -> str:
    # A copy with its journal: to look at a database may change it.
    with tempfile.TemporaryDirectory(dir=os.environ.get("ROBUST_SCRATCH")) as scratch:
        for part in path.parent.glob(f"{path.name}*"):
            (Path(scratch) / part.name).write_bytes(part.read_bytes())
        database = sqlite3.connect(Path(scratch) / path.name)
        try:
            state = database.execute("PRAGMA integrity_check").fetchone()[0]
            if state != "ok":
                raise ValueError(state)
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = {table: sorted(map(repr, database.execute(f"SELECT * FROM {table}"))) for table in tables}
        finally:
            database.close()
    return _hash(rows)


def _zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError(archive.testzip())
        return _hash(sorted((m.filename, m.CRC) for m in archive.infolist()))


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


_READERS = {
    ".json": _json,
    ".jsonl": _lines,
    ".png": _png,
    ".safetensors": _tensors,
    ".ckpt": _torch,
    ".sqlite": _sqlite,
    ".zip": _zip,
}
