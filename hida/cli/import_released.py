"""Turn the authors' released checkpoint into HIDA weights.

    hida import-released _ckpt_epoch_749.ckpt released.safetensors
    hida sketch photo.jpg --weights released.safetensors

Every tensor is read by its name and shape; nothing in the checkpoint is executed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hida.cli.parsing import read_command, unset


@dataclass(frozen=True)
class Command:
    """Turn the authors' checkpoint into HIDA weights."""

    ckpt: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CKPT")]
    """the released PyTorch Lightning checkpoint"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """weights file to write (.safetensors), or a folder for weights.safetensors and config.json"""
    keep_unused: bool = True
    """also store the tensors that the network never uses, so that export-released gives the same file back"""
    unused: Annotated[tuple[str, ...], unset("NAME...")] = ()
    """further modules to ignore, by the beginning of their names; unknown ones are refused otherwise"""
    list_unused: bool = False
    """name every tensor that the network never uses, instead of counting them"""


# Names that are meant for a file; any other is a folder's, which may have a dot in it.
_FILES = (".safetensors", ".safetensor", ".ckpt", ".pt", ".pth", ".bin", ".pkl", ".npz", ".onnx", ".h5", ".tar", ".zip")
_GROUPS = 6  # of tensors, in the summary


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``hida import-released``."""
    command: Command = read_command(Command, argv, "hida import-released", __doc__)
    from hida.errors import label
    from hida.files import write_json
    from hida.weights import checkpoint
    from hida.weights.released.importing import convert, read, record
    from hida.weights.released.layout import BUFFERS, GENERATOR

    folder = command.out.is_dir() or command.out.suffix.lower() not in _FILES
    target = command.out / "weights.safetensors" if folder else command.out
    if folder:
        _require_folder(command.out)
    checkpoint.require_target(target, (".safetensors",), (command.ckpt,))
    state = read(command.ckpt)
    config, tensors, unused = convert(state, command.ckpt, command.unused)
    idle = [n for n in unused if n.startswith(GENERATOR) and not n.endswith(BUFFERS)]
    numbers, rest = sum(unused[n].numel() for n in idle), len(unused) - len(idle)
    used = sum(value.numel() for name, value in tensors.items() if name.startswith("generator."))
    if command.keep_unused:
        tensors |= {f"unused.{name}": value for name, value in unused.items()}
    source = {"released": command.ckpt.name, "unused": sorted(unused), "tensors": record(state)}
    checkpoint.save(target, checkpoint.WEIGHTS, config, source, tensors)
    if folder:
        write_json(command.out / "config.json", config.to_dict())
    if command.list_unused:
        print("\n".join(f"not used: {label(name)} {tuple(unused[name].shape)}" for name in sorted(unused)))
    elif unused:
        print(f"not used: {_summary(unused)}; --list-unused names them all")
    print(f"{used:,} parameters of the generator are used, {numbers:,} in {len(idle)} tensors are not")
    print(f"{used + numbers:,} parameters are accounted for; {rest} further tensors are statistics or no network's")
    print(f"written: {target}")


def _require_folder(folder: Path) -> None:
    from hida.errors import HidaError
    from hida.files import require_folder_place
    from hida.weights.checkpoint import checkpoint_paths

    require_folder_place(folder)
    if folder.is_dir() and checkpoint_paths(folder):
        raise HidaError(
            f"'{folder}' is the folder of a run, whose weights.safetensors and config.json would be replaced; choose "
            "another."
        )


def _summary(names: Iterable[str]) -> str:
    """Return how many there are, and of which parts, the levels of the network together."""
    from hida.errors import label

    groups = Counter(re.sub(r"\d+$", "*", ".".join(name.split(".")[:2])) for name in names)
    starred = {group: label(group.rstrip("*")) + "*" * group.endswith("*") for group, _ in groups.most_common(_GROUPS)}
    most = [f"{groups[group]} of {name}" for group, name in starred.items()]
    more = [f"{len(groups) - _GROUPS} further parts"] if len(groups) > _GROUPS else []
    return f"{sum(groups.values())} tensors ({', '.join(most + more)})"
