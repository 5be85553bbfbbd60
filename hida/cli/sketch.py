"""Draw pencil sketches of photos.

    hida sketch photo.jpg
    hida sketch photos/ --style 1 3 --out drawings --sheet
    hida sketch photos/ --gallery
    hida sketch photo.jpg --weights runs/mine --depth map.png
    hida sketch photo.jpg --style 1:0.6,3:0.4
    hida sketch photo.jpg --sweep 1 3 --steps 5
    hida sketch photo.jpg --style-map regions.png
    hida sketch photo.jpg --frame portrait --size 1200
    hida sketch photo.jpg --background white --tone 0.7 --line 1.3

There is one PNG for each photo and style, named after both and of the photo's size; a portrait has its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro
from PIL import Image

from hida.cli.parsing import read_command, unset
from hida.cli.photos import (
    Background,
    Detail,
    Frame,
    for_each,
    list_photos,
    name_targets,
    require_one_for_map,
    tell,
)
from hida.errors import HidaError
from hida.files import require_file_place, require_folder_place
from hida.images.gallery import Gallery, Pictures, reduce
from hida.images.io import read_image, write_png

if TYPE_CHECKING:
    from hida.drawing.faces import Faces
    from hida.drawing.sketcher import Sketcher
    from hida.drawing.styles import NamedStyle, Style


PAGE = "gallery.html"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".svg")


@dataclass(frozen=True)
class Command:
    """Draw sketches of photos."""

    photos: Annotated[tyro.conf.Positional[tuple[Path, ...]], unset("PHOTO...")]
    """photos, or folders of photos"""
    style: Annotated[tuple[str, ...], unset("STYLE...")] = ()
    """styles to draw: numbers from 1, or mixtures such as 1:0.6,3:0.4; all styles if left out"""
    style_map: Annotated[Path | None, unset("PATH")] = None
    """mask with a style for every region, instead of --style: 1, 2, … as grey levels or indices of a palette, or red,
    green, blue for 1 to 3"""
    sweep: Annotated[tuple[int, int] | None, unset("INT INT")] = None
    """also write NAME_sweep.png: mixtures from one style to another, side by side"""
    steps: Annotated[int | None, unset("INT")] = None
    """number of pictures in the sweep; 5 if left out"""
    out: Path = Path("sketches")
    """folder to write to"""
    weights: str = "small"
    """built-in weights by name, a weights or checkpoint file, or a run's folder"""
    depth: str = "auto"
    """auto, tddfa, builtin, none, midas:MODEL, or a depth map file (for one photo)"""
    frame: Frame = "auto"
    """auto: the whole photo, its faces upright; portrait (or face): head and shoulders of the largest face, filling the
    picture; whole: the photo as it is"""
    size: Annotated[int | None, unset("INT")] = None
    """height of a portrait in pixels, its width is 4/5 of that; 800 if left out"""
    faces: str = "all"
    """which faces are drawn as faces, upright, at their own scale: all, largest, or how many of the largest; those
    smaller than 20 pixels are left to their surroundings"""
    detail: Detail = "auto"
    """auto: faces of many pixels are drawn two or four times as fine, where the photo shows more at that size; fine:
    all that have the pixels; coarse: none"""
    background: Background = "keep"
    """keep; white: clean paper around the people; transparent: the people cut out"""
    paper: Annotated[str | None, unset("COLOUR")] = None
    """colour of the paper, such as #f4ecd8 or ivory; white if left out"""
    tone: float = 1.0
    """darkness of the masses, from 0 to 3"""
    line: float = 1.0
    """weight of the strokes, from 0 to 3"""
    sheet: bool = False
    """also write NAME_sheet.png: the photo and its sketches in one picture"""
    show_depth: bool = False
    """also show the depth map on the sheet"""
    gallery: bool = False
    """also write gallery.html: one page, to open or to mail, with a slider between each photo and its sketches"""
    device: str = "auto"
    """cpu, cuda, or auto"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida sketch``."""
    command: Command = read_command(Command, argv, "hida sketch", __doc__)
    from hida.device import choose_device, tune
    from hida.drawing.finish import Finish
    from hida.drawing.sketcher import Sketcher, check_options
    from hida.drawing.styles import names, parse_style, sweep

    command = _photos_apart(command)
    chosen: list[NamedStyle] = [parse_style(text) for text in dict.fromkeys(command.style)]
    photos = list_photos(command.photos)
    require_one_for_map(photos, command.depth)
    if command.style_map is not None and (command.style or command.sheet or command.sweep):
        raise HidaError("--style-map gives every region its style; leave out --style, --sheet and --sweep.")
    if command.steps is not None and command.sweep is None:
        raise HidaError("--steps has no effect without --sweep; give both or neither.")
    check_options(command.frame, _faces(command.faces), command.size)
    if command.show_depth and not command.sheet:
        raise HidaError("--show-depth has no effect without --sheet; give both or neither.")
    if command.sheet and command.sweep and not command.style:
        raise HidaError("--sheet shows styles, of which --sweep alone draws none; add --style, or leave out --sheet.")
    if command.gallery:
        _require_gallery_place(command.out, photos)
    Finish(command.background, command.paper, command.tone, command.line)  # or it says what is of no use
    require_folder_place(command.out)
    device = choose_device(command.device)
    tune(device)
    sketcher = Sketcher.from_pretrained(command.weights, device)
    if not chosen and command.sweep is None:
        chosen = list(range(1, sketcher.styles + 1))
    between = [] if command.sweep is None else sweep(*command.sweep, 5 if command.steps is None else command.steps)
    sketcher.require_styles([*chosen, *between])
    suffixes = [f"_{name}" for name in names(chosen)] if command.style_map is None else ["_regions"]
    suffixes += ["_sheet"] * command.sheet + ["_sweep"] * bool(between)
    targets = name_targets(photos, command.out, suffixes)
    written: list[Path] = []
    gallery = Gallery(list(targets)) if command.gallery else None
    failures: dict[Path, str] = {}

    def write(photo: Path) -> None:
        pictures, reduced = draw(sketcher, photo, chosen, between, command, None if gallery is None else gallery.share)
        for target, picture in zip(targets[photo], pictures, strict=True):
            write_png(target, picture)
            written.append(target)
        if gallery is not None and reduced is not None:
            gallery.add(photo, reduced)

    failed = for_each(targets, write, failures=failures)
    if len(targets) == 1:
        print("\n".join(str(target) for target in written))
    else:
        print(f"{len(written)} pictures of {len(targets) - failed} photos in {command.out}")
    if gallery is not None and failed < len(targets):
        gallery.write(command.out / PAGE, failures)
        print(command.out / PAGE)
    if failed:
        raise HidaError(f"{failed} of {len(targets)} photos could not be drawn; the reasons are above.")


def _require_gallery_place(out: Path, photos: Sequence[Path]) -> None:
    """Check that a gallery has a folder to be written to, and replaces no photo."""
    if str(out) == "-" or (out.suffix.lower() in _PICTURES and not out.is_dir()):
        raise HidaError(f"--gallery is a page in a folder of drawings, which --out {out} is not; give a folder.")
    page = out / PAGE
    if page.resolve() in {photo.resolve() for photo in photos}:
        raise HidaError(f"{page} is one of the photos; choose another folder with --out.")
    require_file_place(page)


def _photos_apart(command: Command) -> Command:
    """Return the command with the photos that follow --style, which takes all words up to the next option.

    A word that can be no style is a photo, and so are those after it, unless there is no such file and photos were
    given before.
    """
    at = next((k for k, word in enumerate(command.style) if not re.fullmatch(r"[-+\d.:,]+", word)), 0)
    if not at or (command.photos and not Path(command.style[at]).exists()):
        return command
    return replace(command, style=command.style[:at], photos=(*command.photos, *map(Path, command.style[at:])))


def _faces(text: str) -> Faces:
    """Return a choice of faces as :class:`hida.Sketcher` takes it, which also says what is wrong with another."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else cast("Faces", text)


def draw(
    sketcher: Sketcher,
    photo: Path,
    styles: Sequence[NamedStyle],
    between: Sequence[NamedStyle],
    command: Command,
    share: int | None = None,
) -> tuple[list[Image.Image], Pictures | None]:
    """Return the sketches of one photo, followed by the sheet and the sweep if they are asked for, and for a gallery.

    With ``share``, the bytes of it in a gallery's page, the second is what the page shows.
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
            tell(f"{photo}: {found} faces found, {shown} drawn{rest}")

    drawn, depth = sketcher.draw(
        image,
        [*wanted, *between],
        command.depth,
        command.frame,
        show_depth=command.show_depth,
        faces=_faces(command.faces),
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
