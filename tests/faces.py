"""Doubles: a face where pictures are aligned to, a model that sees it in all photos but black ones, a detector."""

from __future__ import annotations

import numpy as np
from torch import nn

from hida.depth.face import Face
from hida.images.alignment import TEMPLATE, warp


class Cone(Face):
    """Its depth falls from the face's middle to the corners of the frame."""

    @property
    def points(self):
        return TEMPLATE.copy()

    def depth(self, size, matrix=None):
        y, x = np.mgrid[:250, :250]
        cone = (1 - np.hypot(x - 124, y - 130) / 200).clip(0).astype(np.float32)
        return warp(cone, np.eye(2, 3) if matrix is None else matrix, size, fill="black", resample="bilinear")


class Model:
    def faces(self, photo):
        return [Cone((60, 60, 190, 220), 0.9)] if photo.any() else []

    def group(self, photo):
        return self.faces(photo)

    def whole(self, photo):
        return Cone((0, 0, 1, 1), 0.0)


class Detector(nn.Module):
    """Sees these boxes in every photo."""

    def __init__(self, *boxes):
        super().__init__()
        self.boxes = np.array(boxes, float).reshape(-1, 4)

    def detect(self, photo, *, times=1):
        return self.boxes, np.linspace(0.9, 0.8, len(self.boxes))

    def detect_small(self, photo):
        return np.empty((0, 4)), np.empty(0)
