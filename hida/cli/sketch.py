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
    hida sketch IMG_0001.HEIC --style 2 --out me.svg
    hida sketch photos/ --format webp --jobs 2 --skip-existing
    curl … | hida sketch - --style 1 --out - > me.png

There is one picture for each photo and style, named after both and of the photo's size; a portrait has its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from hida.cli.jobs import run_side_by_side
from hida.cli.parsing import read_command, unset
from hida.cli.photos import (
    STDIN,
    Background,
    Detail,
    Frame,
    for_each,
    list_photos,
    photo_source,
    require_depth,
)
from hida.cli.rendering import Rendered, Work, faces_wanted
from hida.cli.targets import Place, existing, read_place
from hida.errors import HidaError, counted
from hida.files import require_file_place
from hida.images.gallery import Gallery
from hida.images.writing import SUFFIXES, Format

if TYPE_CHECKING:
    from hida.drawing.styles import NamedStyle

PAGE = "gallery.html"


@dataclass(frozen=True)
class Command:
    """Draw sketches of photos."""

    photos: Annotated[tyro.conf.Positional[tuple[Path, ...]], unset("PHOTO...")]
    """photos, or folders of photos; - is standard input"""
    style: Annotated[tuple[str, ...], unset("STYLE...")] = ()
    """styles to draw: numbers from 1, or mixtures such as 1:0.6,3:0.4; all styles if left out"""
    style_map: Annotated[Path | None, unset("PATH")] = None
    """picture with a style for every region: 1, 2, … as grey levels or palette indices, or red, green, blue"""
    sweep: Annotated[tuple[int, int] | None, unset("INT INT")] = None
    """also write NAME_sweep.png: mixtures from one style to another, side by side"""
    steps: Annotated[int | None, unset("INT")] = None
    """number of pictures in the sweep; 5 if left out"""
    out: Annotated[str, tyro.conf.arg(metavar="PATH")] = "sketches"
    """folder to write to, which may be that of the photos; or, with a suffix, the file for a single drawing; - is
    standard output"""
    format: Annotated[Literal[Format, "jpg"] | None, unset("{png,jpeg,webp,svg}")] = None
    """format of the drawings in a folder; png if left out (sheets and sweeps are never svg)"""
    skip_existing: bool = False
    """leave out photos whose files are all there; a gallery shows them from these"""
    jobs: int = 1
    """number of photos that are drawn side by side, in a process each"""
    weights: str = "small"
    """built-in weights by name, a weights or checkpoint file, or a run's folder"""
    depth: str = "auto"
    """auto, tddfa, builtin, none, midas:MODEL, or a depth map file (for one photo, of its shape, near is bright)"""
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
    words = sys.argv[1:] if argv is None else argv
    if sum(word.partition("=")[0] == "--style" for word in words) > 1:  # the last would count, without a word
        raise HidaError("--style is given twice; give it once, with all styles after it, such as --style 1 3.")
    from hida.drawing.styles import count_styles, names, parse_style, read_style_map, require_style, sweep

    command = _photos_apart(command)
    chosen: list[NamedStyle] = [parse_style(text) for text in dict.fromkeys(command.style)]
    photos = list_photos(command.photos)
    if command.jobs < 1:
        raise HidaError(f"--jobs is {command.jobs}; give 1 or more.")
    place = read_place(command.out, "jpeg" if command.format == "jpg" else command.format)
    _require_sense(command, place, photos)
    from hida.device import choose_device
    from hida.weights import generator_path
    from hida.weights.checkpoint import read_config

    command = replace(command, device=choose_device(command.device))
    styles = count_styles(read_config(generator_path(command.weights)))
    if not chosen and command.sweep is None:
        chosen = list(range(1, styles + 1))
    between = [] if command.sweep is None else sweep(*command.sweep, 5 if command.steps is None else command.steps)
    for style in (*chosen, *between):
        require_style(style, styles)
    style_map = None if command.style_map is None else read_style_map(command.style_map, styles)
    suffixes = [f"_{name}" for name in names(chosen)] if command.style_map is None else ["_regions"]
    suffixes += ["_sheet"] * command.sheet + ["_sweep"] * bool(between)
    maps = [path for path in (command.style_map, Path(command.depth)) if path is not None and path.is_file()]
    targets = place.targets(photos, suffixes, maps)
    kinds = [SUFFIXES.get(target.suffix.lower(), place.format) for target in next(iter(targets.values()))]
    count = len(targets)
    there = existing(targets) if command.skip_existing else {}
    if there and command.gallery and (between or place.format == "svg"):
        what = "sweeps" if between else "SVGs"
        print(f"note: all are drawn again, since a gallery cannot show {what} from their files.", file=sys.stderr)
        there = {}
    if not command.gallery:
        targets = {photo: files for photo, files in targets.items() if photo not in there}
    if not targets:
        print(_nothing(count, command.out))
        return
    jobs = min(command.jobs, len(targets))
    written: dict[Path, Path] = {}
    gallery = Gallery(list(targets)) if command.gallery else None
    failures: dict[Path, str] = {}
    names_of = ("depth", "frame", "show_depth", "size", "detail", "background", "paper", "tone", "line")
    how = {name: getattr(command, name) for name in names_of} | {"faces": faces_wanted(command.faces)}
    share = None if gallery is None else gallery.share
    work = Work(
        command.weights, command.device, how, chosen, between, kinds, style_map, command.sheet, share, there, jobs
    )

    def write(photo: Path, rendered: Rendered) -> None:
        for target, content in zip(targets[photo] if rendered.contents else (), rendered.contents, strict=True):
            place.write(target, content)
            written[target] = photo
        if gallery is not None and rendered.reduced is not None:
            gallery.add(photo, rendered.reduced)

    if jobs > 1:
        outcomes = run_side_by_side(list(targets), work.begin, write, jobs)
        failed = for_each(targets, description="drawing", outcomes=outcomes, failures=failures)
    else:
        render = work.begin()
        failed = for_each(targets, lambda photo: write(photo, render(photo_source(photo))), failures=failures)
    if place.is_stdout:
        return
    drawn = len({*written.values()})
    kept = count - drawn - failed
    if kept == count:
        print(_nothing(count, command.out))
    elif count == 1:
        print("\n".join(str(target) for target in written))
    else:
        others = f", where those of {counted(kept, 'photo')} were already" if kept else ""
        print(f"{counted(len(written), 'picture')} of {counted(drawn, 'photo')} in {command.out}{others}")
    if gallery is not None and failed < len(targets):
        page = place.path / PAGE
        gallery.write(page, failures)
        print(page)
    if failed:
        raise HidaError(f"{failed} of {counted(len(targets), 'photo')} could not be drawn; the reasons are above.")


def _nothing(count: int, out: str) -> str:
    there = f"the files of {counted(count, 'photo')} are in {out} already"
    return f"nothing to draw: {there} (whether with these options is not compared)"


def _require_sense(command: Command, place: Place, photos: Sequence[Path]) -> None:
    """Refuse what has no effect, or cannot be, together."""
    from hida.drawing.finish import Finish
    from hida.drawing.prepared import check_options

    if place.is_stdout and command.skip_existing:
        raise HidaError("--skip-existing has no effect with --out -; give a file or a folder with --out.")
    require_depth(photos, command.depth)
    if command.style_map is not None and (command.style or command.sheet or command.sweep):
        raise HidaError("--style-map gives every region its style; leave out --style, --sheet and --sweep.")
    if command.steps is not None and command.sweep is None:
        raise HidaError("--steps has no effect without --sweep; give both or neither.")
    check_options(command.frame, faces_wanted(command.faces), command.size, command.detail)
    if command.show_depth and not command.sheet:
        raise HidaError("--show-depth has no effect without --sheet; give both or neither.")
    if command.sheet and command.sweep and not command.style:
        raise HidaError("--sheet shows styles, of which --sweep alone draws none; add --style, or leave out --sheet.")
    Finish(command.background, command.paper, command.tone, command.line)  # or it says what is of no use
    if command.background == "transparent" and place.format == "jpeg":
        raise HidaError("a JPEG has no transparent paper; give PNG, WebP or SVG, or --background white.")
    if command.paper is not None and place.format == "svg":
        raise HidaError("an SVG is traced in grey, without --paper; leave it out, or give another format.")
    if not command.gallery:
        return
    if not place.is_folder:
        raise HidaError(
            f"--gallery is a page in a folder of drawings, which --out {command.out} is not; give a folder."
        )
    page = place.path / PAGE
    if page.resolve() in {photo.resolve() for photo in photos}:
        raise HidaError(f"{page} is one of the photos; choose another folder with --out.")
    require_file_place(page)


def _photos_apart(command: Command) -> Command:
    """Return the command with the photos that follow --style, which takes all words up to the next option.

    A word that can be no style is a photo, and so are those after it, unless there is no such file and photos were
    given before.
    """
    words = [Path(word) for word in command.style]
    at = next((k for k, word in enumerate(words) if word == STDIN or not re.fullmatch(r"[-+\d.:,]+", str(word))), 0)
    if not at or (command.photos and words[at] != STDIN and not words[at].exists()):
        return command
    return replace(command, style=command.style[:at], photos=(*command.photos, *words[at:]))
