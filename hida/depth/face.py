"""What the rest of the program knows of a face, whichever model found it.

Pixel coordinates are (x, y) with the centre of the top left pixel at (0, 0).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hida.errors import HidaError


@dataclass(frozen=True)
class Face(ABC):
    """A face found in a photo.

    Args:
        box: (x0, y0, x1, y1) in pixels of the photo, possibly reaching over its edge.
        score: 0 to 1.
    """

    box: tuple[float, float, float, float]
    score: float

    @property
    @abstractmethod
    def points(self) -> np.ndarray:
        """(3, 2) float64: centres of the eye on the left, of the one on the right, seen upright, and of the mouth."""

    @abstractmethod
    def depth(self, size: tuple[int, int], matrix: np.ndarray | None = None) -> np.ndarray:
        """Draw the face's depth straight into the target frame, not resampled.

        Args:
            size: (width, height) of the result.
            matrix: (2, 3) similarity that takes pixels of the photo to pixels of the result; None is the identity.

        Returns:
            float32 (height, width) in [0, 1]: nearest 1, farthest and background 0.
        """


class FaceModel(Protocol):
    """Anything that finds faces and knows their depth."""

    def faces(self, photo: np.ndarray) -> list[Face]:
        """Return the faces in an (H, W, 3) uint8 RGB photo, the largest first; empty when there is none.

        The photo may be turned by quarters.
        """
        ...

    def group(self, photo: np.ndarray) -> list[Face]:
        """Return the first face of :meth:`faces`, and of the others those that look like faces when seen again."""
        ...


def largest_face(photo: np.ndarray, model: FaceModel) -> Face:
    """Return the largest face of an (H, W, 3) uint8 RGB photo.

    Raises:
        HidaError: there is none.
    """
    faces = model.faces(photo)
    if not faces:
        raise HidaError("no face was found in the photo; give one that shows a face, upright and not cut off.")
    return faces[0]
