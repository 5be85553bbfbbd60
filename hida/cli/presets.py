"""List the presets: how each differs from the released network, and what it costs.

    hida presets
    hida presets model_a full --width 16

The table is Markdown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from hida.cli.parsing import read_command, unset
from hida.config import Config, load_preset, presets

BASE = "released"
_PARTS = ("generator", "discriminator", "loss", "optimizer", "augment", "train")


@dataclass(frozen=True)
class Command:
    """List the presets."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], unset("[PRESET...]")] = ()
    """presets by name, or TOML files; all presets if left out"""
    width: Annotated[int | None, unset("INT")] = None
    """base width to count at, instead of each preset's own"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida presets``."""
    command: Command = read_command(Command, argv, "hida presets", __doc__)
    configs = [load_preset(name) for name in command.names or presets()]
    print(table(configs, command.width))
    print(f"\nMillions of generator parameters; 10⁹ operations (2 per multiply-accumulate) for an image of {_side()}².")


def table(configs: Sequence[Config], width: int | None = None) -> str:
    """Return the Markdown table of ``configs``: name, differences from ``released``, parameters and operations."""
    from hida.metrics.report import markdown_table
    from hida.models.cost import cost

    rows = []
    for config in configs:
        generator = config.generator if width is None else dataclasses.replace(config.generator, base_width=width)
        parameters, macs = cost(generator)
        rows.append([config.name, changes(config), f"{parameters / 1e6:.3f}", f"{2 * macs / 1e9:.2f}"])
    return markdown_table(["preset", f"differs from `{BASE}` in", "M parameters", "GFLOP"], rows)


def changes(config: Config, base: Config | None = None) -> str:
    """Return the fields in which ``config`` differs from ``base`` (the released preset), as ``--options`` name them."""
    base = load_preset(BASE) if base is None else base
    found = []
    for part in _PARTS:
        own, other = getattr(config, part), getattr(base, part)
        for field in dataclasses.fields(own):
            if getattr(own, field.name) != getattr(other, field.name):
                found.append(f"{part}.{field.name} = {_text(getattr(own, field.name))}")
    return ", ".join(found) or "nothing"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _side() -> int:
    from hida.models.generator import STRIDE

    return STRIDE
