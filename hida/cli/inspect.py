"""Show what the modules do inside the network (the paper's Fig. 7).

    hida inspect photo.jpg
    hida inspect photo.jpg --style 3 --weights runs/mine --out inspection

Writes NAME_features.png: for every decoder level the map before and after InfoACON, θ, γ, β, the level's result and the
offsets of DOG; and NAME_modules.png: the sketch with all modules and without each, and what each changes. A module is
switched off by replacing the maps that it computes by their means over the picture, and DOG by sampling where an
ordinary convolution does. The view of the face is shown, or the first view of a photo without a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from hida.cli.parsing import read_command, unset
from hida.cli.photos import Frame, for_each, list_photos, photo_source, require_depth
from hida.cli.targets import name_targets
from hida.errors import HidaError, counted
from hida.files import atomic_path, require_folder_place
from hida.images.writing import MARK


@dataclass(frozen=True)
class Command:
    """Show activations, θ, γ, β and DOG offsets of every level, and the sketch without each module."""

    photos: Annotated[tyro.conf.Positional[tuple[Path, ...]], unset("PHOTO...")]
    """photos, or folders of photos"""
    style: int = 1
    """style to draw, from 1"""
    out: Path = Path("inspection")
    """folder to write to"""
    weights: str = "small"
    """built-in weights by name, a weights or checkpoint file, or a run's folder"""
    depth: str = "auto"
    """auto, tddfa, builtin, none, midas:MODEL, or a depth map file (for one photo)"""
    frame: Frame = "auto"
    """auto, portrait, face: the view of the largest face; whole: the first view of the photo as it is"""
    device: str = "auto"
    """cpu, cuda, or auto"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida inspect``."""
    command: Command = read_command(Command, argv, "hida inspect", __doc__)
    import torch

    from hida.cli.figures import features_figure, modules_figure, require_pyplot
    from hida.device import choose_device
    from hida.drawing.prepared import load_depth
    from hida.drawing.sketcher import Sketcher
    from hida.models.inspection import ablations, features

    photos = list_photos(command.photos)
    require_depth(photos, command.depth)
    require_folder_place(command.out)
    pyplot = require_pyplot()
    sketcher = Sketcher.from_pretrained(command.weights, choose_device(command.device))
    sketcher.require_styles([command.style])
    load_depth(command.depth)
    targets = name_targets(photos, command.out, ("_features", "_modules"))

    def draw(photo: Path) -> None:
        features_path, modules_path = targets[photo]
        given = sketcher.main_view(photo_source(photo), command.depth, command.frame)
        style = torch.tensor([command.style - 1], device=sketcher.device)
        figures = (
            (features_path, features_figure(pyplot, features(sketcher.generator, *given, style))),
            (modules_path, modules_figure(pyplot, given[0], ablations(sketcher.generator, *given, style))),
        )
        try:
            for path, figure in figures:
                with atomic_path(path) as temporary:
                    figure.savefig(temporary, dpi=110, metadata={"Software": MARK})
                tqdm.write(str(path))
        finally:
            pyplot.close("all")

    failed = for_each(targets, draw)
    if failed:
        raise HidaError(f"{failed} of {counted(len(targets), 'photo')} could not be inspected; the reasons are above.")
