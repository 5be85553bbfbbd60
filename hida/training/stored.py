"""Read from a checkpoint what it has beside its networks: the counters, and the moments of the optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

from hida.errors import shown
from hida.fields import ConfigError, build, require
from hida.weights.checkpoint import Checkpoint, CheckpointError

_MOST = 10**12


@dataclass(frozen=True)
class Counters:
    """The numbers that a checkpoint has beside its tensors."""

    iteration: int
    images: int
    processes: int
    elapsed: float = 0.0
    """older checkpoints have none"""
    scaler: dict = field(default_factory=dict)
    """state of the loss scaler: empty unless the precision was fp16"""

    def __post_init__(self) -> None:
        require(0 <= self.iteration < _MOST, "iteration must be ≥ 0 and possible", self)
        require(0 <= self.images < _MOST, "images must be ≥ 0 and possible", self)
        require(1 <= self.processes < _MOST, "processes must be ≥ 1 and possible", self)
        require(0 <= self.elapsed < _MOST, "elapsed must be ≥ 0 and possible", self)


def read_counters(checkpoint: Checkpoint) -> Counters:
    """Return a checkpoint's counters; what else it says is no matter here.

    Raises:
        CheckpointError: one is absent or impossible.
    """
    known = {item.name for item in fields(Counters)}
    try:
        return build(Counters, {key: value for key, value in checkpoint.state.items() if key in known})
    except ConfigError as error:
        raise CheckpointError(
            f"'{checkpoint.path}' has damaged counters ({str(error).rstrip('.')}); resume from an older checkpoint."
        ) from None


def require_moments(
    stored: Mapping[str, Tensor], parameters: Mapping[str, Tensor], checkpoint: Checkpoint, part: str
) -> None:
    """Require that an optimiser's state is whole: its step, and means of the parameters' shapes.

    Raises:
        CheckpointError: naming the first tensor that is not of it.
    """
    for name, value in stored.items():
        key, _, parameter = name.partition(".")
        shapes = {"step": ((), (1,)), "exp_avg": (), "exp_avg_sq": ()}
        owner = parameters.get(parameter)
        allowed = () if owner is None or key not in shapes else shapes[key] or (tuple(owner.shape),)
        whole = all(f"{other}.{parameter}" in stored for other in shapes)
        if tuple(value.shape) not in allowed or not whole or not value.is_floating_point():
            raise CheckpointError(
                f"'{checkpoint.path}' holds another state of the {part}'s optimiser ({shown(name)}); resume from an "
                "older checkpoint."
            )
