"""Draw sketches of photos.

hida sketch photo.jpg
hida sketch photos/ --style 1 3 --out drawings --sheet
hida sketch photo.jpg --weights runs/mine --depth map.png
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image
from tqdm import tqdm

from hida.data.images import read_image, write_png
from hida.data.targets import list_photos, name_targets
from hida.device import choose_device
from hida.drawing.sketcher import Frame, NoFaceError, Sketcher
from hida.errors import HidaError, run_command
from hida.pictures import sheet

__all__ = ["NoFaceError", "Sketcher", "main"]


@dataclass(frozen=True)
class Options:
    """Draw pencil sketches of photos: one PNG a photo and style, of the photo's size."""

    photos: tyro.conf.Positional[tuple[Path, ...]]
    """photos, or folders of photos"""
    style: tuple[int, ...] = ()
    """styles to draw, from 1; all of them if left out"""
    out: Path = Path("sketches")
    """folder to write to"""
    weights: str = "small"
    """built-in weights by name, a weights or checkpoint file, or a run's folder"""
    depth: str = "auto"
    """auto, tddfa, builtin, none, midas:MODEL, or a depth map file (for one photo)"""
    frame: Frame = "auto"
    """auto: the whole photo, its face upright at its own scale; face: paper around the face; whole: no face needed"""
    sheet: bool = False
    """also write NAME_sheet.png: photo, depth and all styles side by side"""
    device: str = "auto"
    """cpu, cuda, or auto"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida sketch``."""
    options = tyro.cli(Options, args=argv, prog="hida sketch")
    photos = list_photos(options.photos)
    if Path(options.depth).is_file() and len(photos) > 1:
        raise HidaError(f"--depth {options.depth} is one map for {len(photos)} photos; draw them one by one.")
    sketcher = Sketcher.from_pretrained(options.weights, choose_device(options.device))
    styles = list(dict.fromkeys(options.style)) or list(range(1, sketcher.styles + 1))
    sketcher.require_styles(styles)
    suffixes = [f"_style{number}" for number in styles] + (["_sheet"] if options.sheet else [])
    targets = name_targets(photos, options.out, suffixes)
    faults, written = 0, []
    with warnings.catch_warnings(), tqdm(targets, unit="photo", disable=len(targets) < 2) as bar:
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: tqdm.write(f"hida: {message}", file=sys.stderr)
        for photo in bar:
            bar.set_description(photo.name)
            try:
                drawn = draw(sketcher, photo, styles, options)
            except HidaError as error:
                message = str(error) if str(photo) in str(error) else f"{photo}: {error}"
                if len(targets) == 1:
                    raise HidaError(message) from None
                tqdm.write(f"hida: {message}", file=sys.stderr)
                faults += 1
                continue
            for target, picture in zip(targets[photo], drawn, strict=True):
                write_png(target, picture)
                written.append(target)
    if len(targets) == 1:
        print("\n".join(str(target) for target in written))
    else:
        print(f"{len(written)} pictures of {len(targets) - faults} photos in {options.out}")
    if faults:
        raise HidaError(f"{faults} of {len(targets)} photos could not be drawn; the reasons stand above.")


def draw(sketcher: Sketcher, photo: Path, styles: list[int], options: Options) -> list[Image.Image]:
    """Return the sketches of one photo, and the sheet behind them if it is asked for."""
    image = read_image(photo)
    sketches, depth = sketcher.draw(image, styles, options.depth, options.frame, show_depth=options.sheet)
    if not options.sheet:
        return sketches
    headings = ("photo", "depth", *(f"style {number}" for number in styles))
    height = min(512, max(256, image.height))
    return [*sketches, sheet([[image, depth, *sketches]], headings, height)]


if __name__ == "__main__":
    sys.exit(run_command(main))
