"""Draw photos with a trained generator: the one object that an application needs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hida import weights
from hida.config import Config
from hida.data.dataset import PairTensors
from hida.data.framing import CROP, centred_batch
from hida.device import choose_device
from hida.drawing.blank import blankness, leave_blank
from hida.drawing.detail import FEWEST, Detail, choose_scale, draw_finely
from hida.drawing.faces import Faces
from hida.drawing.finish import Background, Finish, before_wall, finish
from hida.drawing.joining import FaceDrawing
from hida.drawing.prepared import (
    DepthOfView,
    DepthSource,
    Drawn,
    Frame,
    NoFaceError,
    check_options,
    prepare,
    require_depth,
)
from hida.drawing.styles import Style, count_styles, map_weights, mixture_weights, require_style
from hida.drawing.views import Viewed, compose_picture, face_points, only, picture_matte, view_photo, view_weights
from hida.errors import HidaError, about, counted, warn
from hida.images.alignment import scale_of
from hida.images.io import ImageSource, read_image
from hida.images.opening import require_room
from hida.matte import person_matte
from hida.models.generator import Encoded, Generator
from hida.weights.checkpoint import load_generator

__all__ = ["Drawn", "Frame", "NoFaceError", "Sketcher", "check_options"]

BATCH = 4
"""Faces that are drawn at once: more need memory, and save little time."""


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
        return count_styles(self.config)

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def __call__(
        self,
        photo: ImageSource | Sequence[ImageSource],
        style: Style | Sequence[Style] = 1,
        depth: DepthSource | Sequence[DepthSource] | None = None,
        frame: Frame = "auto",
        faces: Faces = "all",
        size: int | None = None,
        detail: Detail = "auto",
        *,
        background: Background = "keep",
        paper: str | None = None,
        tone: float = 1.0,
        line: float = 1.0,
    ) -> Image.Image | list[Image.Image]:
        """Draw one photo or several.

        Args:
            photo: a path, the bytes of a file, a binary file, a PIL image, an H×W(×3) array, or a list of these.
            style: 1 … S, a mixture such as ``{1: 0.6, 3: 0.4}``, or an (H, W, S) array of weights for each pixel;
                weights are scaled to sums of 1. A list gives one for each photo of a list, or several drawings of a
                single photo.
            depth: None or "auto", "tddfa", "builtin", "midas:MODEL", "none", or a map of the photo's shape: a file, its
                bytes, a grey picture or an H×W array in [0, 1]; a list gives one for each photo.
            frame: "auto" draws the whole photo, every face upright at its own scale; a photo without a face is drawn as
                it is if ``depth`` does not need one. "portrait" draws head and shoulders of the largest face, filling
                a picture of 4:5, running out where the photo ends; "face" is another word for it. "whole" draws the
                photo as it is, with no views of faces.
            faces: which faces get a view and depth of their own: "all", "largest", or the so many largest. Those whose
                box is smaller than 20 pixels are drawn with what surrounds them, but for the largest.
            size: height of a portrait in pixels, 64 to 8192; 800 (by 640) if left out.
            detail: "auto" draws faces of many pixels two or four times as fine, where the photo shows more at that
                size; "fine" wherever there are 1.5 pixels to a drawn one; "coarse" never.
            background: "keep"; "white" leaves the paper clean around the people of the photo, "transparent" cuts them
                out. A photo without a person keeps its background, with a warning.
            paper: the colour of the paper, such as "#f4ecd8" or "ivory"; None is white.
            tone: darkness of the masses, from 0 to 3; 1 leaves it.
            line: weight of the strokes, from 0 to 3; 1 leaves it.

        Returns:
            PIL images of the photos' sizes, portraits of 4:5 and ``size``: a list if ``photo`` or ``style`` is one.
            They are grey (mode "L"), with a colour of the paper "RGB", and with a transparent background "LA" and
            "RGBA".

        Raises:
            HidaError: if an argument, or a photo, cannot be used; the message names it.
        """
        check_options(frame, faces, size, detail)
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
            entries = counted(len(styles), "entry", "entries")
            raise HidaError(f"style has {entries} for {counted(len(photos), 'photo')}; give one for each.")
        if len(depths_given) != len(photos):
            entries = counted(len(depths_given), "entry", "entries")
            raise HidaError(f"depth has {entries} for {counted(len(photos), 'photo')}; give one for each.")
        self.require_styles(styles)
        for source in depths_given:
            require_depth(source)
        how = Finish(background, paper, tone, line)
        wanted = [[number] for number in styles] if several else [styles]
        sketches: list[Image.Image] = []
        for index, (source, numbers, map_) in enumerate(zip(photos, wanted, depths_given, strict=True), 1):
            name = f" ({os.fspath(source)})" if isinstance(source, str | os.PathLike) else ""
            with about(f"photo {index} of {len(photos)}{name}" if len(photos) > 1 else ""):
                some, _ = self.draw(source, numbers, map_, frame, faces=faces, size=size, detail=detail, **vars(how))
            sketches += some
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
        faces: Faces = "all",
        size: int | None = None,
        report: Callable[[Drawn], None] | None = None,
        detail: Detail = "auto",
        *,
        background: Background = "keep",
        paper: str | None = None,
        tone: float = 1.0,
        line: float = 1.0,
    ) -> tuple[list[Image.Image], Image.Image | None]:
        """Draw one photo in ``styles``; other arguments and errors are those of :meth:`__call__`.

        Args:
            show_depth: whether the depth map is wanted.
            report: called with what is about to be drawn.

        Returns:
            The sketches, and, with ``show_depth``, the depth map of the whole picture as a picture.
        """
        check_options(frame, faces, size, detail)
        how = Finish(background, paper, tone, line)
        image = read_image(photo)
        pixels = np.asarray(image)
        for style in styles:
            self._require_map_fits(style, image.size)
        styles = [map_weights(style) if isinstance(style, np.ndarray) else style for style in styles]
        views, depth_of, depth_map = prepare(pixels, depth, frame, faces, size, report)
        matte = None if background == "keep" else person_matte(pixels, face_points(views), self.device)
        shown_matte = None if matte is None else picture_matte(matte, views)
        if shown_matte is not None:
            views = only(views, shown_matte)
        drawn_from = Viewed(pixels)
        fitting = (choose_scale(drawn_from, view, detail, scale_of(views.place)) for view in views.faces)
        scales = list(accumulate(fitting, min))  # no face finer than a larger one
        drawn_from = drawn_from if matte is None else Viewed(before_wall(pixels, matte))
        around: list[list[np.ndarray]] = [[] for _ in styles]
        for view in views.around:
            pieces = self._draw_views(drawn_from, [None], [view.matrix], view.frame, depth_of, styles)
            blank = blankness(drawn_from.view(view.matrix, view.frame))
            for sketches_around, (sketch,) in zip(around, pieces, strict=True):
                sketches_around.append(leave_blank(sketch, blank))
        square = (CROP, CROP)
        heads = self._draw_views(drawn_from, range(len(views.faces)), views.faces, square, depth_of, styles)
        for index, (face, scale) in enumerate(zip(views.faces, scales, strict=True)):

            def draw_view(matrix: np.ndarray, side: int, index: int = index) -> list[np.ndarray]:
                finely = self._draw_views(drawn_from, [index], [matrix], (side, side), depth_of, styles)
                return [drawn[0] for drawn in finely]

            fine = draw_finely(draw_view, face, [drawn[index] for drawn in heads], scale)
            for drawn, sketch in zip(heads, fine, strict=True):
                drawn[index] = sketch
        if detail == "fine" and max(scales, default=1) == 1:
            warn(f"no face has the pixels for fine strokes, {FEWEST} across its view: drawn coarsely")
        pictures = (
            compose_picture(views, rest, list(map(FaceDrawing.of, drawn, views.faces)))
            for rest, drawn in zip(around, heads, strict=True)
        )
        sketches = [finish(picture, how, shown_matte, views.grain) for picture in pictures]
        shown = Image.fromarray(np.rint(depth_map() * 255).astype(np.uint8)) if show_depth else None
        return sketches, shown

    def _draw_views(
        self,
        photo: Viewed,
        faces: Sequence[int | None],
        matrices: Sequence[np.ndarray],
        size: tuple[int, int],
        depth_of: DepthOfView,
        styles: Sequence[Style],
    ) -> list[list[np.ndarray]]:
        """Draw views of a photo.

        Args:
            faces: which of the plan's faces each view shows, for its depth; None for what surrounds them.
            matrices: from the photo to each view.
            size: (width, height) of every view.

        Returns:
            For each style the sketches of all views, uint8 (height, width).
        """
        drawn: list[list[np.ndarray]] = [[] for _ in styles]
        count = max(1, BATCH * CROP**2 // math.prod(size))
        for start in range(0, len(matrices), count):
            some = matrices[start : start + count]
            photos = _from_bytes(np.stack([photo.view(matrix, size) for matrix in some]), self.device)
            maps = [depth_of(*of, size) for of in zip(faces[start : start + count], some, strict=True)]
            encoded = self.generator.encode(photos, torch.from_numpy(np.stack(maps)).to(self.device)[:, None])
            encoded = encoded._replace(stem_depth=None)  # which only the depth's head reads
            for style, pieces in zip(styles, drawn, strict=True):
                pieces.extend(self._drawn(encoded, self._steering(style, some, size)))
        return drawn

    def _drawn(self, encoded: Encoded, steering: Tensor) -> np.ndarray:
        """Return uint8 sketches (N, H, W); what the network makes on the way ends here."""
        return _bytes(self.generator.sketch(self.generator.decode(encoded, steering), encoded))[:, 0].cpu().numpy()

    def main_view(
        self, photo: ImageSource, depth: DepthSource | None = None, frame: Frame = "auto"
    ) -> tuple[Tensor, Tensor]:
        """Return the photo and the depth of the largest face's view, or of the only view of a photo without a face.

        Returns:
            (1, 3, H, W) in [−1, 1] and (1, 1, H, W) in [0, 1], as the generator takes them.
        """
        check_options(frame, "all", None)
        pixels = np.asarray(read_image(photo))
        views, depth_of, _ = prepare(pixels, depth, frame, "largest")
        if views.faces:
            index, matrix, size = 0, views.faces[0], (CROP, CROP)
        else:
            index, matrix, size = None, views.around[0].matrix, views.around[0].frame
        view = _from_bytes(view_photo(pixels, matrix, size)[None], self.device)
        map_ = torch.from_numpy(depth_of(index, matrix, size)).to(self.device)[None, None]
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

    def _require_map_fits(self, style: Style, size: tuple[int, int]) -> None:
        if isinstance(style, np.ndarray):
            if style.shape[1::-1] != size:
                raise HidaError(
                    f"the style map is {style.shape[1]}×{style.shape[0]} and not of the photo's size; resize it."
                )
            require_room("the style map", "F", size, more=4 * self.config.generator.styles)

    def _steering(self, style: Style, matrices: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Return the style of each view as the generator takes it: numbers, weights, or maps of weights."""
        count, styles = len(matrices), self.config.generator.styles
        if isinstance(style, np.ndarray):
            maps = np.stack([view_weights(style, matrix, size) for matrix in matrices])
            return torch.from_numpy(maps).permute(0, 3, 1, 2).to(self.device)
        if isinstance(style, Mapping):
            return torch.from_numpy(mixture_weights(style, styles)).to(self.device).expand(count, -1)
        return torch.full((count,), style - 1, device=self.device)


def _entries(value: Any, count: int = 1) -> list[Any]:
    """Return a list's entries, or one value ``count`` times: no type tells a path, itself a sequence, from a list."""
    return list(value) if isinstance(value, list | tuple) else [value] * count


def _from_bytes(photos: np.ndarray, device: torch.device) -> Tensor:
    """Return uint8 photos (N, H, W, 3) as the generator takes them: (N, 3, H, W) in [−1, 1]."""
    return torch.from_numpy(photos).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _bytes(sketch: Tensor) -> Tensor:
    return ((sketch.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
