"""Dataclasses from plain values and back; what does not fit is named."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from hida.errors import HidaError, shown


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_T = TypeVar("_T", bound=_Dataclass)


class ConfigError(HidaError):
    """A configuration names an unknown field, or a value that the field does not take.

    Args:
        field: the field, such as ``train.batch``, if the message begins with it.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def plain(value: Any) -> Any:
    """Return ``value`` with dicts and lists in the place of tuples, as TOML and JSON hold them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


_LARGEST = 2**63


def build(cls: type[_T], values: Any, path: str = "") -> _T:
    """Build the dataclass ``cls``, and those in it, from nested dicts; ``path`` is what comes before a field's name.

    Raises:
        ConfigError: for an unknown field or a value of the wrong type.
    """
    if not isinstance(values, dict):
        name = path[:-1] or "root"
        raise ConfigError(f"configuration entry {name} must be a table of fields; it is {shown(values)}.")
    hints = typing.get_type_hints(cls)
    fields = {item.name for item in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            name = key if isinstance(key, str) and key.isidentifier() and len(key) <= 80 else shown(key)
            raise ConfigError(f"unknown configuration field {path}{name}; known there: {', '.join(sorted(fields))}.")
        hint = hints[key]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            arguments[key] = build(hint, value, f"{path}{key}.")
        else:
            arguments[key] = _value(hint, value, f"{path}{key}")
    needed = [item.name for item in dataclasses.fields(cls) if _is_needed(item) and item.name not in arguments]
    if needed:
        raise ConfigError(f"configuration field {path}{needed[0]} is absent.")
    return cls(**arguments)


def _is_needed(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, path: str) -> Any:
    if typing.get_origin(hint) is Literal:
        fits = value in typing.get_args(hint)
        wanted = "one of " + ", ".join(map(str, typing.get_args(hint)))
    elif typing.get_origin(hint) is tuple:
        value = tuple(value) if isinstance(value, list | tuple) else value
        fits = isinstance(value, tuple) and all(type(item) is int and abs(item) < _LARGEST for item in value)
        wanted = "a list of integers"
    elif hint is float:
        # No NaN, and no integer that is too large for a float.
        fits = (isinstance(value, float) and value == value) or (type(value) is int and abs(value) < _LARGEST)
        wanted = "a number"
    elif hint is dict:
        fits = isinstance(value, dict) and all(
            type(item) in (int, float) and abs(item) < _LARGEST for item in value.values()
        )
        wanted = "a table of numbers"
    else:
        fits = type(value) is hint and (hint is not int or abs(value) < _LARGEST)
        wanted = {"int": "an integer", "bool": "true or false", "str": "a text"}[hint.__name__]
    if not fits:
        raise ConfigError(f"configuration field {path} must be {wanted}; it is {shown(value)}.")
    return float(value) if hint is float else value


def require(condition: bool, message: str, owner: Any) -> None:
    """Raise ConfigError unless ``condition`` holds; ``message`` begins with the name of a field of ``owner``."""
    if not condition:
        name, _, rest = message.partition(" ")
        # As a configuration has it: a TrainConfig is its table train.
        field = f"{type(owner).__name__.removesuffix('Config').lower()}.{name}"
        raise ConfigError(f"{field} {rest}; it is {shown(getattr(owner, name))}.", field)
