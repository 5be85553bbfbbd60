"""Draw pencil sketches of photos.

    hida sketch photo.jpg
    hida sketch photos/ --style 1 3 --out drawings --sheet
    hida sketch photo.jpg --weights runs/mine --depth map.png
    hida sketch photo.jpg --style 1:0.6,3:0.4
    hida sketch photo.jpg --sweep 1 3 --steps 5
    hida sketch photo.jpg --style-map regions.png
    hida sketch IMG_0001.HEIC --style 2 --out me.svg
    hida sketch photos/ --format webp --jobs 2 --skip-existing
    curl … | hida sketch - --style 1 --out - > me.png

There is one picture for each photo and style, of the photo's size and named after both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from PIL import Image

from hida.cli.jobs import cores_each, run_side_by_side
from hida.cli.parsing import read_command, unset
from hida.cli.photos import STDIN, Frame, for_each, list_photos, photo_source, require_one_for_map
from hida.cli.targets import read_place, without_existing
from hida.errors import HidaError
from hida.images.io import ImageSource, read_image
from hida.images.writing import SUFFIXES, Format, encode

if TYPE_CHECKING:
    from hida.drawing.sketcher import Sketcher
    from hida.drawing.styles import NamedStyle, Style


@dataclass(frozen=True)
class Command:
    """Draw sketches of photos."""

    photos: Annotated[tyro.conf.Positional[tuple[Path, ...]], unset("PHOTO...")]
    """photos, or folders of photos; - is standard input"""
    style: Annotated[tuple[str, ...], unset("STYLE...")] = ()
    """styles to draw: numbers from 1, or mixtures such as 1:0.6,3:0.4; all styles if left out"""
    style_map: Annotated[Path | None, unset("PATH")] = None
    """mask with a style for every region, instead of --style: 1, 2, … as grey levels or indices of a palette, or red,
    green, blue for 1 to 3"""
    sweep: Annotated[tuple[int, int] | None, unset("INT INT")] = None
    """also write NAME_sweep.png: mixtures from one style to another, side by side"""
    steps: Annotated[int | None, unset("INT")] = None
    """number of pictures in the sweep; 5 if left out"""
    out: Annotated[str, tyro.conf.arg(metavar="PATH")] = "sketches"
    """folder to write to; or, with a suffix, the file for a single drawing; - is standard output"""
    format: Annotated[Format | None, unset("{png,jpeg,webp,svg}")] = None
    """format of the drawings in a folder; png if left out (sheets and sweeps are never svg)"""
    skip_existing: bool = False
    """leave out photos whose files are all there"""
    jobs: int = 1
    """number of photos that are drawn side by side, in a process each"""
    weights: str = "small"
    """built-in weights by name, a weights or checkpoint file, or a run's folder"""
    depth: str = "auto"
    """auto, tddfa, builtin, none, midas:MODEL, or a depth map file (for one photo)"""
    frame: Frame = "auto"
    """auto: the whole photo, its face upright; face: white paper around the face; whole: the photo as it is"""
    sheet: bool = False
    """also write NAME_sheet.png: photo, depth and all styles side by side"""
    device: str = "auto"
    """cpu, cuda, or auto"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida sketch``."""
    command: Command = read_command(Command, argv, "hida sketch", __doc__)
    from hida.drawing.styles import count_styles, names, parse_style, require_style, sweep

    command = _photos_apart(command)
    chosen: list[NamedStyle] = [parse_style(text) for text in dict.fromkeys(command.style)]
    photos = list_photos(command.photos)
    if command.jobs < 1:
        raise HidaError(f"--jobs is {command.jobs}; give 1 or more.")
    place = read_place(command.out, command.format)
    if place.is_stdout and command.skip_existing:
        raise HidaError("--skip-existing has no effect with --out -; give a file or a folder with --out.")
    require_one_for_map(photos, command.depth)
    if command.style_map is not None and (command.style or command.sheet or command.sweep):
        raise HidaError("--style-map gives every region its style; leave out --style, --sheet and --sweep.")
    if command.steps is not None and command.sweep is None:
        raise HidaError("--steps has no effect without --sweep; give both or neither.")
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
    suffixes = [f"_{name}" for name in names(chosen)] if command.style_map is None else ["_regions"]
    suffixes += ["_sheet"] * command.sheet + ["_sweep"] * bool(between)
    maps = [path for path in (command.style_map, Path(command.depth)) if path is not None and path.is_file()]
    targets = place.targets(photos, suffixes, maps)
    kinds = [SUFFIXES.get(target.suffix.lower(), place.format) for target in next(iter(targets.values()))]
    count = len(targets)
    if command.skip_existing:
        targets = without_existing(targets)
        if not targets:
            print(f"nothing to draw: the files of {_photos(count)} are in {command.out} already")
            return
    jobs = min(command.jobs, len(targets))
    begin = partial(_begin, command, chosen, between, kinds, jobs)
    written: list[Path] = []

    def write(photo: Path, contents: Sequence[bytes]) -> None:
        for target, content in zip(targets[photo], contents, strict=True):
            place.write(target, content)
            written.append(target)

    if jobs > 1:
        failed = for_each(targets, description="drawing", outcomes=run_side_by_side(list(targets), begin, write, jobs))
    else:
        render = begin()
        failed = for_each(targets, lambda photo: write(photo, render(photo_source(photo))))
    if place.is_stdout:
        return
    if count == 1:
        print("\n".join(str(target) for target in written))
    else:
        there = f", where those of {_photos(count - len(targets))} were already" if len(targets) < count else ""
        print(f"{len(written)} pictures of {_photos(len(targets) - failed)} in {command.out}{there}")
    if failed:
        raise HidaError(f"{failed} of {len(targets)} photos could not be drawn; the reasons are above.")


def _photos(count: int) -> str:
    return f"{count} photo{'' if count == 1 else 's'}"


def _begin(
    command: Command, styles: Sequence[NamedStyle], between: Sequence[NamedStyle], kinds: Sequence[Format], jobs: int
) -> Callable[[ImageSource], list[bytes]]:
    """Load the weights; return the function that draws a photo and returns the contents of its files.

    This is one of ``jobs`` processes, which share the cores.
    """
    import torch

    from hida.device import tune
    from hida.drawing.sketcher import Sketcher

    tune(command.device)
    if jobs > 1:
        torch.set_num_threads(min(cores_each(jobs), torch.get_num_threads()))
    sketcher = Sketcher.from_pretrained(command.weights, command.device)

    def render(photo: ImageSource) -> list[bytes]:
        pictures = draw(sketcher, photo, styles, between, command)
        return [encode(picture, kind) for picture, kind in zip(pictures, kinds, strict=True)]

    return render


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


def draw(
    sketcher: Sketcher,
    photo: ImageSource,
    styles: Sequence[NamedStyle],
    between: Sequence[NamedStyle],
    command: Command,
) -> list[Image.Image]:
    """Return the sketches of one photo, followed by the sheet and the sweep if they are asked for."""
    from hida.drawing.styles import style_heading, style_map_from_file
    from hida.images.sheet import sheet

    image = read_image(photo)
    wanted: list[Style] = [*styles]
    if command.style_map is not None:
        wanted = [style_map_from_file(command.style_map, image.size, sketcher.styles)]
    drawn, depth = sketcher.draw(image, [*wanted, *between], command.depth, command.frame, show_depth=command.sheet)
    sketches, swept = drawn[: len(wanted)], drawn[len(wanted) :]
    height = min(512, max(256, image.height))
    result = list(sketches)
    if depth is not None:  # with --sheet
        headings = ("photo", "depth", *(style_heading(style) for style in styles))
        result.append(sheet([[image, depth, *sketches]], headings, height))
    if between:
        result.append(sheet([[image, *swept]], ("photo", *(style_heading(style) for style in between)), height))
    return result
