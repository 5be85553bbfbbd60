"""The figures of ``hida inspect``, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from hida.errors import HidaError
from hida.models.inspection import COLUMNS
from hida.nn import DOG


def require_pyplot() -> ModuleType:
    """Return matplotlib's pyplot, which draws without a screen.

    Raises:
        HidaError: if it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise HidaError("matplotlib is not installed; run pip install matplotlib.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def features_figure(pyplot: ModuleType, levels: Sequence[dict[str, Tensor]]) -> Any:
    """Return a grid, one row per level: of each map the channel that varies most over the picture, and its range."""
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
    """Return the sketches, and below each what the missing module changes: red is darker without it, blue lighter."""
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
