"""The authors' released checkpoint: its names and shapes, and what each tensor is in this project.

A PyTorch Lightning ``.ckpt`` whose ``state_dict`` holds ``Generator.*`` and ``Discrimanator.discriminator_0.*``. Three
things differ from our arrangement: γ, β and the logits of θ come from three convolutions, which are one here; the style
channels are in the order style 2, style 3, style 1; and the released classes register modules that the network never
uses, which are listed and not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hida.config import GeneratorConfig
from hida.errors import HidaError

GENERATOR, DISCRIMINATOR = "Generator.", "Discrimanator.discriminator_0."
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last words of the names of what is no parameter: what a batch norm has counted."""
NOT_NETWORK = ("criterion",)
"""Prefixes of what the training module keeps beside the two networks: its losses."""
STYLES = 3
_STYLE_FIRST = 1  # the channel of a condition convolution at which the style begins, behind the depth
_THEIR_STYLES = (2, 0, 1)  # where our style s is among theirs
_SHARED_WIDTH = 128  # of norm.mlp_shared, whatever the base width
# Everything that stands beside another under one name, in the order of the released classes.
_PARTS = (
    "Generator Discrimanator down_rgb down_par down2 down3 down4 down5 down6 down7 down8 up0 up1 up2 up3 up4 up5 up6 "
    "final_rgb final_par weight bias running_mean running_var num_batches_tracked p1 p2 layers dcn conv_offset_mask "
    "fc1 bn1 fc2 bn2 fc3 norm mlp_shared mlp_gamma mlp_beta en_conv metaAcon metaAcon_en"
)
_RANK = {part: rank for rank, part in enumerate(_PARTS.split())}


class Source(NamedTuple):
    """Where one of our tensors comes from: their names (three are joined), and whether style channels turn."""

    names: tuple[str, ...]
    styles: bool = False


def generator_layout(config: GeneratorConfig) -> dict[str, Source]:
    """Return, for every tensor of our released generator, its source in their checkpoint."""
    layout: dict[str, Source] = {}

    def put(ours: str, *theirs: str, styles: bool = False) -> None:
        for kind in ("weight", "bias"):
            names = tuple(f"{GENERATOR}{name}.{kind}" for name in theirs)
            layout[f"{ours}.{kind}"] = Source(names, styles and kind == "weight")

    def put_acon(ours: str, theirs: str) -> None:
        put(f"{ours}.squeeze", f"{theirs}.fc1")
        put(f"{ours}.expand", f"{theirs}.fc2")
        for slope in ("p1", "p2"):
            layout[f"{ours}.{slope}"] = Source((f"{GENERATOR}{theirs}.{slope}",))

    put("stem_photo", "down_rgb")
    put("stem_depth", "down_par")
    for k in range(7):
        put_acon(f"encoder.{k}.activation", f"down{k + 2}.model.0")
        put(f"encoder.{k}.conv", f"down{k + 2}.model.1")
    for k in range(7):
        ours, theirs = f"decoder.{k}", f"up{k}"
        if k in config.dog_levels:
            put(f"{ours}.up", f"{theirs}.dcn")
            put(f"{ours}.up.offset_mask", f"{theirs}.dcn.conv_offset_mask")
        else:
            put(f"{ours}.up", f"{theirs}.layers")
        if k:
            put(f"{ours}.appearance.0", f"{theirs}.en_conv")
            put_acon(f"{ours}.appearance.1", f"{theirs}.metaAcon_en")
        put(f"{ours}.adaptation.embed", f"{theirs}.fc{1 if k else 2}", styles=True)
        put_acon(f"{ours}.adaptation.activation", f"{theirs}.metaAcon")
        put(f"{ours}.adaptation.modulation", f"{theirs}.fc3", f"{theirs}.norm.mlp_gamma", f"{theirs}.norm.mlp_beta")
        for slope in ("p1", "p2"):
            layout[f"{ours}.adaptation.{slope}"] = Source((f"{GENERATOR}{theirs}.{slope}",))
    for ours, theirs in (("head_sketch", "final_rgb"), ("head_depth", "final_par")):
        put_acon(f"{ours}.activation", f"{theirs}.0")
        put(f"{ours}.up", f"{theirs}.1")
    return layout


def discriminator_layout() -> dict[str, Source]:
    """Return, for every tensor of our discriminator, its source in their checkpoint."""
    places = {0: "model0.0", 3: "model1.1", 6: "model2.1", 9: "model3.1", 13: "model5.0"}
    return {
        f"layers.{ours}.{kind}": Source((f"{DISCRIMINATOR}{theirs}.{kind}",))
        for ours, theirs in places.items()
        for kind in ("weight", "bias")
    }


def unused_shapes(config: GeneratorConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of what the released generator class registers and never uses.

    In every metaACON, used or not: the two batch norms that it bypasses. In every decoder level: the upsampling that it
    does not take, the condition convolution of the other number of channels, SPADE's own shared layer, an activation
    inside it; and the innermost level's appearance branch.
    """
    width = config.base_width
    shapes: dict[str, tuple[int, ...]] = {}

    def put(name: str, weight: tuple[int, ...], bias: int) -> None:
        shapes[f"{GENERATOR}{name}.weight"], shapes[f"{GENERATOR}{name}.bias"] = weight, (bias,)

    def put_norms(name: str, channels: int) -> None:
        for norm, size in (("bn1", max(16, channels // 16)), ("bn2", channels)):
            put(f"{name}.{norm}", (size,), size)
            for buffer in BUFFERS[:2]:
                shapes[f"{GENERATOR}{name}.{norm}.{buffer}"] = (size,)
            shapes[f"{GENERATOR}{name}.{norm}.{BUFFERS[2]}"] = ()

    def put_acon(name: str, channels: int) -> None:
        hidden = max(16, channels // 16)
        put_norms(name, channels)
        shapes[f"{GENERATOR}{name}.p1"] = shapes[f"{GENERATOR}{name}.p2"] = (1, channels, 1, 1)
        put(f"{name}.fc1", (hidden, channels, 1, 1), hidden)
        put(f"{name}.fc2", (channels, hidden, 1, 1), channels)

    for k, factor in enumerate([2, 2, 4, 8, 8, 8, 8]):
        put_norms(f"down{k + 2}.model.0", factor * width)
    for head in ("final_rgb", "final_par"):
        put_norms(f"{head}.0", 2 * width)
    channels_in = [8, 16, 16, 16, 16, 8, 4]
    for k, (factor_in, factor_out) in enumerate(zip(channels_in, [8, 8, 8, 8, 4, 2, 1], strict=True)):
        before, after, name = factor_in * width, factor_out * width, f"up{k}"
        if k in config.dog_levels:
            put(f"{name}.layers", (before, after, 4, 4), after)
        else:
            put(f"{name}.dcn", (after, before, 3, 3), after)
            put(f"{name}.dcn.conv_offset_mask", (54, before, 3, 3), 54)
        other = STYLES + (1 if k else 2)
        put(f"{name}.fc{2 if k else 1}", (after, other, 3, 3), after)
        put(f"{name}.norm.mlp_shared.0", (_SHARED_WIDTH, 2 if k else 1, 3, 3), _SHARED_WIDTH)
        put_acon(f"{name}.norm.mlp_shared.1", _SHARED_WIDTH)
        put_acon(f"{name}.norm.metaAcon", before)
        put_norms(f"{name}.metaAcon", after)
        if k:
            put_norms(f"{name}.metaAcon_en", 1)
        else:
            put(f"{name}.en_conv", (before // 2, 1, 4, 4), 1)
            put_acon(f"{name}.metaAcon_en", 1)
    return shapes


def place(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts names as the released classes register them."""
    return tuple((_RANK.get(part, len(_RANK)), part.zfill(4)) for part in name.split("."))


def source_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """Return the shape of each of the source's tensors, where ours has ``shape``."""
    return (shape[0] // len(source.names), *shape[1:])


def to_own(layout: Mapping[str, Source], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors from theirs."""
    result = {}
    for name, source in layout.items():
        tensor = (
            torch.cat([theirs[part] for part in source.names]) if len(source.names) > 1 else theirs[source.names[0]]
        )
        result[name] = _turn_styles(tensor, _THEIR_STYLES) if source.styles else tensor
    return result


def to_theirs(layout: Mapping[str, Source], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return their tensors from ours: the inverse of :func:`to_own`."""
    result: dict[str, Tensor] = {}
    back = [_THEIR_STYLES.index(k) for k in range(STYLES)]
    for name, source in layout.items():
        tensor = _turn_styles(own[name], back) if source.styles else own[name]
        result.update(zip(source.names, tensor.chunk(len(source.names)), strict=True))
    return result


def _turn_styles(weight: Tensor, order: tuple[int, ...] | list[int]) -> Tensor:
    first, last = _STYLE_FIRST, _STYLE_FIRST + STYLES
    return torch.cat((weight[:, :first], weight[:, first:last][:, list(order)], weight[:, last:]), 1)


class ReleasedError(HidaError):
    """A file is not the authors' checkpoint, or weights are not of the released network."""
