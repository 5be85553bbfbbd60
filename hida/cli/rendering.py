"""What becomes of one photo under the options of ``hida sketch``: drawings, a sheet, a sweep, a gallery's pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from PIL import Image

from hida.cli.jobs import cores_each
from hida.errors import warn
from hida.images.alignment import apply, invert, warp
from hida.images.gallery import Pictures, reduce
from hida.images.io import ImageError, ImageSource, read_image
from hida.images.opening import load
from hida.images.writing import Format, encode

if TYPE_CHECKING:
    from hida.drawing.faces import Faces
    from hida.drawing.sketcher import Drawn, Sketcher
    from hida.drawing.styles import NamedStyle, Style, StyleMap


@dataclass(frozen=True)
class Work:
    """What is to be done with every photo. It is pickled where photos are drawn side by side.

    Args:
        weights, device: what draws.
        how: arguments of :meth:`hida.Sketcher.draw`.
        styles: those that are drawn; ``between``: the steps of the sweep.
        kinds: the format of each file.
        style_map: a style for every region, instead of ``styles``.
        sheet: whether there is one.
        share: bytes that a photo has in the gallery's page; None without one.
        there: photos that are shown in the gallery by their files, which are there, in the order of ``styles``.
        jobs: processes that share the cores.
    """

    weights: str
    device: str
    how: Mapping[str, Any]
    styles: Sequence[NamedStyle]
    between: Sequence[NamedStyle]
    kinds: Sequence[Format]
    style_map: StyleMap | None
    sheet: bool
    share: int | None
    there: Mapping[Path, Sequence[Path]]
    jobs: int = 1

    @property
    def headings(self) -> list[str]:
        """What the drawings show, without those of the sweep."""
        from hida.drawing.styles import style_heading

        return ["styles by region"] if self.style_map is not None else [style_heading(style) for style in self.styles]

    def begin(self) -> Callable[[ImageSource], Rendered]:
        """Load what draws, so that what is wrong with it is told once; return the function that draws a photo."""
        import torch

        from hida.device import tune
        from hida.drawing.prepared import load_depth
        from hida.drawing.sketcher import Sketcher

        tune(self.device)
        if self.jobs > 1:
            torch.set_num_threads(min(cores_each(self.jobs), torch.get_num_threads()))
        sketcher = Sketcher.from_pretrained(self.weights, self.device)
        load_depth(self.how["depth"])

        def render(photo: ImageSource) -> Rendered:
            if isinstance(photo, Path) and photo in self.there and (shown := self.show(photo)) is not None:
                return Rendered([], shown)
            pictures, reduced = self.draw(sketcher, photo)
            contents = [encode(picture, kind, marked=True) for picture, kind in zip(pictures, self.kinds, strict=True)]
            return Rendered(contents, reduced)

        return render

    def draw(self, sketcher: Sketcher, photo: ImageSource) -> tuple[list[Image.Image], Pictures | None]:
        """Return a photo's sketches, followed by the sheet and the sweep if there are any, and for a gallery.

        Where there are several faces, a warning says how many were found and drawn, and where a portrait reaches beyond
        the photo, that it does.
        """
        from hida.drawing.styles import style_heading
        from hida.images.sheet import picture_sheet, sheet

        image = read_image(photo)
        wanted: list[Style] = [*self.styles]
        if self.style_map is not None:
            wanted = [self.style_map.weights(image.size)]
        told: list[Drawn] = []
        drawn, depth = sketcher.draw(image, [*wanted, *self.between], **self.how, report=told.append)
        found, shown, place, size = told[0]
        if found > 1 and self.how["frame"] == "auto":
            others = "other as a part of its" if found - shown == 1 else "others as a part of their"
            rest = f", the {others} surroundings" if shown < found else ""
            warn(f"{found} faces found, {shown} drawn{rest}")
        if self.how["frame"] in ("portrait", "face") and (ends := _photo_ends(place, size, image.size)):
            warn(f"the photo ends inside the portrait, which fades into paper {ends}; --frame auto draws all of it")
        # Beside a portrait belongs what it shows of the photo.
        image = warp(image, place, size)
        sketches, swept = drawn[: len(wanted)], drawn[len(wanted) :]
        steps = [style_heading(style) for style in self.between]
        result = list(sketches)
        if self.sheet:
            panels = {"photo": image} if depth is None else {"photo": image, "depth": depth}
            side = min(512, max(256, *image.size))
            result.append(picture_sheet([*panels.values(), *sketches], [*panels, *self.headings], side))
        if self.between:
            height = min(512, max(256, image.height))
            result.append(sheet([[image, *swept]], ("photo", *steps), height))
        if self.share is None:
            return result, None
        return result, reduce(image, dict(zip([*self.headings, *steps], drawn, strict=True)), self.share)

    def show(self, photo: Path) -> Pictures | None:
        """Return for a gallery a photo and its drawings that are there; None if one of them is no picture."""
        from hida.drawing.prepared import prepare

        try:
            sketches = [load(file).image for file in self.there[photo][: len(self.headings)]]
        except ImageError:
            return None
        image = read_image(photo)
        if self.how["frame"] in ("portrait", "face"):
            told: list[Drawn] = []
            names = ("depth", "frame", "faces", "size")
            prepare(np.asarray(image), **{name: self.how[name] for name in names}, report=told.append)
            image = warp(image, told[0].place, told[0].size)
        assert self.share is not None
        return reduce(image, dict(zip(self.headings, sketches, strict=True)), self.share)


def _photo_ends(place: np.ndarray, size: tuple[int, int], photo: tuple[int, int]) -> str:
    """Return at which sides a picture reaches beyond its photo, by more than a few pixels, in words; or nothing.

    Args:
        place: from pixels of the photo to pixels of the picture.
        size, photo: (width, height) of the picture and the photo.
    """
    (width, height), few = size, 0.02 * max(size)
    middles = {
        "on the left": (few, height / 2),
        "on the right": (width - few, height / 2),
        "at the top": (width / 2, few),
        "at the bottom": (width / 2, height - few),
    }
    places = apply(invert(place), [*middles.values()])
    edge = np.subtract(photo, 0.5)
    outside = [bool((at < -0.5).any() or (at > edge).any()) for at in places]
    return " and ".join(name for name, out in zip(middles, outside, strict=True) if out)


class Rendered(NamedTuple):
    """The contents of a photo's files, in their order, none if these stay; and what a gallery shows of it."""

    contents: list[bytes]
    reduced: Pictures | None


def faces_wanted(text: str) -> Faces:
    """Return a choice of faces as :class:`hida.Sketcher` takes it, which also says what is wrong with another."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else cast("Faces", text)
