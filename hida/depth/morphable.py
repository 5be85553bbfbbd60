"""The Basel Face Model as 3DDFA_V2 uses it: a mean face moved along 40 directions of shape and 10 of expression.

Its basis comes from :func:`hida.weights.bfm.extract_basis`. Coordinates are those of the 120x120 crop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hida.errors import HidaError
from hida.weights.bfm import EXPRESSION, KEYPOINTS, SHAPE, within


@dataclass(frozen=True)
class MorphableModel:
    """The mean face, the directions that move it, and its mesh.

    Args:
        u: (3V,) mean, x, y, z of one vertex after another.
        w: (3V, 50) shape, then expression.
        keypoints: (68,) indices of vertices.
        triangles: (T, 3) int32.
        mean, std: (62,) that turn the network's output into parameters.

    Raises:
        HidaError: the sizes do not belong together.
    """

    u: np.ndarray
    w: np.ndarray
    keypoints: np.ndarray
    triangles: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    _sparse: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False, compare=False)
    """the rows of u and w that belong to the keypoints"""

    def __post_init__(self) -> None:
        size = self.u.size
        sound = (
            self.u.shape == (size,)
            and size % 3 == 0
            and self.w.shape == (size, SHAPE + EXPRESSION)
            and self.keypoints.shape == (KEYPOINTS,)
            and self.triangles.ndim == 2
            and self.triangles.shape[1] == 3
            and self.mean.shape == self.std.shape == (12 + SHAPE + EXPRESSION,)
            and within(self.keypoints, size // 3)
            and within(self.triangles, size // 3)
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
        """Read ``bfm.npz``, ``tri.pkl`` and ``param_mean_std_62d_120x120.pkl``.

        Raises:
            HidaError: a file is damaged or another one.
        """
        from hida.weights.archives import read_members
        from hida.weights.arrays import read_npy
        from hida.weights.foreign import load_arrays

        basis = Path(basis)
        try:
            names = ("u", "keypoints", "w_shp", "w_exp")
            members = read_members(basis, lambda name: name.removesuffix(".npy") in names)
            file = {name.removesuffix(".npy"): read_npy(content) for name, content in members.items()}
            u, keypoints = file["u"], file["keypoints"]
            w = np.concatenate((file["w_shp"], file["w_exp"]), axis=1)
        except (HidaError, ValueError, KeyError) as error:
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
        """Return pose (3×4, row by row), shape and expression, (62,), from the network's (62,) output."""
        return output * self.std + self.mean

    def vertices(self, parameters: np.ndarray) -> np.ndarray:
        """Return (V, 3) float32 in the model's frame: x right, y up, z towards the viewer; origin 1."""
        return _pose(self.u, self.w, parameters)

    def landmarks(self, parameters: np.ndarray) -> np.ndarray:
        """Return the 68 keypoints alone, (68, 3): rows of :meth:`vertices` at a fraction of its cost."""
        u, w = self._sparse
        return _pose(u, w, parameters)


def _pose(u: np.ndarray, w: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    pose = parameters[:12].reshape(3, 4)
    face = (u + w @ parameters[12:].astype(w.dtype)).reshape(-1, 3)
    return face @ pose[:, :3].T.astype(w.dtype) + pose[:, 3].astype(w.dtype)


def to_photo(points: np.ndarray, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """Carry points (K, 3) of a crop to pixels of the photo, y down, z in the same unit, float64.

    The model counts pixels from 1 (MATLAB) with y upwards.

    Args:
        points: (K, 3) in the crop.
        box: the crop's left, top, right, bottom in the photo.
        side: the crop's side in pixels.
    """
    left, top, right, bottom = box
    across, down = (right - left) / side, (bottom - top) / side
    x, y, z = points.astype(np.float64).T
    return np.stack(((x - 1) * across + left, (side - y) * down + top, z * (across + down) / 2), axis=1)
