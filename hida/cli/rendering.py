"""What becomes of one photo under the options of ``hida sketch``: drawings, a sheet, a sweep, a gallery's pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from PIL import Image

from hida.cli.jobs import cores_each
from hida.errors import warn
from hida.images.alignment import warp
from hida.images.gallery import Pictures, reduce
from hida.images.io import ImageSource, read_image
from hida.images.writing import Format, encode

if TYPE_CHECKING:
    from hida.drawing.faces import Faces
    from hida.drawing.sketcher import Drawn, Sketcher
    from hida.drawing.styles import NamedStyle, Style


@dataclass(frozen=True)
class Work:
    """What is to be done with every photo. It is pickled where photos are drawn side by side.

    Args:
        weights, device: what draws.
        how: arguments of :meth:`hida.Sketcher.draw`.
        styles: those that are drawn; ``between``: the steps of the sweep.
        kinds: the format of each file.
        style_map: the file of a style for every region, instead of ``styles``.
        sheet: whether there is one.
        share: bytes that a photo has in the gallery's page; None without one.
        jobs: processes that share the cores.
    """

    weights: str
    device: str
    how: Mapping[str, Any]
    styles: Sequence[NamedStyle]
    between: Sequence[NamedStyle]
    kinds: Sequence[Format]
    style_map: Path | None
    sheet: bool
    share: int | None
    jobs: int = 1

    def begin(self) -> Callable[[ImageSource], Rendered]:
        """Load the weights; return the function that draws a photo."""
        import torch

        from hida.device import tune
        from hida.drawing.sketcher import Sketcher

        tune(self.device)
        if self.jobs > 1:
            torch.set_num_threads(min(cores_each(self.jobs), torch.get_num_threads()))
        sketcher = Sketcher.from_pretrained(self.weights, self.device)

        def render(photo: ImageSource) -> Rendered:
            pictures, reduced = self.draw(sketcher, photo)
            contents = [encode(picture, kind, marked=True) for picture, kind in zip(pictures, self.kinds, strict=True)]
            return Rendered(contents, reduced)

        return render

    def draw(self, sketcher: Sketcher, photo: ImageSource) -> tuple[list[Image.Image], Pictures | None]:
        """Return a photo's sketches, followed by the sheet and the sweep if there are any, and for a gallery.

        Where there are several faces, a warning says how many were found and drawn.
        """
        from hida.drawing.styles import style_heading, style_map_from_file
        from hida.images.sheet import picture_sheet, sheet

        image = read_image(photo)
        wanted: list[Style] = [*self.styles]
        if self.style_map is not None:
            wanted = [style_map_from_file(self.style_map, image.size, sketcher.styles)]
        told: list[Drawn] = []
        drawn, depth = sketcher.draw(image, [*wanted, *self.between], **self.how, report=told.append)
        found, shown, place, size = told[0]
        if found > 1 and self.how["frame"] == "auto":
            rest = ", the others as a part of their surroundings" if shown < found else ""
            warn(f"{found} faces found, {shown} drawn{rest}")
        # Beside a portrait belongs what it shows of the photo.
        image = warp(image, place, size)
        sketches, swept = drawn[: len(wanted)], drawn[len(wanted) :]
        headings = [style_heading(style) for style in self.styles] if self.style_map is None else ["styles by region"]
        steps = [style_heading(style) for style in self.between]
        result = list(sketches)
        if self.sheet:
            panels = {"photo": image} if depth is None else {"photo": image, "depth": depth}
            side = min(512, max(256, *image.size))
            result.append(picture_sheet([*panels.values(), *sketches], [*panels, *headings], side))
        if self.between:
            height = min(512, max(256, image.height))
            result.append(sheet([[image, *swept]], ("photo", *steps), height))
        if self.share is None:
            return result, None
        return result, reduce(image, dict(zip([*headings, *steps], drawn, strict=True)), self.share)


class Rendered(NamedTuple):
    """The contents of a photo's files, in their order, and what a gallery shows of it, if there is one."""

    contents: list[bytes]
    reduced: Pictures | None


def faces_wanted(text: str) -> Faces:
    """Return a choice of faces as :class:`hida.Sketcher` takes it, which also says what is wrong with another."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else cast("Faces", text)
