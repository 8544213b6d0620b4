"""What a configured command shows without running: its help, and the configuration it would run
with.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from dist_ml.cli import compose, terminal
from dist_ml.cli.arguments import FLAGS, Request
from dist_ml.config.convert import from_mapping, to_mapping


def show(request: Request, config_class: type, program: str, flags: str = FLAGS) -> int:
    """`--help`, or `--cfg job`; the latter is checked too, after it is printed."""
    if request.help:
        terminal.say(_help(request, config_class, program, flags))
        return 0
    terminal.say(compose.shown(request))
    if not request.package:
        from_mapping(config_class, compose.composed(request))
    return 0


def _help(request: Request, config_class: type, program: str, flags: str) -> str:
    mapping = compose.composed(request)
    groups = {
        group: options for group, options in compose.groups(request).items() if group in mapping
    }
    width = max(map(len, groups), default=0)
    group_lines = [f"  {group:{width}}  {', '.join(options)}" for group, options in groups.items()]
    return "\n".join(
        [
            f"usage: {program} [flags] [overrides]",
            "",
            "Overrides are Hydra's: key=value sets a key, group=option chooses a file of a group, "
            "~key removes one.",
            "",
            "Flags:",
            flags,
            "",
            *(["Groups:", *group_lines, ""] if group_lines else []),
            f"Keys, with the values that they have now ({request.config_name}.yaml and the "
            "overrides given):",
            *_key_lines(mapping, config_class),
        ]
    )


def _key_lines(mapping: dict[str, Any], config_class: type) -> list[str]:
    rows = list(_rows(mapping, config_class, ""))
    key_width = max(len(key) for key, _, _ in rows)
    value_width = min(28, max(len(value) for _, value, _ in rows))
    return [
        f"  {key:{key_width}}  {value:{value_width}}  {meaning}".rstrip()
        for key, value, meaning in rows
    ]


def _rows(
    mapping: dict[str, Any], config_class: type, prefix: str
) -> Iterator[tuple[str, str, str]]:
    """(key, value, meaning) of every key, also of those that the composed files leave at their
    default.
    """
    meanings, hints = field_comments(config_class), typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        key, value = f"{prefix}{field.name}", mapping.get(field.name, _default(field))
        nested = hints[field.name]
        if (
            dataclasses.is_dataclass(nested)
            and isinstance(nested, type)
            and isinstance(value, dict)
        ):
            yield from _rows(value, nested, f"{key}.")
        else:
            yield key, _spell(value), meanings.get(field.name, "")


def _default(field: "dataclasses.Field[Any]") -> Any:
    """As a mapping has it: of a group, its keys."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    made = field.default_factory()
    return to_mapping(made) if dataclasses.is_dataclass(made) else made


def field_comments(config_class: type) -> dict[str, str]:
    """Each field's comment, behind it or on the lines above it: configuration is documented
    there.
    """
    above = r"((?:^[ ]+#[^\n]*\n)*)"
    pattern = re.compile(above + r"^[ ]+(\w+):[^#\n]*(#[^\n]*)?$", re.MULTILINE)
    return {
        match[2]: " ".join(
            line.strip().lstrip("# ") for line in f"{match[1]}{match[3] or ''}".split("\n")
        ).strip()
        for match in pattern.finditer(inspect.getsource(config_class))
    }


def _spell(value: Any) -> str:
    """As YAML and an override spell it."""
    if value is None or value is dataclasses.MISSING:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_spell, value))}]"
    return str(value)
