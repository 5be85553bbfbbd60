"""What becomes of one photo under the options of ``hida sketch``: drawings, a sheet, a sweep, a gallery's pictures."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from PIL import Image

from hida.images.gallery import Pictures, reduce
from hida.images.io import ImageSource, read_image
from hida.images.writing import Format, encode

if TYPE_CHECKING:
    from hida.cli.sketch import Command
    from hida.drawing.faces import Faces
    from hida.drawing.sketcher import Sketcher
    from hida.drawing.styles import NamedStyle, Style


class Rendered(NamedTuple):
    """The contents of a photo's files, in their order, and what a gallery shows of it, if there is one."""

    contents: list[bytes]
    reduced: Pictures | None


def begin(
    command: Command,
    styles: Sequence[NamedStyle],
    between: Sequence[NamedStyle],
    kinds: Sequence[Format],
    share: int | None,
) -> Callable[[ImageSource], Rendered]:
    """Load the weights; return the function that draws a photo. All of it is pickled where photos are side by side.

    Args:
        command: the options.
        styles: those that are drawn; between: the steps of the sweep.
        kinds: the format of each file.
        share: bytes of a photo in the gallery's page; None without one.
    """
    from hida.device import tune
    from hida.drawing.sketcher import Sketcher

    tune(command.device)
    sketcher = Sketcher.from_pretrained(command.weights, command.device)

    def render(photo: ImageSource) -> Rendered:
        pictures, reduced = draw(sketcher, photo, styles, between, command, share)
        return Rendered([encode(picture, kind) for picture, kind in zip(pictures, kinds, strict=True)], reduced)

    return render


def faces_wanted(text: str) -> Faces:
    """Return a choice of faces as :class:`hida.Sketcher` takes it, which also says what is wrong with another."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else cast("Faces", text)


def draw(
    sketcher: Sketcher,
    photo: ImageSource,
    styles: Sequence[NamedStyle],
    between: Sequence[NamedStyle],
    command: Command,
    share: int | None = None,
) -> tuple[list[Image.Image], Pictures | None]:
    """Return the sketches of one photo, followed by the sheet and the sweep if they are asked for, and for a gallery.

    Where there are several faces, a warning says how many were found and drawn.
    """
    from hida.drawing.styles import style_heading, style_map_from_file
    from hida.images.sheet import picture_sheet, sheet

    image = read_image(photo)
    wanted: list[Style] = [*styles]
    if command.style_map is not None:
        wanted = [style_map_from_file(command.style_map, image.size, sketcher.styles)]

    def report(found: int, shown: int) -> None:
        if found > 1:
            rest = ", the others as a part of their surroundings" if shown < found else ""
            warnings.warn(f"{found} faces found, {shown} drawn{rest}", stacklevel=2)

    drawn, depth = sketcher.draw(
        image,
        [*wanted, *between],
        command.depth,
        command.frame,
        show_depth=command.show_depth,
        faces=faces_wanted(command.faces),
        size=command.size,
        detail=command.detail,
        report=report,
        background=command.background,
        paper=command.paper,
        tone=command.tone,
        line=command.line,
    )
    sketches, swept = drawn[: len(wanted)], drawn[len(wanted) :]
    headings = [style_heading(style) for style in styles] if command.style_map is None else ["styles by region"]
    steps = [style_heading(style) for style in between]
    result = list(sketches)
    if command.sheet:
        shown = {"photo": image} if depth is None else {"photo": image, "depth": depth}
        side = min(512, max(256, *image.size))
        result.append(picture_sheet([*shown.values(), *sketches], [*shown, *headings], side))
    if between:
        height = min(512, max(256, image.height))
        result.append(sheet([[image, *swept]], ("photo", *steps), height))
    if share is None:
        return result, None
    return result, reduce(image, dict(zip([*headings, *steps], drawn, strict=True)), share)
