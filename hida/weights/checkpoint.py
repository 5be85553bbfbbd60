"""Weights on disk: one safetensors file each, whole or absent, and nothing in it that could run.

Two kinds share one reader. *Weights* hold a generator; a *checkpoint* holds a whole training state, its tensors
named ``generator.…``, ``ema.…``, ``discriminator.…``, ``optimizer_generator.…`` and ``optimizer_discriminator.…``.
The configuration and the counters are JSON in the file's metadata.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from hida.config import Config, ConfigError, DiscriminatorConfig, GeneratorConfig, from_dict
from hida.documents import parse_json
from hida.errors import HidaError, first_line, label, shown, warn
from hida.files import atomic_path, require_file_place
from hida.models.build import outline
from hida.models.discriminator import Discriminator
from hida.models.generator import Generator
from hida.weights.foreign import check_header
from hida.weights.kinds import SAFETENSORS, irregular, kind_of
from hida.weights.opened import safe_open
from hida.weights.saving import save_tensors

WEIGHTS = "hida-weights"
CHECKPOINT = "hida-checkpoint"
VERSION = "1"
_CHECKPOINT_NAME = re.compile(r"iteration-\d+\.safetensors")


class CheckpointError(HidaError):
    """A weights or checkpoint file is missing, damaged, or of another kind."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's content: its configuration, counters and tensors (all of them, or those asked for)."""

    path: Path
    kind: str
    config: Config
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def iteration(self) -> int:
        """The iteration that it was written after; 0 where it does not say one."""
        found = self.state.get("iteration")
        return found if type(found) is int and 0 <= found < 2**63 else 0

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors named ``name.…`` without that prefix."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}


def save(
    path: str | os.PathLike[str], kind: str, config: Config, state: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write ``tensors`` with their configuration and counters; an existing file is replaced in one step."""
    metadata = {
        "format": kind,
        "version": VERSION,
        "config": json.dumps(config.to_dict()),
        "state": json.dumps(state),
    }
    try:
        with atomic_path(path) as temporary:
            save_tensors(temporary, tensors, metadata)
    except ValueError as error:
        raise CheckpointError(f"'{path}' was not written, since {error}.") from None


def load(path: str | os.PathLike[str], prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a file, or only its tensors under ``prefixes``.

    Raises:
        CheckpointError: if it is missing, torn, or not one of ours.
    """
    path = Path(path)
    if fault := irregular(path):
        raise CheckpointError(f"'{path}' {fault}; give a file of weights.")
    if not path.is_file():
        raise CheckpointError(f"there is no weights file '{path}'; check the path.")
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in (WEIGHTS, CHECKPOINT):
                raise CheckpointError(
                    f"'{path}' is a safetensors file but not one of HIDA's; give weights that hida train wrote."
                )
            if metadata.get("version") != VERSION:
                version = str(metadata.get("version"))
                version = version if version.isalnum() else shown(version)
                raise CheckpointError(
                    f"'{path}' has format version {version}, this program reads {VERSION}; update hida."
                )
            names = [name for name in file.keys() if prefixes is None or name.startswith(prefixes)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
        for part, words in (("config", "configuration"), ("state", "counters")):
            if part not in metadata:
                raise ValueError(f"it has no {words}")
        # An option may be infinite, such as the minutes between checkpoints.
        config = from_dict(parse_json(metadata["config"], finite=False).raw)
        counters = parse_json(metadata["state"])
        state = {name: counter.raw for name, counter in counters.fields().items()}
    except ConfigError as error:
        raise CheckpointError(f"'{path}' holds a configuration that this program does not know: {error}") from None
    except CheckpointError:
        raise
    except (HidaError, SafetensorError, OSError, KeyError, ValueError, TypeError, MemoryError) as error:
        kind = kind_of(path)
        if kind and kind != SAFETENSORS:
            raise CheckpointError(
                f"'{path}' is not a readable weights file (it is {kind}); give weights that hida train wrote."
            ) from None
        raise CheckpointError(
            f"'{path}' is not a readable weights file ({first_line(error)}); damaged or of another kind; copy it again."
        ) from None
    return Checkpoint(path, metadata["format"], config, state, tensors)


def generator_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the generator that draws best: the EMA of a checkpoint if it has one."""
    return checkpoint.part("ema") or checkpoint.part("generator")


def load_generator(path: str | os.PathLike[str]) -> tuple[Generator, Config]:
    """Build the generator of a weights or checkpoint file, or of a folder that :func:`load_weights` takes.

    Returns it in float32, in evaluation mode, with its configuration.

    Raises:
        CheckpointError: if nothing usable is there.
    """
    checkpoint = load_weights(path, ("ema.", "generator."))
    tensors = generator_tensors(checkpoint)
    # No memory is taken for a network that the file does not hold, and none for weights that the file's replace.
    generator = outline(Generator, checkpoint.config.generator)
    require_fit(tensors, shapes_of(generator), checkpoint.path)
    # Copies, since the file's tensors may be a view of it, at any address.
    own = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    generator.load_state_dict(own, assign=True)
    return generator.eval(), checkpoint.config


def read_config(path: str | os.PathLike[str]) -> Config:
    """Return the configuration of what :func:`load_weights` takes, without its tensors.

    Raises:
        CheckpointError: if nothing usable is there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is passed over is told when the weights are loaded
        return load_weights(path, ()).config


def load_weights(path: str | os.PathLike[str], prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a file, or a folder's newest whole checkpoint, or the weights.safetensors of one without checkpoints.

    Raises:
        CheckpointError: if nothing usable is there.
    """
    path = Path(path)
    if not path.is_dir():
        return load(path, prefixes)
    checkpoint = newest(path, prefixes)
    if checkpoint is None and (path / "weights.safetensors").is_file():
        return load(path / "weights.safetensors", prefixes)
    if checkpoint is None:
        raise CheckpointError(f"the folder '{path}' holds no whole checkpoint; give a run's folder or a weights file.")
    return checkpoint


def write_snapshot(run: Path, out: Path) -> Checkpoint:
    """Write the EMA generator of a run's newest whole checkpoint alone, in half precision, as weights.

    Args:
        run: the run's folder, or a checkpoint.
        out: the file to write; its configuration and counters are the checkpoint's.

    Returns:
        What was read.

    Raises:
        CheckpointError: if there is no checkpoint, or none that is whole.
    """
    found = _newest_or_why(run) if run.is_dir() else load(run, ("ema.",))
    if found.kind != CHECKPOINT:
        raise CheckpointError(f"'{run}' holds weights, not a checkpoint; give the folder of a run that has saved one.")
    save(out, WEIGHTS, found.config, found.state, {name: value.half() for name, value in found.tensors.items()})
    return found


def fill_module(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy ``tensors`` into ``module``.

    Raises:
        CheckpointError: as :func:`require_fit`.
    """
    require_fit(tensors, shapes_of(module), path)
    module.load_state_dict(tensors)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors, their names, shapes and types: the same wherever every bit is."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def network_shapes(config: GeneratorConfig | DiscriminatorConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a network's tensors, without the memory for it."""
    if isinstance(config, GeneratorConfig):
        return shapes_of(outline(Generator, config))
    return shapes_of(outline(Discriminator, config))


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a module's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def require_fit(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Require that the tensors of a file have exactly these names and shapes.

    Raises:
        CheckpointError: naming the first that has not.
    """
    for name in sorted(shapes.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "absent"
        wanted = shapes.get(name, "no such tensor")
        if found != wanted:
            raise CheckpointError(
                f"'{path}' does not fit its configuration: {label(name)} is {found}, expected {wanted}."
            )


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Return the file of a run's checkpoint."""
    return folder / "checkpoints" / f"iteration-{iteration:08d}.safetensors"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return a run's checkpoints, newest first; ``folder`` is the run's or its ``checkpoints``."""
    found = [*folder.glob("iteration-*.safetensors"), *folder.glob("checkpoints/iteration-*.safetensors")]
    return sorted((p for p in found if _CHECKPOINT_NAME.fullmatch(p.name)), key=lambda p: p.stem, reverse=True)


def newest(folder: Path, prefixes: tuple[str, ...] | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run; torn ones are passed over with a warning."""
    found, torn = _first_whole(folder, prefixes)
    _warn_of(torn)
    return found


def require_target(out: Path, suffixes: Sequence[str], given: Iterable[Path]) -> None:
    """Check, before any work, that weights can be written at ``out`` and replace nothing that is needed.

    Args:
        suffixes: those that it may have, the usual one first.
        given: the files that the weights are made from.

    Raises:
        CheckpointError: it has another suffix, is one of ``given``, or is or would be taken for a run's checkpoint.
        HidaError: it cannot be written.
    """
    if out.is_dir():
        raise CheckpointError(f"'{out}' is a folder; give the name of a file to write.")
    if out.suffix.lower() not in suffixes:
        raise CheckpointError(f"'{out}' does not end in {suffixes[0]}; give it a name that ends in {suffixes[0]}.")
    names = (out.name, os.path.basename(os.path.realpath(out)))  # of the link, and what it leads to
    named = any(_CHECKPOINT_NAME.fullmatch(name) for name in names)
    if named and not out.exists():  # the run would continue from it
        raise CheckpointError(f"'{out}' has the name of a run's checkpoint; choose another name.")
    if named or _is_checkpoint(out):
        raise CheckpointError(f"'{out}' is a checkpoint of a run, which the weights would replace; choose another.")
    for path in given:
        with contextlib.suppress(OSError):  # what is not there is not replaced
            if os.path.samefile(path, out):
                raise CheckpointError(f"'{out}' is itself what is read; choose another name to write.")
    require_file_place(out)


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file says of itself that it is a checkpoint; a damaged one no longer does."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == CHECKPOINT
    except (SafetensorError, OSError):
        return False


def _newest_or_why(folder: Path) -> Checkpoint:
    """Return the EMA generator of a run's newest whole checkpoint, or raise what there is instead of one."""
    found, torn = _first_whole(folder, ("ema.",))
    if found:
        _warn_of(torn)
        return found
    if torn:
        raise CheckpointError(f"all checkpoints of '{folder}' are damaged or unreadable, the newest: {torn[0]}")
    if (folder / "config.json").is_file():
        raise CheckpointError(f"the run '{folder}' holds no checkpoint; wait for its first or give another run.")
    raise CheckpointError(
        f"'{folder}' is no run's folder, it holds no checkpoint; give the folder that hida train --out has written."
    )


def _first_whole(folder: Path, prefixes: tuple[str, ...] | None) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """Return the newest whole checkpoint and what is wrong with the ones after it."""
    torn: list[CheckpointError] = []
    for path in checkpoint_paths(folder):
        try:
            return load(path, prefixes), torn
        except CheckpointError as error:
            torn.append(error)
    return None, torn


def _warn_of(torn: list[CheckpointError]) -> None:
    for error in torn:
        warn(f"passing over a checkpoint: {error}")
