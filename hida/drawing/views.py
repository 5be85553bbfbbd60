"""Which squares of a photo are drawn, and how the drawn squares become one picture.

The generator knows one thing: a face in its place in a 256×256 frame. A photo is therefore drawn as *views*: every
face upright at its place, at its own scale, and all that surrounds the faces in one view of as many pixels as it needs,
at a scale that suits them. In one piece, because the generator tells what is a person, and worth drawing, from what is
behind one: in pieces of 256 pixels it takes each for a person, draws blotches on walls, and breaks off at their borders
(it also took four times as long). Without a face the photo is drawn as it is, in that view alone. The picture is the
photo's frame, or a portrait cut out of it.
Coordinates are pixels with integers at pixel centres; a view's matrix carries the photo's to its.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from hida.data.framing import CROP
from hida.drawing.joining import FaceDrawing, blend_faces, covers, on_its_paper
from hida.drawing.surroundings import SHRINK_WHOLE, Surroundings, laid, part_of, people, surroundings
from hida.drawing.vignette import photo_share, run_out
from hida.images.alignment import (
    FRAME,
    IDENTITY,
    TEMPLATE,
    apply,
    compose,
    invert,
    is_identity,
    placement,
    scale_of,
    warp,
)

KEPT = 8
"""Views of a photo that are kept."""
MARGIN = (CROP - FRAME[0]) // 2
"""The generator's frame is the aligned 250×250 one with 3 more pixels on each side."""
PORTRAIT = (6.0, 7.5)
"""Width and height of a portrait in distances of the eyes: a head is about 2.6 wide and 4 high, shoulders are about 6
wide."""
CLOSEST = 0.64
"""Down to what share of that a portrait is narrowed where the photo shows less: to little more than a head."""
EYES = (0.5, 0.4)
"""Where the middle of the eyes is in a portrait, as shares of its width and height."""
TILT = 25.0
"""Degrees by which a head may be tilted and stay as it is. Whether the head is tilted or the camera cannot be told from
a face; people tilt their heads by no more."""
ASIDE = np.array([[-0.1, -0.06], [0.1, 0.1]])
"""How far a portrait may move, to the left and up, to the right and down, to stay inside the photo: shares likewise."""


@dataclass(frozen=True)
class Plan:
    """The views of one photo.

    Args:
        size: (width, height) of the picture.
        faces: matrices of the faces' views, the largest face first; every view is 256×256.
        chosen: which of the faces that were given these are: a portrait does not show all.
        around: what surrounds them, and over it the part with people if that deserves more pixels; nothing where the
            first face's view shows the whole photo.
        photo: (width, height) of the photo.
        place: matrix from the photo to the picture.
        others: matrices of the views that faces would have that were found and have none.
    """

    size: tuple[int, int]
    faces: tuple[np.ndarray, ...]
    chosen: tuple[int, ...]
    around: tuple[Surroundings, ...]
    photo: tuple[int, int]
    place: np.ndarray
    others: tuple[np.ndarray, ...] = ()

    @property
    def grain(self) -> float:
        """Pixels of the picture for each pixel that is drawn: of the largest face, or of a photo without one."""
        if self.around and not self.faces:
            return 1 / self.around[0].scale
        return scale_of(self.place) / scale_of(self.faces[0])


def face_points(plan: Plan) -> list[np.ndarray]:
    """Return for each face that has a view about where its eyes and its mouth are in the photo, (3, 2)."""
    return [apply(invert(face), TEMPLATE + MARGIN) for face in plan.faces]


def plan(size: tuple[int, int], faces: Sequence[np.ndarray]) -> Plan:
    """Choose the views of a photo of ``size``, drawn whole.

    Args:
        size: (width, height).
        faces: the points (3, 2) of every face that gets a view, the largest first; none to draw the photo as it is.
    """
    if not faces:
        # A photo little larger than a small view is not worth a large one.
        scale = CROP / max(size) if max(size) <= 1.5 * CROP else 1.0
        return Plan(size, (), (), (surroundings(size, scale, IDENTITY, shrink=SHRINK_WHOLE),), size, IDENTITY)
    views = [view_of_face(points, size) for points in faces]
    around: tuple[Surroundings, ...] = ()
    if not covers(views[0], size):
        wide = surroundings(size, _common_scale(views), IDENTITY)
        around = (wide, *people(size, views, wide))
    return Plan(size, tuple(views), tuple(range(len(views))), around, size, IDENTITY)


def portrait(size: tuple[int, int], faces: Sequence[np.ndarray], longest: int) -> Plan:
    """Choose the views of the first face's portrait: its head and shoulders, in a picture of 4:5.

    The person keeps the tilt of the head, which is character; a photo that is turned is turned upright, by quarters, or
    as it must be that has a head tilted beyond what a neck does. Faces beside the first that are in the picture have
    their views, too.

    Args:
        size: (width, height) of the photo.
        faces: the points (3, 2) of every face that gets a view, that of the portrait first.
        longest: height of the picture.
    """
    view = view_of_face(faces[0], size)
    # The aligned frame defines the distance of the eyes, which a turned head's own points would make too short.
    eyes = apply(invert(view), TEMPLATE[:2] + MARGIN)
    along = complex(*(eyes[1] - eyes[0]))
    upright = np.exp(1j * np.deg2rad(_kept_tilt(math.degrees(np.angle(along))))) * abs(along) / along
    # The photo turned upright, told in distances of the eyes from the middle of the eyes.
    right, bottom = np.subtract(size, 0.5)
    corners = np.array([[-0.5, -0.5], [right, -0.5], [-0.5, bottom], [right, bottom]]) - eyes.mean(0)
    corners = corners @ (1, 1j) * upright / abs(along)
    low, high = (np.array([pick(corners.real), pick(corners.imag)]) for pick in (np.min, np.max))
    extent = np.array(PORTRAIT) * np.clip(((high - low) / PORTRAIT).min(), CLOSEST, 1)
    first = -extent * EYES
    # Moved into the photo, or to its middle if that shows less, as far as the eyes may move.
    room = np.sort([low - first, high - first - extent], axis=0)
    into = np.where(high - low < extent, room.mean(0), np.clip(0, room[0], room[1]))
    first += np.clip(into, *(extent * ASIDE))
    height = longest
    width = max(1, round(height * PORTRAIT[0] / PORTRAIT[1]))
    factor = height / extent[1] / abs(along) * upright
    moved = -factor * complex(*eyes.mean(0)) - complex(*first) * height / extent[1] - (0.5 + 0.5j)
    place = np.array([[factor.real, -factor.imag, moved.real], [factor.imag, factor.real, moved.imag]])
    views = [view_of_face(points, size) for points in faces]
    from_picture = invert(place)
    seen = [k for k, other in enumerate(views) if _meets(compose(from_picture, other), (width, height))]
    around = surroundings((width, height), scale_of(view) / scale_of(place), place)
    return Plan((width, height), tuple(views[k] for k in seen), tuple(seen), (around,), size, place)


def _kept_tilt(angle: float) -> float:
    """Return the tilt that a head has in its portrait, both in degrees; quarter turns are not tilt.

    Up to :data:`TILT` it is the photo's. Beyond, the photo is turned; the more, the more upright, so that nearly equal
    photos have nearly equal portraits.
    """
    tilt = (angle + 45) % 90 - 45
    return math.copysign(min(abs(tilt), max(0.0, 3 * TILT - 2 * abs(tilt))), tilt)


def view_of_face(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the matrix of the view of a face with ``points`` (3, 2) in a photo of ``size``."""
    return compose(placement(points, size), shift(MARGIN, MARGIN))


def _common_scale(views: Sequence[np.ndarray]) -> float:
    """Return the scale of what surrounds several faces: their mean, weighted by how long the borders are.

    Strokes are as wide as the scale says, so that this is the scale at which they change least from there to the
    views. One of the largest face's would draw the others' shoulders with strokes that are too wide for them, one of
    the smallest would fill a large person's clothes with detail, and cost more.
    """
    if len(views) == 1:
        return scale_of(views[0])
    scales = np.array([scale_of(view) for view in views])
    return float(np.exp(np.average(np.log(scales), weights=1 / scales)))


def only(views: Plan, wanted: np.ndarray) -> Plan:
    """Return the plan with no more around the faces than is wanted.

    Args:
        wanted: (H, W) of the picture; where it is 0 the picture stays white.
    """
    if not views.around or not wanted.any():
        return views
    return replace(views, around=(part_of(views.around[0], views.size, views.place, wanted),))


def shift(x: float, y: float) -> np.ndarray:
    """Return the matrix that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def _meets(matrix: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether the 256×256 view of a matrix shows any of a picture of ``size``."""
    # A view is a turned square in the picture: its bounding box is near enough.
    edge = CROP - 0.5
    corners = apply(invert(matrix), [[-0.5, -0.5], [edge, -0.5], [-0.5, edge], [edge, edge]])
    return bool((corners.max(0) > -0.5).all() and (corners.min(0) < np.array(size) - 0.5).all())


def beside(views: Plan, points: Sequence[np.ndarray]) -> Plan:
    """Return the plan for a photo that has other faces, of ``points`` (3, 2), which have no views of their own."""
    return replace(views, others=tuple(view_of_face(each, views.photo) for each in points))


def compose_picture(plan: Plan, around: Sequence[np.ndarray], faces: Sequence[FaceDrawing]) -> Image.Image:
    """Join what was drawn into a grey picture of ``plan.size``.

    Args:
        around: uint8, the sketches of ``plan.around``, in their order.
        faces: the drawings of ``plan.faces``, in their order.
    """
    if plan.around:
        picture = laid(around, plan.around, plan.size)
        picture = blend_faces(picture, on_its_paper(picture, faces, plan.place), plan.place, plan.others)
    else:
        # The first face's view shows the whole photo: there is nothing that it could give way to but other faces.
        picture = warp(faces[0].sketch, compose(invert(faces[0].matrix), plan.place), plan.size, fill="replicate")
        picture = blend_faces(picture, faces, plan.place) if len(faces) > 1 else picture
    share = _share(plan)
    return Image.fromarray(picture if share is None else run_out(picture, share))


def picture_matte(matte: np.ndarray, plan: Plan) -> np.ndarray:
    """Return a photo's uint8 (H, W) matte as the picture shows it: it runs out where a portrait does."""
    shown = warp(matte, plan.place, plan.size, fill="replicate")
    share = _share(plan)
    return shown if share is None else np.rint(shown * share).astype(np.uint8)


def _share(plan: Plan) -> np.ndarray | None:
    """Return how much of a portrait is drawn in each of its pixels; None if all of it, as it is of whole photos."""
    return None if is_identity(plan.place) else photo_share(plan.size, plan.place, plan.photo, plan.grain)


def view_photo(photo: np.ndarray, matrix: np.ndarray, size: tuple[int, int] = (CROP, CROP)) -> np.ndarray:
    """Return the view, of ``size`` (width, height), of an H×W×3 uint8 photo; beyond its edge the edge continues."""
    if is_identity(matrix) and photo.shape[1::-1] == size:
        return photo
    return warp(photo, matrix, size, fill="replicate")


class Viewed:
    """A photo, uint8 (H, W, 3), whose views are made once: how finely a face is drawn is chosen by what will be drawn.

    The last few are kept; one of a large photo takes as long as a fifth of its drawing.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self._views: dict[tuple[bytes, tuple[int, int]], np.ndarray] = {}

    def view(self, matrix: np.ndarray, size: tuple[int, int] = (CROP, CROP)) -> np.ndarray:
        """Return :func:`view_photo` of it; not to be written to."""
        key = np.asarray(matrix, np.float64).tobytes(), size
        if key not in self._views:
            if len(self._views) >= KEPT:
                del self._views[next(iter(self._views))]
            self._views[key] = view_photo(self.pixels, matrix, size)
        return self._views[key]


def view_depth(depth: np.ndarray, matrix: np.ndarray, size: tuple[int, int] = (CROP, CROP)) -> np.ndarray:
    """Return the view of an H×W depth map in [0, 1]; beyond its edge it is far."""
    return np.clip(warp(depth.astype(np.float32), matrix, size, fill="black", resample="bilinear"), 0, 1)


def view_weights(weights: np.ndarray, matrix: np.ndarray, size: tuple[int, int] = (CROP, CROP)) -> np.ndarray:
    """Return the view of H×W×S style weights; beyond their edge the edge continues."""
    styles = [np.ascontiguousarray(style, np.float32) for style in weights.transpose(2, 0, 1)]
    return np.stack([warp(style, matrix, size, fill="replicate", resample="bilinear") for style in styles], 2)
