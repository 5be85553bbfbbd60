"""Predict the depth of a face by 3DDFA_V2: detect, fit a morphable model, draw its mesh.

Guo et al., Towards Fast, Accurate and Stable 3D Dense Face Alignment, https://arxiv.org/abs/2009.09960
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from hida.depth.face import Face, FaceModel
from hida.depth.faceboxes import FaceBoxes, check_photo
from hida.depth.mobilenet import SIDE, MobileNet, crop
from hida.depth.morphable import MorphableModel, to_photo
from hida.depth.raster import depth_map
from hida.depth.search import find_faces, find_group

# From the detector's box to the network's: lower by this share of the mean side, and this many times as large.
_DOWN, _GROW = 0.14, 1.58
_LEFT_EYE, _RIGHT_EYE, _MOUTH = slice(36, 42), slice(42, 48), slice(48, 68)


@dataclass(frozen=True)
class TDDFAFace(Face):
    """A face fitted when it is first asked for its points or depth. It keeps its own crop, not the photo."""

    model: TDDFA = field(repr=False, compare=False)
    roi: tuple[float, float, float, float] = field(repr=False)
    square: torch.Tensor = field(repr=False, compare=False)

    @cached_property
    def parameters(self) -> np.ndarray:
        """(62,) pose, shape and expression."""
        with torch.inference_mode():
            output = self.model.regressor(self.square.to(self.model.regressor.fc_param.weight.device))
        return self.model.morphable.parameters(output[0].float().cpu().numpy())

    @cached_property
    def landmarks(self) -> np.ndarray:
        """(68, 3) keypoints in pixels of the photo; z in the same unit, towards the viewer, of arbitrary origin."""
        return to_photo(self.model.morphable.landmarks(self.parameters), self.roi, SIDE)

    @cached_property
    def vertices(self) -> np.ndarray:
        """(V, 3) the whole mesh, as :attr:`landmarks`, with z from 0."""
        vertices = to_photo(self.model.morphable.vertices(self.parameters), self.roi, SIDE)
        vertices[:, 2] -= vertices[:, 2].min()
        return vertices

    @property
    def points(self) -> np.ndarray:
        return np.stack([self.landmarks[part, :2].mean(axis=0) for part in (_LEFT_EYE, _RIGHT_EYE, _MOUTH)])

    def depth(self, size: tuple[int, int], matrix: np.ndarray | None = None) -> np.ndarray:
        vertices = self.vertices
        if matrix is not None:
            matrix = np.asarray(matrix, np.float64)
            # z needs no scaling: the map is normalised by its range.
            vertices = np.column_stack((vertices[:, :2] @ matrix[:, :2].T + matrix[:, 2], vertices[:, 2]))
        return depth_map(vertices, self.model.morphable.triangles, size)


class TDDFA(FaceModel):
    """The detector, the regressor and the morphable model together."""

    def __init__(self, detector: FaceBoxes, regressor: MobileNet, morphable: MorphableModel) -> None:
        self.detector, self.regressor, self.morphable = detector, regressor, morphable

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None) -> TDDFA:
        """Read the six files from ``folder``, or from wherever :mod:`hida.weights` finds them.

        Raises:
            HidaError: some are missing, and how to get them.
        """
        from hida.weights import find_all

        faceboxes, mb05, *model = find_all(("faceboxes", "mb05", "bfm", "tri", "param_mean_std"), folder)
        return cls(FaceBoxes.from_file(faceboxes), MobileNet.from_file(mb05), MorphableModel.from_files(*model))

    def faces(self, photo: np.ndarray) -> list[Face]:
        """Return the faces in an (H, W, 3) uint8 RGB photo, the largest first; each is fitted only when it is used."""
        check_photo(photo)
        return find_faces(photo, self.detector, self._faces)

    def group(self, photo: np.ndarray) -> list[Face]:
        """Return the faces of a photo that are worth drawing; see :func:`hida.depth.search.find_group`."""
        check_photo(photo)
        return find_group(photo, self.detector, self._faces)

    def _faces(self, photo: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> list[Face]:
        """Return the faces in ``boxes`` that have any extent."""
        found: list[Face] = []
        with torch.inference_mode():
            pixels = torch.from_numpy(photo.copy())
            for box, score in zip(boxes, scores, strict=True):
                roi = region(box)
                left, top, right, bottom = (round(limit) for limit in roi)
                if right <= left or bottom <= top:
                    continue
                square = crop(pixels, left, top, right, bottom)
                found.append(TDDFAFace(tuple(box.tolist()), float(score), self, roi, square))
        return found


def region(box: np.ndarray) -> tuple[float, float, float, float]:
    """Return the square that the regressor sees, for a detector's box: left, top, right, bottom."""
    left, top, right, bottom = (float(limit) for limit in box)
    mean = (right - left + bottom - top) / 2
    x, y, side = (left + right) / 2, (top + bottom) / 2 + mean * _DOWN, int(mean * _GROW)
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2
