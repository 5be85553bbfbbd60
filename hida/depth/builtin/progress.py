"""What a training of the built-in predictor has reached: kept in a file, and continued from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hida.depth.builtin.options import Options
from hida.documents import parse_json
from hida.errors import HidaError, first_line, handled, label, stops
from hida.files import atomic_path
from hida.weights.foreign import check_header
from hida.weights.opened import safe_open
from hida.weights.pickled import PickleError
from hida.weights.saving import save_tensors
from hida.weights.torch_file import TorchFile

FORMAT, VERSION = "hida-depth-training", "1"
_OPTIONS = ("steps", "batch", "lr", "weight_decay", "ema", "held_out", "seed")


@dataclass(frozen=True)
class Progress:
    """The steps and seconds that were trained, the tensors, and the options that decide what they are.

    The tensors are named ``network.…``, ``averaged.…`` and ``optimiser.KEY.…``.
    """

    step: int
    seconds: float
    options: Mapping[str, float]
    tensors: Mapping[str, Tensor]


class Networks(nn.Module):
    """The network and its moving average, under the names that their tensors have in a file."""

    def __init__(self, network: nn.Module, averaged: nn.Module) -> None:
        super().__init__()
        self.network, self.averaged = network, averaged


def choices(options: Options, faces: int) -> dict[str, float]:
    """Return what decides the course of a training, beside the photos themselves."""
    return {**{name: getattr(options, name) for name in _OPTIONS}, "faces": faces}


def save(path: Path, progress: Progress) -> None:
    """Write the file, whole or not at all."""
    state = {"step": progress.step, "seconds": progress.seconds, "options": progress.options}
    metadata = {"format": FORMAT, "version": VERSION, "state": json.dumps(state)}
    with atomic_path(path) as temporary:
        save_tensors(temporary, progress.tensors, metadata)


def read(path: Path) -> Progress:
    """Read a file of :func:`save`, or of the versions before, which saved by ``torch.save``.

    Raises:
        HidaError: it is neither, or damaged.
    """
    try:
        with path.open("rb") as file:
            torch_saved = file.read(4) == b"PK\x03\x04"
        return _read_former(path) if torch_saved else _read(path)
    except (HidaError, PickleError, SafetensorError, KeyError, TypeError, ValueError, MemoryError) as error:
        reason = "it lacks a part" if isinstance(error, KeyError) else first_line(error)[:120]
        raise HidaError(
            f"'{path}' is not a checkpoint of train-depth ({reason}); give its own, or a new name."
        ) from None


def _read(path: Path) -> Progress:
    check_header(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise ValueError("it is a safetensors file of another kind")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = parse_json(metadata["state"])
    options = {name: value.number(1e300) for name, value in state.field("options").fields().items()}
    return Progress(state.field("step").whole(0, 10**8), state.field("seconds").number(), options, tensors)


def _read_former(path: Path) -> Progress:
    file = TorchFile(path)
    content = file.content
    names = [name for name in content["network"] if not name.endswith(("running_mean", "running_var", "tracked"))]
    moments = content["optimiser"]["state"]
    stored = {f"{part}.{name}": value for part in ("network", "averaged") for name, value in content[part].items()}
    for index, name in enumerate(names):
        stored |= {f"optimiser.{key}.{name}": value for key, value in moments[index].items()}
    tensors = file.tensors(stored)
    group, total = content["optimiser"]["param_groups"][0], content["schedule"]["total_steps"]
    options = {"steps": total - 1, "lr": group["max_lr"], "weight_decay": group["weight_decay"]}
    if tensors is None or type(content["step"]) is not int or not isinstance(content["seconds"], float):
        raise ValueError("it is damaged")
    return Progress(content["step"], content["seconds"], options, tensors)


def require_same(progress: Progress, chosen: Mapping[str, float], path: Path) -> None:
    """Require that a training goes on as it has begun.

    Raises:
        HidaError: naming the first option that is another one.
    """
    for name, before in progress.options.items():
        if name in chosen and chosen[name] != before:
            what = "the number of training photos with a face" if name == "faces" else f"--{name.replace('_', '-')}"
            raise HidaError(
                f"'{path}' was saved when {what} was {before:g}, now it is {chosen[name]:g}; continue with the same, "
                "or give --checkpoint a new name."
            )
    if not 0 <= progress.step <= chosen["steps"]:
        raise HidaError(f"'{path}' is damaged: it says that it is at step {progress.step}; give a new name.")


def collect(networks: Networks, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return every tensor of a training under its name in a file."""
    moments = {
        f"optimiser.{key}.{name}": value
        for name, parameter in networks.network.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    return networks.state_dict() | moments


def restore(progress: Progress, networks: Networks, optimiser: torch.optim.Optimizer, path: Path) -> None:
    """Fill the networks and the optimiser.

    Raises:
        HidaError: their tensors have other names or shapes.
    """
    own = {name: tuple(value.shape) for name, value in networks.state_dict().items()}
    parameters = dict(networks.network.named_parameters())
    for name, parameter in parameters.items():
        own |= {f"optimiser.{key}.{name}": tuple(parameter.shape) for key in ("exp_avg", "exp_avg_sq")}
        own[f"optimiser.step.{name}"] = ()
    found = {name: tuple(value.shape) for name, value in progress.tensors.items()}
    other = next((name for name in sorted(own.keys() | found.keys()) if own.get(name) != found.get(name)), None)
    if other is not None:
        raise HidaError(
            f"'{path}' is not a checkpoint of train-depth (it is of another network, by {label(other)}); give its own, "
            "or a new name."
        )
    networks.load_state_dict({name: value for name, value in progress.tensors.items() if name in networks.state_dict()})
    entries: dict[int, dict[str, Any]] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        entries[index] = {"step": progress.tensors[f"optimiser.step.{name}"].clone()}
        for key in ("exp_avg", "exp_avg_sq"):
            # In the layout of the weights, which may be NHWC.
            value = progress.tensors[f"optimiser.{key}.{name}"]
            entries[index][key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})


@contextlib.contextmanager
def held_signals(wanted: bool) -> Iterator[list[int]]:
    """Yield a list to which signals that would end the process are added; afterwards they do what they did before.

    Args:
        wanted: whether to hold them at all.
    """
    caught: list[int] = []
    with handled(stops() if wanted else (), lambda number, _: caught.append(number)):
        yield caught
