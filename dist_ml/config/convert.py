"""Strict conversion of a plain mapping into frozen dataclasses.

Unknown keys, missing keys and wrong types raise `ConfigError` with the full key, the value, and what is allowed. Numbers widen
(int -> float) and never narrow; nothing is parsed out of strings, with one exception: YAML 1.1 reads `1e-4` as text, so a
string that spells a number is taken where a float is asked for.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from dist_ml.errors import ConfigError

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], key: str = "") -> T:
    """Build the dataclass `cls` from `mapping`; `key` is the dotted prefix that error messages start with."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{key or 'config'} must be a group of keys, but is {mapping!r}; write {key}.<name>=<value>")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in mapping:
        if name not in fields:
            raise ConfigError(_unknown_key(_join(key, str(name)), str(name), sorted(fields), mapping[name]))
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], _join(key, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(key, name)} is missing and has no default; set {_join(key, name)}=<{_spell(hints[name])}>")
    return _construct(cls, values, key)


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain mapping that `from_mapping` turns back into an equal dataclass."""
    return typing.cast(dict[str, Any], _plain(config))


def _construct(cls: type[T], values: dict[str, Any], key: str) -> T:
    """Rules across fields live in `__post_init__`; their messages name the field, this adds where the group sits."""
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}" if key else str(error)) from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_optional(arguments, value, key, hint)
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, key)
    if origin is Literal:
        return _one_of(arguments, value, key)
    if origin is tuple:
        return tuple(_convert(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(_sequence(value, key, hint)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(key, value, hint)
        return {str(name): _convert(arguments[1], item, _join(key, str(name))) for name, item in value.items()}
    return _scalar(hint, value, key)


def _convert_optional(arguments: tuple[Any, ...], value: Any, key: str, hint: Any) -> Any:
    if value is None and type(None) in arguments:
        return None
    alternatives = [argument for argument in arguments if argument is not type(None)]
    for alternative in alternatives[:-1]:
        try:
            return _convert(alternative, value, key)
        except ConfigError:
            continue
    try:
        return _convert(alternatives[-1], value, key)
    except ConfigError:
        if len(alternatives) == 1:
            raise
        raise _wrong_type(key, value, hint) from None


def _scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise _wrong_type(key, value, hint) from None
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong_type(key, value, hint)


def _one_of(allowed: tuple[Any, ...], value: Any, key: str) -> Any:
    if value in allowed and not isinstance(value, bool):
        return value
    raise ConfigError(
        f"{key}={value} is not one of {', '.join(map(str, allowed))}{_did_you_mean(str(value), [str(a) for a in allowed])}"
    )


def _sequence(value: Any, key: str, hint: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(key, value, hint)
    return value


def _wrong_type(key: str, value: Any, hint: Any) -> ConfigError:
    return ConfigError(f"{key}={value} has the wrong type: it must be {_spell(hint)}, not {type(value).__name__}")


def _unknown_key(full: str, name: str, known: list[str], value: Any) -> str:
    shown = f"={value}" if not isinstance(value, (Mapping, list)) else ""
    return f"unknown key {full}{shown}{_did_you_mean(name, known)}; known here: {', '.join(known)}"


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _spell(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list of {_spell(arguments[0]).removeprefix('a ')}s"
    return names.get(hint, "a group of keys")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
