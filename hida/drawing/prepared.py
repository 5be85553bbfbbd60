"""What is decided about a photo before it is drawn: its faces, the views, and their depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np

from hida import depth as depths
from hida.depth.maps import depth_from_file, require_depth_source
from hida.drawing.detail import Detail, require_detail
from hida.drawing.faces import Faces, choose, common_depth, find, require_faces
from hida.drawing.views import Plan, beside, plan, portrait, view_depth
from hida.errors import HidaError, warn
from hida.images.alignment import warp
from hida.images.io import ImageSource

Frame = Literal["auto", "portrait", "face", "whole"]
DepthSource = ImageSource
"""A method by name, or a map: a path, the bytes of a file, a picture, an array."""
DepthOfView = Callable[[int | None, np.ndarray, tuple[int, int]], np.ndarray]
"""From a face's index in the plan, or None for what surrounds the faces, its view's matrix and (width, height) to the
view's depth, float32 (height, width)."""
PORTRAIT_SIZE, PORTRAIT_SIZES = 800, (64, 8192)
"""Height of a portrait in pixels, and from where to where it may be chosen."""


class NoFaceError(HidaError):
    """No face was found in a photo that is to be drawn around one."""


class Drawn(NamedTuple):
    """What is drawn of a photo.

    Args:
        found: the number of faces in it, 0 if none were looked for.
        shown: the number of those that have views of their own.
        place: (2, 3), from pixels of the photo to pixels of the picture.
        size: (width, height) of the picture.
    """

    found: int
    shown: int
    place: np.ndarray
    size: tuple[int, int]


def check_options(frame: Frame, faces: Faces, size: int | None, detail: Detail = "auto") -> None:
    """Check what does not depend on the photo.

    Raises:
        HidaError: naming the argument that cannot be used.
    """
    if frame not in get_args(Frame):
        raise HidaError(f"frame is {frame!r}; give one of {', '.join(get_args(Frame))}.")
    require_faces(faces)
    require_detail(detail)
    if faces != "all" and frame == "whole":
        raise HidaError("faces has no effect with frame 'whole', which looks for none; leave one of the two out.")
    if detail == "fine" and frame == "whole":
        raise HidaError("detail is a face's and has no effect with frame 'whole'; leave one of the two out.")
    if size is None:
        return
    if frame not in ("portrait", "face"):
        raise HidaError(
            f"size is a portrait's and has no effect with frame {frame!r}; choose 'portrait', or leave it out."
        )
    low, high = PORTRAIT_SIZES
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not low <= size <= high:
        raise HidaError(f"size is {size!r}; give a portrait's height in pixels, {low} to {high}.")


def prepare(
    pixels: np.ndarray,
    depth: DepthSource | None,
    frame: Frame,
    faces: Faces,
    size: int | None = None,
    report: Callable[[Drawn], None] | None = None,
) -> tuple[Plan, DepthOfView, Callable[[], np.ndarray]]:
    """Return the views, a function that computes their depth, and one for the whole picture's (in seconds)."""
    photo = pixels.shape[1], pixels.shape[0]
    method = _method(depth)
    model = depths.resolve(method) if method in ("auto", "tddfa", "builtin") else "builtin"
    cut_out = frame in ("portrait", "face")
    found = [] if frame == "whole" else find(pixels, model)
    if not found and frame != "whole":
        if cut_out or depth is None or method in ("auto", "tddfa"):
            instead = " or a depth of its own (--depth builtin, midas:MODEL or a file)" if not cut_out else ""
            raise NoFaceError(
                "no face was found in the photo; give one that shows a face upright, or draw it as it is with "
                f"frame 'whole' (--frame whole){instead}."
            )
        warn("no face was found in the photo: it is drawn as it is")
    wanted = choose(found, faces)
    points = [face.points for face in wanted]
    views = portrait(photo, points, size or PORTRAIT_SIZE) if cut_out else plan(photo, points)
    large = choose(found, "all")
    views = beside(views, [face.points for face in large[len(wanted) :]])
    if report is not None:
        report(Drawn(len(found), len(views.faces), views.place, views.size))
    if depth is None or method in ("auto", "tddfa", "builtin"):
        deep = choose(find(pixels, model, faces), faces) if frame == "whole" else wanted

        def depth_of(index: int | None, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
            return common_depth(deep if index is None else [wanted[views.chosen[index]]], size, matrix)

        return views, depth_of, partial(common_depth, deep, views.size, views.place)
    if method is None:
        map_ = depth_from_file(depth, photo)
    else:
        name, _, network = method.partition(":")
        map_ = depths.predict(pixels, name, model=network or None)

    def depth_from_map(_: int | None, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return view_depth(map_, matrix, size)

    return views, depth_from_map, lambda: warp(map_, views.place, views.size, fill="black", resample="bilinear")


def require_depth(depth: DepthSource | None) -> None:
    """Check what does not depend on the photo.

    Raises:
        HidaError: if ``depth`` is no method and no source of a map.
    """
    if isinstance(depth, str):
        depths.require_method(depth)
    elif depth is not None:
        require_depth_source(depth)


def load_depth(depth: DepthSource | None) -> None:
    """Load the networks of a depth method, so that what is wrong with them is told before any photo is drawn.

    Raises:
        HidaError: its weights are missing, or it needs a network.
    """
    method, _, network = (_method(depth) or "none").partition(":")
    if method in ("auto", "tddfa", "builtin") and not network:
        depths.face_model(depths.resolve(method))
    else:
        depths.load(method, network or None)


def _method(depth: DepthSource | None) -> str | None:
    """Return the name of the depth method, with its network, that ``depth`` is; None for a map of the user's own."""
    require_depth(depth)
    if depth is None:
        return "auto"
    return depth if isinstance(depth, str) and depth.split(":")[0] in depths.METHODS else None
