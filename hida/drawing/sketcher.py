"""Draw photos with a trained generator: the one object that an application needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hida import depth as depths
from hida import weights
from hida.config import Config
from hida.data.dataset import PairTensors
from hida.data.framing import CROP, centred_batch
from hida.depth.face import Face
from hida.depth.maps import depth_from_file
from hida.device import choose_device
from hida.drawing.styles import Style, mixture_weights, require_style
from hida.drawing.views import Plan, compose_picture, plan, view_depth, view_photo, view_weights
from hida.errors import HidaError
from hida.images.io import ImageSource, read_image
from hida.images.opening import require_room
from hida.models.generator import Generator
from hida.weights.checkpoint import load_generator

Frame = Literal["auto", "face", "whole"]
DepthSource = str | os.PathLike[str] | np.ndarray
BATCH = 8


class NoFaceError(HidaError):
    """No face was found in a photo that is to be drawn around one."""


class Sketcher:
    """Draw photos with a trained generator.

    ::

        sketcher = Sketcher.from_pretrained("small")
        sketch = sketcher("photo.jpg", style=1)                 # PIL "L", the size of the photo
        sketches = sketcher([a, b, c], style=[1, 2, 3])         # one style for each photo
        sketches = sketcher("photo.jpg", style=[1, 2, 3])       # one photo in three styles

    ``generator`` is the network, ``config`` its frozen configuration.
    """

    def __init__(self, generator: Generator, config: Config, device: str = "cpu") -> None:
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.config = config

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str] = "small", device: str = "cpu") -> Sketcher:
        """Load built-in weights by name, a weights or checkpoint file, or the newest checkpoint of a run's folder.

        Args:
            device: "cpu", "cuda", "cuda:1", or "auto", which is a GPU where there is one.

        Raises:
            HidaError: if there are no such weights, they are damaged, or there is no such device.
        """
        return cls(*load_generator(weights.generator_path(name)), choose_device(device))

    @property
    def styles(self) -> int:
        """The number of styles that these weights can draw; one if the style does not enter the network."""
        return self.config.generator.styles if self.config.generator.style_map else 1

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def __call__(
        self,
        photo: ImageSource | Sequence[ImageSource],
        style: Style | Sequence[Style] = 1,
        depth: DepthSource | Sequence[DepthSource] | None = None,
        frame: Frame = "auto",
    ) -> Image.Image | list[Image.Image]:
        """Draw one photo or several.

        Args:
            photo: a path, a PIL image, an H×W(×3) array, or a list of these.
            style: 1 … S, a mixture such as ``{1: 0.6, 3: 0.4}``, or an (H, W, S) array of weights for each pixel. A
                list gives one for each photo of a list, or several drawings of a single photo.
            depth: None or "auto", "tddfa", "builtin", "midas:MODEL", "none", a file or an H×W array in [0, 1] of the
                photo's size; a list gives one for each photo.
            frame: "auto" draws the whole photo with its face upright at its own scale; a photo without a face is drawn
                as it is if ``depth`` does not need one. "face" leaves the paper white around the face. "whole" draws
                the photo as it is and looks for no face.

        Returns:
            Grey PIL images of the photos' sizes: a list if ``photo`` or ``style`` is one.

        Raises:
            HidaError: if an argument, or a photo, cannot be used; the message names it.
        """
        if frame not in get_args(Frame):
            raise HidaError(f"frame is {frame!r}; give one of {', '.join(get_args(Frame))}.")
        if isinstance(style, str | bytes | bool) or not isinstance(
            style, int | np.integer | Mapping | np.ndarray | Sequence
        ):
            raise HidaError(f"style is {style!r}; give a whole number from 1, a mixture {{number: weight}}, or a map.")
        several = isinstance(photo, list | tuple)
        photos: list[ImageSource] = _entries(photo)
        depths_given: list[DepthSource | None] = _entries(depth, len(photos))
        styles: list[Style]
        if isinstance(style, int | np.integer | Mapping | np.ndarray):
            styles, listed = [style] * len(photos), several
        else:
            styles, listed = list(style), True
        if several and len(styles) != len(photos):
            raise HidaError(f"style has {len(styles)} entries for {len(photos)} photos; give one for each.")
        if len(depths_given) != len(photos):
            raise HidaError(f"depth has {len(depths_given)} entries for {len(photos)} photos; give one for each.")
        self.require_styles(styles)
        wanted = [[number] for number in styles] if several else [styles]
        sketches = [
            sketch
            for source, numbers, map_ in zip(photos, wanted, depths_given, strict=True)
            for sketch in self.draw(source, numbers, map_, frame)[0]
        ]
        return sketches if listed else sketches[0]

    def require_styles(self, styles: Sequence[Style]) -> None:
        """Check that these weights can draw every style.

        Raises:
            HidaError: naming the first that they cannot draw.
        """
        for style in styles:
            require_style(style, self.styles)

    @torch.inference_mode()
    def draw(
        self,
        photo: ImageSource,
        styles: Sequence[Style],
        depth: DepthSource | None = None,
        frame: Frame = "auto",
        show_depth: bool = False,
    ) -> tuple[list[Image.Image], Image.Image | None]:
        """Draw one photo in ``styles``; arguments and errors are those of :meth:`__call__`.

        Returns:
            The sketches, and, with ``show_depth``, the depth map of the whole photo as a picture.
        """
        image = read_image(photo)
        pixels = np.asarray(image)
        views, depth_views, depth_map = self._prepare(pixels, depth, frame)
        steering = [self._steering(style, views) for style in styles]
        drawn: list[list[np.ndarray]] = [[] for _ in styles]
        count = max(1, BATCH * CROP**2 // views.side**2)
        for start in range(0, len(depth_views), count):
            some = slice(start, start + count)
            photos = np.stack([view_photo(pixels, matrix, views.side) for matrix in views.views[some]])
            maps = torch.from_numpy(np.stack(depth_views[some])).to(self.device)[:, None]
            pieces = self._drawn(_from_bytes(photos, self.device), maps, [style[some] for style in steering])
            for sketches_of_style, sketch in zip(drawn, pieces, strict=True):
                sketches_of_style.extend(sketch)
        sketches = [compose_picture(views, pieces) for pieces in drawn]
        shown = Image.fromarray(np.rint(depth_map() * 255).astype(np.uint8)) if show_depth else None
        return sketches, shown

    def _drawn(self, photos: Tensor, maps: Tensor, styles: Sequence[Tensor]) -> list[np.ndarray]:
        """Return uint8 sketches (N, H, W) of views in every style; what the network makes on the way ends here."""
        encoded = self.generator.encode(photos, maps)._replace(stem_depth=None)  # which only the depth's head reads
        sketches = (self.generator.sketch(self.generator.decode(encoded, style), encoded) for style in styles)
        return [_bytes(sketch)[:, 0].cpu().numpy() for sketch in sketches]

    def main_view(
        self, photo: ImageSource, depth: DepthSource | None = None, frame: Frame = "auto"
    ) -> tuple[Tensor, Tensor]:
        """Return the photo and the depth of the face's view, or of the first view of a photo without a face.

        Returns:
            (1, 3, H, W) in [−1, 1] and (1, 1, H, W) in [0, 1], as the generator takes them.
        """
        pixels = np.asarray(read_image(photo))
        views, depth_views, _ = self._prepare(pixels, depth, frame)
        # The face's view is the last one.
        index = 0 if views.face is None else -1
        view = _from_bytes(view_photo(pixels, views.views[index], views.side)[None], self.device)
        map_ = torch.from_numpy(depth_views[index]).to(self.device)[None, None]
        return view, map_

    @torch.inference_mode()
    def draw_aligned(self, photos: Tensor, depths: Tensor, styles: Tensor) -> Tensor:
        """Draw prepared pairs.

        Args:
            photos: uint8 (N, 3, 250, 250).
            depths: uint8 (N, 1, 250, 250).
            styles: (N,), from 0.

        Returns:
            uint8 sketches (N, 1, 250, 250).
        """
        empty = torch.zeros_like(depths)
        batch = centred_batch(PairTensors(photos, depths, empty, styles, ("",) * len(photos)), self.config.augment)
        sketch, _ = self.generator(batch.photo, batch.depth, batch.style)
        side = photos.shape[-1]
        first = (sketch.shape[-1] - side) // 2
        return _bytes(sketch[:, :, first : first + side, first : first + side])

    def _steering(self, style: Style, views: Plan) -> Tensor:
        """Return the style of each view as the generator takes it: numbers, weights, or maps of weights."""
        count, styles = len(views.views), self.config.generator.styles
        if isinstance(style, np.ndarray):
            if style.shape[1::-1] != views.size:
                raise HidaError(
                    f"the style map is {style.shape[1]}×{style.shape[0]} and not of the photo's size; resize it."
                )
            require_room("the style map", "F", views.size, more=4 * styles)
            maps = np.stack([view_weights(style, matrix, views.side) for matrix in views.views])
            return torch.from_numpy(maps).permute(0, 3, 1, 2).to(self.device)
        if isinstance(style, Mapping):
            return torch.from_numpy(mixture_weights(style, styles)).to(self.device).expand(count, -1)
        return torch.full((count,), style - 1, device=self.device)

    def _prepare(
        self, pixels: np.ndarray, depth: DepthSource | None, frame: Frame
    ) -> tuple[Plan, list[np.ndarray], Callable[[], np.ndarray]]:
        """Return the views, their depth maps, and a function that computes the whole photo's (in seconds)."""
        size = pixels.shape[1], pixels.shape[0]
        method = _method(depth)
        model = depths.resolve(method) if method in ("auto", "tddfa", "builtin") else "builtin"
        face = None if frame == "whole" else _first_face(pixels, model)
        if face is None and frame != "whole":
            if frame == "face" or depth is None or method in ("auto", "tddfa"):
                raise NoFaceError(
                    "no face was found in the photo; give one that shows a face upright, or draw it as it is with "
                    "frame 'whole' (--frame whole) or a depth of its own (--depth builtin, midas:MODEL or a file)."
                )
            warnings.warn("no face was found in the photo: it is drawn as it is", stacklevel=2)
        views = plan(size, None if face is None else face.points, surroundings=frame != "face")
        if depth is None or method in ("auto", "tddfa", "builtin"):
            if face is None:
                face = _any_face(pixels, model)
            return (
                views,
                [face.depth((views.side, views.side), matrix) for matrix in views.views],
                partial(face.depth, size),
            )
        if method is None:
            map_ = depth_from_file(depth, size)
        else:
            name, _, network = method.partition(":")
            map_ = depths.predict(pixels, name, model=network or None)
        return views, [view_depth(map_, matrix, views.side) for matrix in views.views], lambda: map_


def _entries(value: Any, count: int = 1) -> list[Any]:
    """Return a list's entries, or one value ``count`` times: no type tells a path, itself a sequence, from a list."""
    return list(value) if isinstance(value, list | tuple) else [value] * count


def _method(depth: DepthSource | None) -> str | None:
    """Return the name of the depth method, with its network, that ``depth`` is; None for a map of the user's own."""
    if depth is None:
        return "auto"
    return depth if isinstance(depth, str) and depth.split(":")[0] in depths.METHODS else None


def _first_face(pixels: np.ndarray, model: str) -> Face | None:
    return next(iter(depths.face_model(model).faces(pixels)), None)


def _any_face(pixels: np.ndarray, model: str) -> Face:
    """Return the largest face or, if there is none, the whole picture as if it were one."""
    return _first_face(pixels, model) or depths.face_model("builtin").whole(pixels)


def _from_bytes(photos: np.ndarray, device: torch.device) -> Tensor:
    """Return uint8 photos (N, H, W, 3) as the generator takes them: (N, 3, H, W) in [−1, 1]."""
    return torch.from_numpy(photos).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _bytes(sketch: Tensor) -> Tensor:
    return ((sketch.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
