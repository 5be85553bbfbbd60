"""Read the authors' released checkpoint as this project's configuration and tensors."""

from __future__ import annotations

import argparse
import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hida.config import Config, DiscriminatorConfig, GeneratorConfig, load_preset
from hida.weights.foreign import named_tensors
from hida.weights.released.layout import (
    DISCRIMINATOR,
    GENERATOR,
    NOT_NETWORK,
    ReleasedError,
    discriminator_layout,
    generator_layout,
    own_shapes,
    source_shape,
    to_own,
    unused_shapes,
)

# What Lightning checkpoints hold beside tensors, as data: the command line, and numbers of a monitored metric.
_NUMBERS = (np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType)
_PLAIN: list[type] = [argparse.Namespace, np.dtype, *_NUMBERS]
_scalar: Any = np.float64(0).__reduce__()[0]  # numpy's own, wherever this version keeps it
_NUMPY_SCALAR = [(_scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]


def read(path: Path) -> dict[str, Tensor]:
    """Return the ``state_dict`` of a Lightning checkpoint as float32.

    Raises:
        ReleasedError: it is absent, torn, or holds anything but tensors and plain data; nothing of it has run then.
    """
    if not path.is_file():
        raise ReleasedError(f"there is no checkpoint '{path}'; check the path.")
    try:
        with torch.serialization.safe_globals([*_PLAIN, *_NUMPY_SCALAR]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a torn file raises nearly anything
        raise ReleasedError(f"'{path}' {_refusal(str(error))}") from None
    state = named_tensors(content.get("state_dict") if isinstance(content, Mapping) else None)
    if state is None:
        raise ReleasedError(f"'{path}' has no state_dict of named tensors; give the released Lightning checkpoint.")
    return state


def convert(
    state: Mapping[str, Tensor], path: Path, further: Sequence[str] = ()
) -> tuple[Config, dict[str, Tensor], dict[str, Tensor]]:
    """Return the configuration, our tensors (``generator.…``, ``discriminator.…``), and what is left aside.

    Raises:
        ReleasedError: naming a tensor that is unknown, missing or of another shape.
    """
    config = _config(state, path)
    layouts = {"generator": generator_layout(config.generator), "discriminator": discriminator_layout()}
    shapes_of = {"generator": own_shapes(config.generator), "discriminator": own_shapes(config.discriminator)}
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
        if not torch.isfinite(state[name]).all():
            raise ReleasedError(f"'{path}' holds values that are not finite, in {name}; download it again.")
    known = tuple(unused_shapes(config.generator))
    aside = {name: value for name, value in state.items() if name not in wanted}
    unknown = [name for name in aside if name not in known and not name.startswith((*NOT_NETWORK, *further))]
    if unknown:
        raise ReleasedError(
            f"'{path}' holds what the released network does not have: {_some(unknown)}; if it is not used, name it "
            "with --unused."
        )
    tensors = {
        f"{part}.{name}": value for part, layout in layouts.items() for name, value in to_own(layout, state).items()
    }
    return config, tensors, aside


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
    return dataclasses.replace(
        preset,
        generator=dataclasses.replace(GeneratorConfig(), base_width=widths[0]),
        discriminator=DiscriminatorConfig(widths[1]),
    )


def _refusal(message: str) -> str:
    """Say in our words why torch did not read a file; its own recommend to try again without the safeguard."""
    named = re.search(r"GLOBAL\s+([\w.]+)", message)
    if named:
        return f"refers to {named[1]}, which is neither a tensor nor plain data; nothing of it has run."
    if "WeightsUnpickler" in message or "Weights only load failed" in message:
        return "is a pickle that holds more than tensors and plain data, or is torn; nothing of it has run."
    line = (message.splitlines() or ["no reason given"])[0][:120].rstrip(".")
    return f"cannot be read as a checkpoint ({line}); it is torn or of another kind."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
