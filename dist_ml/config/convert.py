"""Strict conversion of a plain mapping into frozen dataclasses.

Unknown keys, missing keys and wrong types raise `ConfigError` with the full key, the value, and
what is allowed. Numbers widen (int -> float) and never narrow; nothing is parsed out of strings,
with one exception: YAML 1.1 reads `1e-4` as text, so a string that spells a number is taken where a
float is asked for. NaN is never a value. Messages spell values as YAML does.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from dist_ml.errors import ConfigError

T = TypeVar("T")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], key: str = "") -> T:
    """Build the dataclass `cls` from `mapping`; `key` is the dotted prefix that error messages
    start with.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{key or 'config'} must be a group of keys, but is {show(mapping)}; write "
            f"{_join(key, '<name>')}=<value>"
        )
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in mapping:
        if name not in fields:
            raise ConfigError(
                _unknown_key(_join(key, str(name)), str(name), sorted(fields), mapping[name])
            )
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], _join(key, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(
                f"{_join(key, name)} is missing and has no default; set "
                f"{_join(key, name)}=<{_spell(hints[name])}>"
            )
    return _construct(cls, values, key)


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain mapping that `from_mapping` turns back into an equal dataclass."""
    return typing.cast(dict[str, Any], _plain(config))


def _construct(cls: type[T], values: dict[str, Any], key: str) -> T:
    """Rules across fields live in `__post_init__`; their messages name the field, this adds where
    the group sits.
    """
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
        return _convert_tuple(arguments, value, key, hint)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(key, value, hint)
        return {
            str(name): _convert(arguments[1], item, _join(key, str(name)))
            for name, item in value.items()
        }
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


def _convert_tuple(arguments: tuple[Any, ...], value: Any, key: str, hint: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(key, value, hint)
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(value) != len(arguments):
        raise ConfigError(
            f"{key}={show(value)} has {len(value)} items; it must be a list of {len(arguments)}"
        )
    return tuple(
        _convert(argument, item, f"{key}[{i}]")
        for i, (argument, item) in enumerate(zip(arguments, value, strict=True))
    )


def _scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is Any:
        return value
    if hint is float:
        return _number(value, key)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong_type(key, value, hint)


def _number(value: Any, key: str) -> float:
    spelled = isinstance(value, str) and _NUMBER.fullmatch(value)
    if isinstance(value, bool) or not (spelled or isinstance(value, (int, float))):
        raise _wrong_type(key, value, float)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) and not isinstance(value, float):
        raise ConfigError(f"{key} is too large for a float64; use a number below 1.8e308")
    if math.isnan(number):
        raise ConfigError(f"{key}=.nan is not a number; set {key}=<a number>")
    return number


def _one_of(allowed: tuple[Any, ...], value: Any, key: str) -> Any:
    for choice in allowed:
        if type(choice) is type(value) and choice == value:
            return choice
    names = [show(choice) for choice in allowed]
    raise ConfigError(
        f"{key}={show(value)} is not one of {', '.join(names)}{_did_you_mean(show(value), names)}"
    )


def _wrong_type(key: str, value: Any, hint: Any) -> ConfigError:
    return ConfigError(
        f"{key}={show(value)} has the wrong type: it must be {_spell(hint)}, not {_kind(value)}"
    )


def _unknown_key(full: str, name: str, known: list[str], value: Any) -> str:
    shown = f"={show(value)}" if not isinstance(value, (Mapping, list)) else ""
    return f"unknown key {full}{shown}{_did_you_mean(name, known)}; known here: {', '.join(known)}"


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _spell(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(show, arguments))
    if origin is tuple:
        return f"a list, each item {_spell(arguments[0])}"
    return names.get(hint, "a group of keys")


def show(value: Any) -> str:
    """The value as YAML writes it on one line."""
    return (
        value
        if isinstance(value, str) and value
        else json.dumps(value, default=str, ensure_ascii=False)
    )


def _kind(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return _spell(type(value))
    return (
        "a group of keys"
        if isinstance(value, Mapping)
        else "a list"
        if isinstance(value, (list, tuple))
        else str(type(value))
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
