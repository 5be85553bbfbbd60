"""Which squares of a photo are drawn, and how the drawn squares become one picture.

The generator knows one thing: a face in its place in a 256×256 frame. A photo is therefore drawn as *views*: every
face upright at its place, at its own scale, and around the faces overlapping tiles at a scale that they share. Without
a face the photo is drawn as it is: in one piece up to 512 pixels, in overlapping tiles of 512 beyond, which see more of
it than the smaller ones and leave fewer seams. The picture is the photo's frame, or a portrait cut out of it.
Coordinates are pixels with integers at pixel centres; a view's matrix carries the photo's to its.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hida.data.framing import CROP
from hida.drawing.joining import FaceDrawing, blend_faces, covers
from hida.drawing.vignette import enlarged, photo_share, run_out
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

MARGIN = (CROP - FRAME[0]) // 2
"""The generator's frame is the aligned 250×250 one with 3 more pixels on each side."""
CANVAS = 896
"""Longest side, in drawn pixels, of what surrounds the faces: at most 49 tiles."""
LARGE = 2 * CROP
"""Side of the views of a photo without a face."""
WHOLE_CANVAS = 1536
"""Longest side, in drawn pixels, of a photo without a face: at most 16 large tiles."""
RIM = 32
"""Drawn pixels of a tile's own rim that are not used: sketches end there in the training data, some in white paper.
The tiles reach beyond the photo by as much."""
OVERLAP = 128
"""Drawn pixels that neighbouring tiles share at least: both rims, and the blend between them."""
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
        tiles: matrices of the other views.
        canvas: (width, height) that the tiles share; 0×0 without tiles.
        to_canvas: matrix from the picture to the canvas.
        side: of every tile, in pixels.
        photo: (width, height) of the photo.
        place: matrix from the photo to the picture.
    """

    size: tuple[int, int]
    faces: tuple[np.ndarray, ...]
    chosen: tuple[int, ...]
    tiles: tuple[np.ndarray, ...]
    canvas: tuple[int, int]
    to_canvas: np.ndarray
    side: int
    photo: tuple[int, int]
    place: np.ndarray

    @property
    def views(self) -> tuple[np.ndarray, ...]:
        """The matrices of all views: the tiles, then the faces."""
        return (*self.tiles, *self.faces)

    @property
    def grain(self) -> float:
        """Pixels of the picture for each pixel that is drawn: of the largest face, or of a photo without one."""
        return scale_of(self.place) / scale_of(self.faces[0]) if self.faces else 1 / scale_of(self.to_canvas)


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
        longest = max(size)
        # A photo little larger than a small view is not worth a large one, in which it would be enlarged.
        side = CROP if longest <= 1.5 * CROP else LARGE
        return _tiled(size, (), side / longest if longest <= LARGE else min(1.0, WHOLE_CANVAS / longest), side)
    views = [view_of_face(points, size) for points in faces]
    if covers(views[0], size):
        return Plan(size, tuple(views), tuple(range(len(views))), (), (0, 0), IDENTITY, CROP, size, IDENTITY)
    return _tiled(size, views, min(_common_scale(views), CANVAS / max(size)))


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
    corners = np.array([[-0.5, -0.5], np.subtract(size, 0.5)]) - eyes.mean(0)
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
    seen = [k for k, other in enumerate(views) if _meets(compose(from_picture, other), (width, height), CROP)]
    scale = scale_of(view) / scale_of(place)
    return _tiled((width, height), views, scale, chosen=seen, photo=size, place=place)


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

    Strokes are as wide as the scale says, so that this is the scale at which they change least from the tiles to the
    views. One of the largest face's would draw the others' shoulders with strokes that are too wide for them, one of
    the smallest would fill a large person's clothes with detail, and cost more.
    """
    if len(views) == 1:
        return scale_of(views[0])
    scales = np.array([scale_of(view) for view in views])
    return float(np.exp(np.average(np.log(scales), weights=1 / scales)))


def _tiled(
    size: tuple[int, int],
    faces: Sequence[np.ndarray],
    scale: float,
    side: int = CROP,
    chosen: Sequence[int] | None = None,
    photo: tuple[int, int] | None = None,
    place: np.ndarray = IDENTITY,
) -> Plan:
    # A picture smaller than one view is drawn larger, or it would be mostly border.
    scale = max(scale, CROP / max(size))
    width, height = (max(1, round(length * scale)) for length in size)
    canvas = width, height
    # Pixel centres: x' = (x + 0.5)·k − 0.5, with k such that the picture's edges meet the canvas's.
    kx, ky = canvas[0] / size[0], canvas[1] / size[1]
    to_canvas = np.array([[kx, 0, kx / 2 - 0.5], [0, ky, ky / 2 - 0.5]])
    lefts, tops = (_starts(length, side) for length in canvas)
    from_photo = compose(place, to_canvas)
    tiles = (compose(from_photo, shift(-left, -top)) for top in tops for left in lefts)
    # Where a portrait reaches beyond the photo there is nothing to draw.
    photo = photo or size
    seen = tuple(tile for tile in tiles if _meets(tile, photo, side))
    chosen = range(len(faces)) if chosen is None else chosen
    views = tuple(faces[k] for k in chosen)
    return Plan(size, views, tuple(chosen), seen, canvas, to_canvas, side, photo, place)


def _starts(length: int, side: int) -> list[float]:
    """Return where tiles of ``side`` begin along a length: evenly spread, centred if one is enough."""
    if length <= side:
        return [float(-((side - length) // 2))]
    room = length + 2 * RIM
    count = math.ceil((room - OVERLAP) / (side - OVERLAP))
    return [float(round(k * (room - side) / (count - 1)) - RIM) for k in range(count)]


def shift(x: float, y: float) -> np.ndarray:
    """Return the matrix that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def _meets(matrix: np.ndarray, size: tuple[int, int], side: int) -> bool:
    """Return whether the square view of a matrix shows any of a picture of ``size``."""
    # A view is a turned square in the picture: its bounding box is near enough.
    corners = apply(invert(matrix), [[-0.5, -0.5], [side - 0.5, -0.5], [-0.5, side - 0.5], [side - 0.5, side - 0.5]])
    return bool((corners.max(0) > -0.5).all() and (corners.min(0) < np.array(size) - 0.5).all())


def compose_picture(plan: Plan, tiles: Sequence[np.ndarray], faces: Sequence[FaceDrawing]) -> Image.Image:
    """Join what was drawn into a grey picture of ``plan.size``.

    Args:
        tiles: uint8 squares of ``plan.side``, in the order of ``plan.tiles``.
        faces: the drawings of ``plan.faces``, in their order.
    """
    if plan.tiles:
        picture = blend_faces(_resized(_joined(plan, tiles), plan), faces, plan.place)
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
    if is_identity(plan.place):
        return None
    share = photo_share(plan.canvas, compose(plan.place, plan.to_canvas), plan.photo)
    return None if share is None else enlarged(share, plan.size)


def _joined(plan: Plan, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """Blend the tiles on the canvas, each pixel weighted by its distance to its tile's rim."""
    width, height = plan.canvas
    side = plan.side
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]).astype(np.float32)
    # Never quite zero: where one tile is enough, its rim is all there is.
    ramp = np.clip((distance - RIM) / (OVERLAP - 2 * RIM), 1e-4, 1)
    window = ramp[:, None] * ramp
    total, weights = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    from_canvas = invert(compose(plan.place, plan.to_canvas))
    for matrix, tile in zip(plan.tiles, drawn, strict=True):
        left, top = (round(-value) for value in compose(from_canvas, matrix)[:, 2])
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
        inner = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        total[y0:y1, x0:x1] += tile[inner] * window[inner]
        weights[y0:y1, x0:x1] += window[inner]
    # Beyond the photo, where a portrait has no tiles, is paper.
    total[weights == 0], weights[weights == 0] = 255, 1
    return np.rint(total / weights).clip(0, 255).astype(np.uint8)


def _resized(canvas: np.ndarray, plan: Plan) -> np.ndarray:
    if (canvas.shape[1], canvas.shape[0]) == plan.size:
        return canvas
    return np.asarray(Image.fromarray(canvas).resize(plan.size, Image.Resampling.BICUBIC))


def view_photo(photo: np.ndarray, matrix: np.ndarray, side: int = CROP) -> np.ndarray:
    """Return the square view of an H×W×3 uint8 photo; beyond its edge the edge continues."""
    if is_identity(matrix) and photo.shape[:2] == (side, side):
        return photo
    return warp(photo, matrix, (side, side), fill="replicate")


def view_depth(depth: np.ndarray, matrix: np.ndarray, side: int = CROP) -> np.ndarray:
    """Return the square view of an H×W depth map in [0, 1]; beyond its edge it is far."""
    return np.clip(warp(depth.astype(np.float32), matrix, (side, side), fill="black", resample="bilinear"), 0, 1)


def view_weights(weights: np.ndarray, matrix: np.ndarray, side: int = CROP) -> np.ndarray:
    """Return the square view of H×W×S style weights; beyond their edge the edge continues."""
    planes = [np.ascontiguousarray(plane, np.float32) for plane in weights.transpose(2, 0, 1)]
    return np.stack([warp(plane, matrix, (side, side), fill="replicate", resample="bilinear") for plane in planes], 2)
