"""Build the generator and the discriminator from a configuration or a preset's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from hida.config import Config, DiscriminatorConfig, GeneratorConfig, load_preset
from hida.errors import HidaError
from hida.models.discriminator import Discriminator
from hida.models.generator import Generator

Part = TypeVar("Part", GeneratorConfig, DiscriminatorConfig)
Network = TypeVar("Network", Generator, Discriminator)


def build_generator(config: Config | GeneratorConfig | str) -> Generator:
    """Return a freshly initialised generator for a configuration or a preset's name."""
    config = load_preset(config) if isinstance(config, str) else config
    return Generator(_part(config.generator if isinstance(config, Config) else config, GeneratorConfig))


def build_discriminator(config: Config | DiscriminatorConfig | str) -> Discriminator:
    """Return a freshly initialised discriminator for a configuration or a preset's name."""
    config = load_preset(config) if isinstance(config, str) else config
    return Discriminator(_part(config.discriminator if isinstance(config, Config) else config, DiscriminatorConfig))


def outline(network: Callable[[Part], Network], config: Part) -> Network:
    """Return a ``network`` of this configuration whose tensors have shapes and no memory (device "meta").

    ``load_state_dict(tensors, assign=True)`` makes it a network with these tensors.
    """
    with torch.device("meta"), _Unfilled():
        return network(config)


class _Unfilled(TorchFunctionMode):
    """Leave out what fills new tensors: on the device "meta" it would only load torch's compiler, for a second."""

    _FILLS = frozenset(
        (init.kaiming_uniform_, init.uniform_, init.normal_, Tensor.uniform_, Tensor.normal_, Tensor.zero_)
    )

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in self._FILLS:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if function is torch.randn else function)(*args, **kwargs)


def _part(config: Part, kind: type[Part]) -> Part:
    if not isinstance(config, kind):
        raise HidaError(f"config must be a Config, a {kind.__name__} or a preset's name, not {type(config).__name__}.")
    return config
