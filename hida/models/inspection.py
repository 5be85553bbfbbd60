"""What the modules do inside a generator: the maps of every decoder level, and the sketch without each module.

A module is switched off by replacing what it computes from the picture by its mean over the picture, and DOG by
sampling where an ordinary convolution does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hida import ops
from hida.models.generator import DecoderLevel, Generator
from hida.nn import DOG, DynamicAdaptation
from hida.ops import info_acon

COLUMNS = ("H", "θ", "after InfoACON", "γ", "β", "result", "DOG offsets")


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


def _levels(generator: Generator) -> list[DecoderLevel]:
    return [level for level in generator.decoder if isinstance(level, DecoderLevel)]


def features(generator: Generator, photo: Tensor, depth: Tensor, style: Tensor) -> list[dict[str, Tensor]]:
    """Return, for each decoder level, what :data:`COLUMNS` name: maps (C, H, W), those that its modules have.

    Args:
        photo, depth, style: (1, 3, H, W), (1, 1, H, W) and (1,), as the generator takes them.
    """
    levels = _levels(generator)
    found: list[dict[str, Tensor]] = [{} for _ in levels]
    hooks: list[tuple[torch.nn.Module, Callable[..., Any]]] = []

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

    for maps, level in zip(found, levels, strict=True):
        hooks.append((level.adaptation, note_adaptation(maps)))
        if isinstance(level.adaptation, DynamicAdaptation):
            hooks.append((level.adaptation.modulation, note_modulation(maps)))
        if isinstance(level.up, DOG):
            hooks.append((level.up.offset_mask, note_offsets(maps)))
    with _hooked(hooks):
        generator(photo, depth, style)
        for maps, level in zip(found, levels, strict=True):
            adaptation = level.adaptation
            if isinstance(adaptation, DynamicAdaptation):
                logits = maps.pop("logits")
                maps["after InfoACON"] = info_acon(maps["H"][None], logits[None], adaptation.p1, adaptation.p2)[0]
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

    levels = _levels(generator)
    adapted = [level.adaptation for level in levels if isinstance(level.adaptation, DynamicAdaptation)]
    outlined = [level.up for level in levels if isinstance(level.up, DOG)]
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
