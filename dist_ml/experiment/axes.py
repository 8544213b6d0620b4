"""The points of an experiment before anything is composed: each one's settings and overrides."""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dist_ml.config.experiment import ExperimentConfig
from dist_ml.errors import ConfigError

_MOST_POINTS = 1000
_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*|[+-]?\d[\w.+-]*")  # text that Hydra reads as it stands
_WORDS = {"null", "true", "false", "nan", "inf"}  # that it reads as something else than text


@dataclass(frozen=True)
class Combination:
    """One value of every axis."""

    settings: Mapping[str, str]  # by axis, as tables show them
    overrides: tuple[str, ...]  # of the training configuration: the fixed ones, then the axes'


def combinations(config: ExperimentConfig) -> list[Combination]:
    """The product of all axes, the last one fastest; `ConfigError` for too many."""
    choices = [_choices(name, values) for name, values in config.axes.items()]
    count = math.prod(map(len, choices))
    if count > _MOST_POINTS:
        raise ConfigError(
            f"the axes make {count:,} points; an experiment has at most {_MOST_POINTS:,}: split it"
        )
    fixed = [f"{key}={spell(value)}" for key, value in config.fixed.items()]
    return [
        Combination(
            dict(zip(config.axes, (label for label, _ in chosen), strict=True)),
            (*fixed, *(each for _, overrides in chosen for each in overrides)),
        )
        for chosen in itertools.product(*choices)
    ]


def per_rank_overrides(config: ExperimentConfig, ranks: int) -> tuple[str, ...]:
    """What grows with the ranks, on so many of them."""
    return tuple(f"{key}={value * ranks}" for key, value in config.per_rank.items())


def spell(value: Any) -> str:
    """A value as an override writes it, so that Hydra reads the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{spell(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(spell, value))}]"
    text = str(value)
    if not isinstance(value, str) or (_PLAIN.fullmatch(text) and text.lower() not in _WORDS):
        return text
    return quoted(text)


def quoted(text: str) -> str:
    """Text in Hydra's single quotes, whatever it holds."""
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", text)  # elsewhere a backslash is itself
    return "'" + doubled.replace("'", r"\'") + "'"


def _choices(name: str, values: Any) -> list[tuple[str, tuple[str, ...]]]:
    """(label, overrides) of each value of one axis."""
    if isinstance(values, Mapping):
        return [(str(label), tuple(overrides)) for label, overrides in values.items()]
    return [(spell(value).strip("'"), (f"{name}={spell(value)}",)) for value in values]
