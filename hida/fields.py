"""Dataclasses from plain values, as TOML and JSON hold them, and back; what does not fit is named."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from hida.errors import HidaError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_T = TypeVar("_T", bound=_Dataclass)


class ConfigError(HidaError):
    """A configuration names an unknown field, or a value that the field does not take."""


def plain(value: Any) -> Any:
    """Return ``value`` with dicts and lists in the place of tuples, as TOML and JSON hold them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def build(cls: type[_T], values: Any, path: str = "") -> _T:
    """Build the dataclass ``cls``, and those in it, from nested dicts; ``path`` is what comes before a field's name.

    Raises:
        ConfigError: for an unknown field or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"configuration entry {path[:-1] or 'root'} must be a table of fields; it is {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {item.name for item in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"unknown configuration field {path}{key}; known there: {', '.join(sorted(fields))}.")
        hint = hints[key]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            arguments[key] = build(hint, value, f"{path}{key}.")
        else:
            arguments[key] = _value(hint, value, f"{path}{key}")
    return cls(**arguments)


def _value(hint: Any, value: Any, path: str) -> Any:
    if typing.get_origin(hint) is Literal:
        fits = value in typing.get_args(hint)
        wanted = "one of " + ", ".join(map(str, typing.get_args(hint)))
    elif typing.get_origin(hint) is tuple:
        value = tuple(value) if isinstance(value, list | tuple) else value
        fits = isinstance(value, tuple) and all(type(item) is int for item in value)
        wanted = "a list of integers"
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        wanted = "a number"
    else:
        fits = type(value) is hint
        wanted = {"int": "an integer", "bool": "true or false", "str": "a text"}[hint.__name__]
    if not fits:
        raise ConfigError(f"configuration field {path} must be {wanted}; it is {value!r}.")
    return float(value) if hint is float else value


def require(condition: bool, message: str, owner: Any) -> None:
    """Raise ConfigError unless ``condition`` holds; ``message`` begins with the field's name."""
    if not condition:
        name = message.split(" ")[0].split(".")[-1]
        raise ConfigError(f"{type(owner).__name__}: {message}; it is {getattr(owner, name)!r}.")
