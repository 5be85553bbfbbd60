"""Which faces of a photo get a view of their own, and the depth of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hida import depth as depths
from hida.depth.face import Face
from hida.errors import HidaError
from hida.images.alignment import apply, invert

Faces = Literal["all", "largest"] | int
"""Every face, the largest, or so many of the largest."""
SMALLEST = 20
"""Pixels of a face's box, the mean of its sides, below which a face has no view: about 9 between the eyes."""
_REACH = 2.0
"""Within how many times a face's box its depth is: 3DDFA's mesh reaches to 1.6 times of it."""


def require_faces(faces: Faces) -> None:
    """Check the choice of faces.

    Raises:
        HidaError: if it is none.
    """
    number = isinstance(faces, int | np.integer) and not isinstance(faces, bool) and faces >= 1
    if not number and not (isinstance(faces, str) and faces in ("all", "largest")):
        raise HidaError(f"faces is {faces!r}; give 'all', 'largest', or how many of the largest, a number from 1.")


def find(pixels: np.ndarray, model: str, faces: Faces = "all") -> list[Face]:
    """Return the faces of a photo that ``faces`` chooses from, the largest first."""
    finder = depths.face_model(model)
    # For the largest the others need not be looked at again.
    return finder.faces(pixels)[:1] if faces in ("largest", 1) else finder.group(pixels)


def choose(found: Sequence[Face], faces: Faces) -> list[Face]:
    """Return those of the faces that are chosen and large enough; the largest always is."""
    large = [face for face in found[1:] if (face.box[2] - face.box[0] + face.box[3] - face.box[1]) / 2 >= SMALLEST]
    count = {"all": None, "largest": 1}[faces] if isinstance(faces, str) else faces
    return [*found[:1], *large][:count]


def common_depth(faces: Sequence[Face], size: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    """Return the depth of any number of faces in one map, the nearest value of each pixel: float32 in [0, 1].

    Every face has a range of its own, from 0 at its outline to 1 at its nose, as the generator knows it; how much
    nearer one face is than another does not show. Without a face all is far: where one is supposed, it is drawn.

    Args:
        size: (width, height) of the map.
        matrix: from the photo to the map.
    """
    if len(faces) == 1:
        return faces[0].depth(size, matrix)
    result = np.zeros((size[1], size[0]), np.float32)
    right, bottom = size[0] - 0.5, size[1] - 0.5
    corners = apply(invert(matrix), [[-0.5, -0.5], [right, -0.5], [-0.5, bottom], [right, bottom]])
    low, high = corners.min(0), corners.max(0)
    for face in faces:
        box = np.reshape(face.box, (2, 2))
        half = (box[1] - box[0]).max() / 2 * _REACH
        if (box.mean(0) + half > low).all() and (box.mean(0) - half < high).all():
            np.maximum(result, face.depth(size, matrix), out=result)
    return result
