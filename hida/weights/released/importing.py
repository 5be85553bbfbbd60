"""Read the authors' released checkpoint as this project's configuration and tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hida.config import Config, ConfigError, DiscriminatorConfig, GeneratorConfig, load_preset
from hida.errors import first_line, label, shown
from hida.weights.checkpoint import network_shapes
from hida.weights.kinds import irregular, kind_of
from hida.weights.pickled import Foreign, PickleError
from hida.weights.released.layout import (
    DISCRIMINATOR,
    GENERATOR,
    NOT_NETWORK,
    ReleasedError,
    discriminator_layout,
    generator_layout,
    source_shape,
    to_own,
    unused_shapes,
)
from hida.weights.torch_file import TorchFile

_LONGEST_NAME = 500


def read(path: Path) -> dict[str, Tensor]:
    """Return the ``state_dict`` of a Lightning checkpoint, each tensor in the precision that it has there.

    Raises:
        ReleasedError: it is absent, torn, or holds anything but tensors and plain data; nothing of it has run then.
        OSError: it cannot be opened.
    """
    if path.is_dir():
        raise ReleasedError(f"'{path}' is a folder; give the checkpoint file in it.")
    if fault := irregular(path):
        raise ReleasedError(f"'{path}' {fault}.")
    if not path.is_file():
        raise ReleasedError(f"there is no checkpoint '{path}'; check the path.")
    try:
        file = TorchFile(path)
        state = file.tensors(file.content.get("state_dict") if isinstance(file.content, dict) else None)
    except Foreign as error:
        raise ReleasedError(
            f"'{path}' refers to {error.name}, which is neither a tensor nor plain data; nothing of it has run."
        ) from None
    except PickleError as error:
        if kind := kind_of(path):
            raise ReleasedError(
                f"'{path}' cannot be read as a checkpoint (it is {kind}); give the released Lightning checkpoint."
            ) from None
        raise ReleasedError(
            f"'{path}' cannot be read as a checkpoint ({error}); it is torn or of another kind."
        ) from None
    if state is None:
        raise ReleasedError(f"'{path}' has no state_dict of named tensors; give the released Lightning checkpoint.")
    for name in state:
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise ReleasedError(
                f"'{path}' has a tensor whose name is too long or not printable, {shown(name)}; give the released "
                "Lightning checkpoint."
            )
    return state


def record(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names in their order and the precisions, with which :func:`exporting.convert` gives back the same."""
    return [[name, str(value.dtype).removeprefix("torch.")] for name, value in state.items()]


def convert(
    state: Mapping[str, Tensor], path: Path, further: Sequence[str] = ()
) -> tuple[Config, dict[str, Tensor], dict[str, Tensor]]:
    """Return the configuration, our tensors (``generator.…``, ``discriminator.…``), and what is left aside.

    No value loses a digit: half precisions become single, double stays.

    Raises:
        ReleasedError: naming a tensor that is unknown, missing or of another shape.
    """
    config = _config(state, path)
    layouts = {"generator": generator_layout(config.generator), "discriminator": discriminator_layout()}
    shapes_of = {"generator": network_shapes(config.generator), "discriminator": network_shapes(config.discriminator)}
    wanted: dict[str, tuple[int, ...]] = {}
    for part, layout in layouts.items():
        shapes = shapes_of[part]
        for name, source in layout.items():
            wanted.update(dict.fromkeys(source.names, source_shape(shapes[name], source)))
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ReleasedError(f"'{path}' lacks {_some(missing)}; give the whole released checkpoint.")
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise ReleasedError(
                f"'{path}' is not of the released network: {name} is {tuple(state[name].shape)}, not {shape}; give "
                "the released Lightning checkpoint."
            )
        if not state[name].is_floating_point():
            raise ReleasedError(f"'{path}' holds whole numbers, in {name}; give the released Lightning checkpoint.")
        # The network computes in single precision, whatever the file has.
        if not torch.isfinite(state[name].float()).all():
            raise ReleasedError(f"'{path}' holds values that are not finite, in {name}; download it again.")
    _require_used(further, state, wanted, path)
    whole = {name: _at_least_single(value) for name, value in state.items()}
    known = tuple(unused_shapes(config.generator))
    aside = {name: value for name, value in state.items() if name not in wanted}
    unknown = [name for name in aside if name not in known and not name.startswith((*NOT_NETWORK, *further))]
    if unknown:
        raise ReleasedError(
            f"'{path}' holds what the released network does not have: {_some(unknown)}; if it is not used, name it "
            "with --unused."
        )
    tensors = {
        f"{part}.{name}": value for part, layout in layouts.items() for name, value in to_own(layout, whole).items()
    }
    return config, tensors, {name: whole[name] for name in aside}


def _require_used(further: Sequence[str], state: Mapping[str, Tensor], wanted: Mapping[str, Any], path: Path) -> None:
    """Require that each of the beginnings of names to ignore is that of a tensor which may be ignored."""
    for beginning in further:
        if not beginning:
            raise ReleasedError("--unused is empty, which would ignore everything; give the beginning of a name.")
        fitting = [name for name in state if name.startswith(beginning)]
        if not fitting:
            raise ReleasedError(
                f"'{path}' has no tensor whose name begins with {shown(beginning)}, as --unused says; check the name, "
                "or leave it out."
            )
        if all(name in wanted for name in fitting):
            raise ReleasedError(
                f"--unused {shown(beginning)} names only what the network uses, such as {fitting[0]}; leave it out."
            )


def _config(state: Mapping[str, Tensor], path: Path) -> Config:
    """Return the released configuration at the checkpoint's own widths."""
    widths = []
    for name in (f"{GENERATOR}down_rgb.weight", f"{DISCRIMINATOR}model0.0.weight"):
        if name not in state:
            raise ReleasedError(f"'{path}' lacks {name}; give the released Lightning checkpoint.")
        if state[name].dim() != 4:
            raise ReleasedError(
                f"'{path}' is not of the released network: {name} is {tuple(state[name].shape)}; give the released "
                "Lightning checkpoint."
            )
        widths.append(state[name].shape[0])
    preset = load_preset("released")
    try:
        return dataclasses.replace(
            preset,
            generator=dataclasses.replace(GeneratorConfig(), base_width=widths[0]),
            discriminator=DiscriminatorConfig(widths[1]),
        )
    except ConfigError as error:
        raise ReleasedError(
            f"'{path}' is not of the released network ({first_line(error)}); give the released Lightning checkpoint."
        ) from None


def _at_least_single(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(label, names[:3])) + more
