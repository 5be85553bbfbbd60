"""Show what the modules do inside the network (the paper's Fig. 7).

hida inspect photo.jpg
hida inspect photo.jpg --style 3 --weights runs/mine --out inspection

Writes NAME_features.png: for every decoder level the map before and after InfoACON, θ, γ, β, the level's result and the
offsets of DOG; and NAME_modules.png: the sketch with all modules and without each, and what each changes. A module is
switched off by replacing what it computes from the picture by its mean over the picture, and DOG by sampling where an
ordinary convolution does. The face's view is shown, or the first of a photo without one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from hida import ops
from hida.data.targets import list_photos, name_targets
from hida.device import choose_device
from hida.drawing.sketcher import Frame, Sketcher
from hida.errors import HidaError, run_command
from hida.files import atomic_path
from hida.models import Generator
from hida.nn import DOG, DynamicAdaptation
from hida.ops import info_acon

COLUMNS = ("H", "θ", "after InfoACON", "γ", "β", "result", "DOG offsets")


@dataclass(frozen=True)
class Command:
    """Show activations, θ, γ, β and DOG offsets of every level, and the sketch without each module."""

    photos: tyro.conf.Positional[tuple[Path, ...]]
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
    """auto and face show the face's view; whole: the first view of the photo as it is"""
    device: str = "auto"
    """cpu, cuda, or auto"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida inspect``."""
    command = tyro.cli(Command, args=argv, prog="hida inspect", description=__doc__)
    photos = list_photos(command.photos)
    if Path(command.depth).is_file() and len(photos) > 1:
        raise HidaError(f"--depth {command.depth} is one map for {len(photos)} photos; inspect them one by one.")
    pyplot = require_pyplot()
    sketcher = Sketcher.from_pretrained(command.weights, choose_device(command.device))
    sketcher.require_styles([command.style])
    targets = name_targets(photos, command.out, ("_features", "_modules"))
    for photo, (features_path, modules_path) in targets.items():
        given = sketcher.main_view(photo, command.depth, command.frame)
        style = torch.tensor([command.style - 1], device=sketcher.device)
        figures = (
            (features_path, features_figure(pyplot, features(sketcher.generator, *given, style))),
            (modules_path, modules_figure(pyplot, given[0], ablations(sketcher.generator, *given, style))),
        )
        for path, figure in figures:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=110)
            pyplot.close(figure)
            print(path)


def require_pyplot() -> ModuleType:
    """Return matplotlib's pyplot, drawing without a screen; HidaError if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise HidaError("matplotlib is not installed; run pip install 'hida[inspect]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@contextlib.contextmanager
def _hooked(hooks: Sequence[tuple[torch.nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    # The reference calls every submodule; a fused path need not.
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        with torch.inference_mode(), ops.backend("reference"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def features(generator: Generator, photo: Tensor, depth: Tensor, style: Tensor) -> list[dict[str, Tensor]]:
    """Return, for each decoder level, what :data:`COLUMNS` name: maps (C, H, W), those that its modules have.

    photo (1, 3, H, W), depth (1, 1, H, W), style (1,) as the generator takes them.
    """
    found: list[dict[str, Tensor]] = [{} for _ in generator.decoder]
    hooks = []

    def note_adaptation(maps: dict[str, Tensor]) -> Callable[..., None]:
        def note(module: torch.nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            maps["H"], maps["result"] = given[0][0], result[0]

        return note

    def note_modulation(maps: dict[str, Tensor]) -> Callable[..., None]:
        def note(module: torch.nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            maps["logits"], maps["γ"], maps["β"] = result[0].chunk(3)

        return note

    def note_offsets(maps: dict[str, Tensor]) -> Callable[..., None]:
        def note(module: torch.nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            maps["DOG offsets"] = result[0, : 2 * DOG.groups * DOG.taps]

        return note

    for maps, level in zip(found, generator.decoder, strict=True):
        hooks.append((level.adaptation, note_adaptation(maps)))
        if isinstance(level.adaptation, DynamicAdaptation):
            hooks.append((level.adaptation.modulation, note_modulation(maps)))
        if isinstance(level.up, DOG):
            hooks.append((level.up.offset_mask, note_offsets(maps)))
    with _hooked(hooks):
        generator(photo, depth, style)
        for maps, level in zip(found, generator.decoder, strict=True):
            if "logits" in maps:
                logits = maps.pop("logits")
                p1, p2 = level.adaptation.p1, level.adaptation.p2
                maps["after InfoACON"] = info_acon(maps["H"][None], logits[None], p1, p2)[0]
                maps["θ"] = logits.sigmoid()
    return found


def ablations(generator: Generator, photo: Tensor, depth: Tensor, style: Tensor) -> dict[str, Tensor]:
    """Return the sketch (H, W) in [−1, 1] with all modules, and without each that the network has."""

    def flat(first: int, last: int) -> Callable[..., Tensor]:
        def replace(module: torch.nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
            parts = list(result.chunk(3, 1))
            for k in range(first, last):
                parts[k] = parts[k].mean((2, 3), keepdim=True).expand_as(parts[k])
            return torch.cat(parts, 1)

        return replace

    def straight(module: torch.nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        offsets = 2 * DOG.groups * DOG.taps
        return torch.cat((torch.zeros_like(result[:, :offsets]), result[:, offsets:]), 1)

    adapted = [level.adaptation for level in generator.decoder if isinstance(level.adaptation, DynamicAdaptation)]
    outlined = [level.up for level in generator.decoder if isinstance(level.up, DOG)]
    switched: dict[str, list[tuple[torch.nn.Module, Callable[..., Any]]]] = {"all modules": []}
    if adapted:
        switched["without InfoACON"] = [(module.modulation, flat(0, 1)) for module in adapted]
        switched["without DySPADE"] = [(module.modulation, flat(1, 3)) for module in adapted]
    if outlined:
        switched["without DOG"] = [(module.offset_mask, straight) for module in outlined]
    drawn = {}
    for name, hooks in switched.items():
        with _hooked(hooks):
            drawn[name] = generator(photo, depth, style)[0][0, 0]
    if generator.config.depth:
        with _hooked([]):
            drawn["without depth"] = generator(photo, torch.zeros_like(depth), style)[0][0, 0]
    return drawn


def features_figure(pyplot: ModuleType, levels: Sequence[dict[str, Tensor]]) -> Any:
    """Return the grid: a row a level; of each map the channel that varies most over the picture, and its range."""
    columns = [name for name in COLUMNS if any(name in maps for maps in levels)]
    figure, axes = pyplot.subplots(
        len(levels), len(columns), figsize=(1.9 * len(columns) + 0.6, 2.0 * len(levels) + 0.5), squeeze=False
    )
    for row, maps in enumerate(levels):
        for column, name in enumerate(columns):
            axis = axes[row][column]
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name)
            if column == 0:
                side = maps["H"].shape[1:]
                axis.set_ylabel(f"up{row}, {side[0]}×{side[1]}")
            if name not in maps:
                axis.axis("off")
            elif name == "DOG offsets":
                _draw_offsets(axis, maps[name].float().cpu())
            else:
                _draw_map(axis, name, maps[name].float().cpu())
    figure.tight_layout()
    return figure


def _draw_map(axis: Any, name: str, maps: Tensor) -> None:
    shown = maps[int(maps.flatten(1).std(1).argmax())].numpy()
    # γ and β have a natural zero, which a diverging scale shows.
    limit = float(np.abs(shown).max()) or 1.0
    scale = {"θ": ("viridis", 0.0, 1.0), "γ": ("RdBu_r", -limit, limit), "β": ("RdBu_r", -limit, limit)}
    colours, low, high = scale.get(name, ("gray", float(shown.min()), float(shown.max())))
    axis.imshow(shown, cmap=colours, vmin=low, vmax=high)
    axis.set_xlabel(f"{shown.min():.2g} … {shown.max():.2g}", fontsize=7)


def _draw_offsets(axis: Any, offsets: Tensor) -> None:
    """Draw the mean displacement of the nine taps of the first group: its length in colour, its direction as arrows."""
    rows, columns = offsets[: 2 * DOG.taps].unflatten(0, (DOG.taps, 2)).mean(0).numpy()
    length = np.hypot(rows, columns)
    axis.imshow(length, cmap="magma", vmin=0)
    step = max(1, length.shape[0] // 16)
    y, x = np.mgrid[: length.shape[0] : step, : length.shape[1] : step]
    if length.any():  # a fresh DOG moves nothing, and arrows without length cannot be scaled
        axis.quiver(x, y, columns[::step, ::step], rows[::step, ::step], color="white", angles="xy", width=0.008)
    axis.set_xlabel(f"up to {length.max():.2g} px", fontsize=7)


def modules_figure(pyplot: ModuleType, photo: Tensor, drawn: dict[str, Tensor]) -> Any:
    """Return the sketches, and below each what the missing module changes: red darker without it, blue lighter."""
    names = list(drawn)
    figure, axes = pyplot.subplots(2, len(names), figsize=(3.0 * len(names), 6.4), squeeze=False)
    whole = drawn[names[0]].float().cpu().numpy()
    for column, name in enumerate(names):
        sketch = drawn[name].float().cpu().numpy()
        axes[0][column].imshow(sketch, cmap="gray", vmin=-1, vmax=1)
        axes[0][column].set_title(name)
        if column == 0:
            axes[1][0].imshow(((photo[0].float().cpu() + 1) / 2).permute(1, 2, 0).clamp(0, 1).numpy())
            axes[1][0].set_xlabel("photo")
        else:
            axes[1][column].imshow(whole - sketch, cmap="bwr", vmin=-1, vmax=1)
            axes[1][column].set_xlabel(f"mean change {np.abs(whole - sketch).mean() / 2:.3f}")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    sys.exit(run_command(main))
